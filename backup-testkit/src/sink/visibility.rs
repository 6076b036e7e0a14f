//! Before `finish` there is nothing; after it there is everything.

use std::future::ready;
use std::sync::Arc;

use backup_core::{Bytes, ErrorKind, Sink};

use super::{assert_invisible, key, list, names, new_note, note, put, read};
use crate::noise;

/// An object being written is not listed, found or readable; after `finish` it is, whole.
pub async fn nothing_is_visible_before_finish(sink: &dyn Sink) {
    for options in [new_note(), note()] {
        let name = format!("visible/{:?}", options.mode);
        let mut writer = sink.create(&key(&name), options).await.expect("create");
        assert_invisible(sink, &name, "after create").await;
        for n in 0..5 {
            writer.write(noise(300_000, n)).await.expect("write");
            assert_invisible(sink, &name, "while written").await;
        }
        assert!(list(sink, "").await.iter().all(|found| found.key != key(&name)));
        let info = writer.finish().await.expect("finish");
        assert_eq!((info.key, info.size), (key(&name), 1_500_000), "finish reports the object");
        let expected: Vec<u8> = (0..5).flat_map(|n| noise(300_000, n)).collect();
        assert!(
            read(sink, &name).await.expect("read") == expected,
            "the object differs from what was written"
        );
    }
}

/// A writer given up at any moment leaves nothing visible, and the name stays free.
pub async fn aborted_and_dropped_writers_leave_nothing(sink: &dyn Sink) {
    for chunks in [0, 1, 4] {
        for abort in [true, false] {
            let mut writer = sink.create(&key("left/over"), new_note()).await.expect("create");
            for n in 0..chunks {
                writer.write(noise(400_000, n)).await.expect("write");
            }
            if abort {
                writer.abort().await.expect("abort");
            } else {
                drop(writer);
            }
            assert_invisible(sink, "left/over", "after a writer was given up").await;
            assert_eq!(names(sink, "").await, [""; 0], "something is left after abort={abort}");
        }
    }
    // An aborted overwrite leaves the old object.
    put(sink, "left/over", "old").await;
    let mut writer = sink.create(&key("left/over"), note()).await.expect("create");
    writer.write("new".into()).await.expect("write");
    writer.abort().await.expect("abort");
    assert_eq!(read(sink, "left/over").await.expect("read"), "old");
}

/// A write whose future is dropped half-way (a stall time-out) leaves nothing visible, whatever is done next.
pub async fn a_dropped_write_leaves_nothing(sink: &dyn Sink) {
    for go_on in [false, true] {
        let name = format!("dropped/write-{go_on}");
        let mut writer = sink.create(&key(&name), new_note()).await.expect("create");
        writer.write(noise(700_000, 1)).await.expect("write");
        let completed = tokio::select! {
            biased;
            done = writer.write(noise(3_000_000, 2)) => { done.expect("write"); true }
            () = ready(()) => false,
        };
        if go_on {
            // The writer may refuse; if it finishes, then only with all of what it was given.
            let rest = writer.write(noise(10, 3)).await;
            let done =
                if rest.is_ok() { writer.finish().await.map(|info| info.size) } else { rest.map(|()| 0) };
            match done {
                Ok(size) => {
                    let whole = 700_000 + 3_000_000 + 10;
                    let without = 700_000 + 10;
                    assert!(
                        size == whole || (!completed && size == without),
                        "{size} bytes: torn by a dropped write"
                    );
                    assert_eq!(read(sink, &name).await.expect("read").len() as u64, size);
                }
                Err(_) => assert_invisible(sink, &name, "after a refused write").await,
            }
        } else {
            drop(writer);
            assert_invisible(sink, &name, "after a dropped write").await;
        }
    }
}

/// A finish whose future is dropped has either happened or not: never half an object.
pub async fn a_dropped_finish_leaves_a_whole_object_or_none(sink: &dyn Sink) {
    let bytes = noise(2_000_000, 4);
    for n in 0..8u32 {
        let name = format!("dropped/finish-{n}");
        let mut writer = sink.create(&key(&name), new_note()).await.expect("create");
        writer.write(bytes.clone()).await.expect("write");
        let patience = tokio::time::sleep(std::time::Duration::from_micros(u64::from(n * n) * 50));
        tokio::select! {
            biased;
            done = writer.finish() => { done.expect("finish"); }
            () = patience => {}
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        match read(sink, &name).await {
            Ok(found) => assert!(found == bytes, "half an object after a dropped finish"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.chain()),
        }
    }
}

/// While an object is replaced again and again, a reader sees one whole version, always.
pub async fn an_overwrite_shows_the_old_or_the_new(sink: Arc<dyn Sink>) {
    const SIZE: usize = 100_000;
    let version = |n: u8| Bytes::from(vec![n; SIZE]);
    put(&*sink, "over/written", version(0)).await;
    let writer = {
        let sink = Arc::clone(&sink);
        tokio::spawn(async move {
            for n in 1..=20 {
                put(&*sink, "over/written", version(n)).await;
            }
        })
    };
    while !writer.is_finished() {
        let found = read(&*sink, "over/written").await.expect("an object being replaced is always there");
        assert_eq!(found.len(), SIZE, "a reader saw a part");
        assert!(found.iter().all(|b| Some(b) == found.first()), "a reader saw two versions mixed");
        assert_eq!(list(&*sink, "over").await.len(), 1, "one object is listed, always");
        tokio::task::yield_now().await;
    }
    writer.await.expect("the overwriting task");
    assert!(read(&*sink, "over/written").await.expect("read") == version(20));
}
