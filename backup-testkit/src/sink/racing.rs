//! Many writers at once.

use std::sync::Arc;

use backup_core::{Bytes, ErrorKind, ObjectKind, PutOptions, Sink, put_bytes};
use futures::future::join_all;
use tokio::sync::Barrier;

use super::{key, list, names, new_note, note, read};
use crate::noise;

/// Of `racers` writers that create one name at the same time, exactly one succeeds, the others are told
/// [`ErrorKind::AlreadyExists`], and the object is the winner's.
pub async fn create_new_has_one_winner(sink: Arc<dyn Sink>, racers: usize) {
    for round in 0..5 {
        let name = format!("race/{round}/manifest");
        let start = Arc::new(Barrier::new(racers));
        let results = join_all((0..racers).map(|n| {
            let (sink, name, start) = (Arc::clone(&sink), key(&name), Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                let bytes = Bytes::from(format!("racer {n} of round {round}"));
                put_bytes(&*sink, &name, bytes.clone(), new_note()).await.map(|_| bytes)
            })
        }))
        .await;
        let mut winners = Vec::new();
        for result in results {
            match result.expect("a racing task") {
                Ok(bytes) => winners.push(bytes),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::AlreadyExists, "a loser was told: {}", e.chain());
                    assert!(!e.is_retryable(), "trying again cannot help a loser");
                }
            }
        }
        assert_eq!(winners.len(), 1, "create-new has exactly one winner");
        assert_eq!(read(&*sink, &name).await.expect("read"), winners[0], "the object is the winner's");
        assert_eq!(list(&*sink, &format!("race/{round}")).await.len(), 1, "losers left something");
    }
}

/// After several overwrites of one name at once, the object is one of them, whole.
pub async fn overwriters_leave_one_whole_object(sink: Arc<dyn Sink>, racers: usize) {
    let start = Arc::new(Barrier::new(racers));
    let done = join_all((0..racers).map(|n| {
        let (sink, start) = (Arc::clone(&sink), Arc::clone(&start));
        tokio::spawn(async move {
            start.wait().await;
            put_bytes(&*sink, &key("race/overwrite"), noise(200_000, n as u64), note()).await
        })
    }))
    .await;
    for result in done {
        result.expect("a racing task").unwrap_or_else(|e| panic!("an overwrite failed: {}", e.chain()));
    }
    let found = read(&*sink, "race/overwrite").await.expect("read");
    assert!((0..racers).any(|n| found == noise(200_000, n as u64)), "the object is nobody's");
    assert_eq!(names(&*sink, "race").await, ["race/overwrite"]);
}

/// Writers of different objects in one new directory, some of which are deleted meanwhile, do not disturb each other.
pub async fn concurrent_writers_do_not_mix(sink: Arc<dyn Sink>, racers: usize) {
    let done = join_all((0..racers).map(|n| {
        let sink = Arc::clone(&sink);
        tokio::spawn(async move {
            let name = key(&format!("many/dir/object-{n:03}"));
            let mut writer = sink.create(&name, PutOptions::create_new(ObjectKind::Data)).await?;
            for part in 0..8 {
                writer.write(noise(50_000 + n, part * 1000 + n as u64)).await?;
                tokio::task::yield_now().await;
            }
            writer.finish().await?;
            // Directories that come and go under the others' feet.
            for round in 0..5 {
                let passing = key(&format!("many/passing/{round}/x-{n}"));
                put_bytes(&*sink, &passing, "x".into(), note()).await?;
                sink.delete(&passing).await?;
            }
            Ok::<(), backup_core::Error>(())
        })
    }))
    .await;
    for result in done {
        result.expect("a writing task").unwrap_or_else(|e| panic!("a writer failed: {}", e.chain()));
    }
    assert_eq!(list(&*sink, "many").await.len(), racers);
    for n in 0..racers {
        let expected: Vec<u8> = (0..8).flat_map(|part| noise(50_000 + n, part * 1000 + n as u64)).collect();
        let found = read(&*sink, &format!("many/dir/object-{n:03}")).await.expect("read");
        assert!(found == expected, "object {n} holds something else");
    }
}
