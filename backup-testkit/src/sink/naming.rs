//! Names and listing.

use backup_core::{Key, Sink, put_bytes};

use super::{key, list, names, note, put, read};

/// `a/b` lists `a/b/c` and never `a/bc` or itself; the root lists everything; an absent prefix nothing.
pub async fn prefixes_match_whole_segments(sink: &dyn Sink) {
    let all = ["a/b/c", "a/b/d/e", "a/bc", "a/bc.d/x", "a.b/c", "ab/c", "z"];
    for name in all {
        put(sink, name, name.to_owned()).await;
    }
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    assert_eq!(names(sink, "").await, sorted, "the root lists everything");
    for (prefix, expected) in [
        ("a/b", &["a/b/c", "a/b/d/e"][..]),
        ("a/b/d", &["a/b/d/e"]),
        ("a", &["a/b/c", "a/b/d/e", "a/bc", "a/bc.d/x"]),
        ("a/bc", &[]),
        ("z", &[]),
        ("a/b/c", &[]),
        ("absent", &[]),
        ("absent/deeper", &[]),
    ] {
        assert_eq!(names(sink, prefix).await, expected, "list {prefix:?}");
    }
}

/// Every character a key may hold, hidden-looking names, escapes, the longest segment, and depth.
pub async fn every_allowed_character_and_255_byte_segments_work(sink: &dyn Sink) {
    let raw: Vec<u8> = (0..=255).filter(|b| *b != b'/').collect();
    let escaped: Vec<Key> =
        raw.chunks(60).map(|part| key("chars").join(part).expect("any bytes make a segment")).collect();
    let long = "l".repeat(255);
    let mut all: Vec<Key> = [
        "chars/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-",
        "chars/.hidden",
        "chars/..double",
        "chars/-dash",
        "chars/...",
        "chars/a.tmp",
        "chars/%2E",
        "chars/%2F%00%FF",
        "chars/trailing.dot.",
    ]
    .into_iter()
    .map(key)
    .collect();
    all.extend(escaped);
    all.push(key(&format!("chars/{long}")));
    all.push(key(&format!("{long}/file")));
    all.push(key(&vec!["deep"; 30].join("/")));
    for name in &all {
        let text = name.to_string();
        put_bytes(sink, name, text.clone().into(), note())
            .await
            .unwrap_or_else(|e| panic!("cannot put {text}: {}", e.chain()));
    }
    let mut expected: Vec<String> = all.iter().map(Key::to_string).collect();
    expected.sort();
    assert_eq!(names(sink, "").await, expected, "every name is listed as it was written");
    for name in &expected {
        assert_eq!(read(sink, name).await.expect("read"), name.as_str());
    }
}

/// `list` and `head` and `finish` tell the same of every object; more objects than fit one page of any listing.
pub async fn head_and_list_agree(sink: &dyn Sink) {
    let count: u16 = 1100;
    let sink_ref = &sink;
    let puts = (0..count).map(|n| async move {
        put(*sink_ref, &format!("agree/{}/{n}", n % 7), vec![b'x'; usize::from(n % 300)]).await
    });
    let mut finished: Vec<_> =
        futures::StreamExt::collect(futures::StreamExt::buffer_unordered(futures::stream::iter(puts), 32))
            .await;
    finished.sort_by(|a, b| a.key.cmp(&b.key));
    let listed = list(sink, "agree").await;
    assert_eq!(listed.len(), usize::from(count), "objects are missing from the list, or twice in it");
    for (written, found) in finished.iter().zip(&listed) {
        assert_eq!((&written.key, written.size), (&found.key, found.size), "finish and list differ");
    }
    for found in listed.iter().step_by(97) {
        let head = sink.head(&found.key).await.expect("head");
        assert_eq!((&head.key, head.size), (&found.key, found.size), "head and list differ");
    }
}

/// The root is a prefix and cannot be written or read.
pub async fn the_root_is_no_object(sink: &dyn Sink) {
    assert!(put_bytes(sink, &Key::root(), "x".into(), note()).await.is_err(), "the root was written");
    assert!(sink.head(&Key::root()).await.is_err(), "the root was found");
    assert!(sink.open(&Key::root(), None).await.is_err(), "the root was opened");
    assert!(list(sink, "").await.is_empty(), "a fresh sink is empty");
}
