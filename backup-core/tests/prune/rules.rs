//! What goes and what stays.

use backup_core::{AesGcm, ErrorKind, KeepLast, Keyring, MemorySink, MemorySource, Repository};

use crate::support::*;

#[tokio::test]
async fn a_plan_says_what_goes_and_why_and_deletes_exactly_that() {
    let (sink, ids) = daily(0..6).await;
    let repo = repository([&sink]);
    let before = sink.keys();
    let plan = repo.prune(SET, &KeepLast::new(3)).now(at(6)).plan().await.unwrap();
    assert_eq!(sink.keys(), before, "a plan deletes nothing");
    let shown = plan.to_string();
    assert!(shown.contains(&format!("forget  {}", ids[2])), "{shown}");
    assert!(shown.contains(&format!("keep    {}", ids[5])), "{shown}");
    assert!(shown.contains("last 1 of 3") && shown.contains("newest good backup"), "{shown}");

    let bytes = sink.total_bytes();
    let report = plan.execute().await.unwrap().into_result().unwrap();
    assert_eq!(report.deleted.iter().map(|d| d.id).collect::<Vec<_>>(), [ids[2], ids[1], ids[0]]);
    assert_eq!(held(&sink), ids[3..]);
    assert_eq!(report.freed_bytes(), bytes - sink.total_bytes());
    assert_tidy(&sink);
    assert_whole(&sink).await;
    assert!(repo.prune(SET, &KeepLast::new(3)).now(at(6)).plan().await.unwrap().is_empty());
}

#[tokio::test]
async fn more_than_half_goes_only_when_that_is_allowed() {
    let (sink, ids) = daily(0..10).await;
    let repo = repository([&sink]);
    let before = sink.keys();
    let error = repo.prune(SET, &KeepLast::new(2)).now(at(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PruneRefused);
    assert!(error.to_string().contains("allow_mass_delete"), "{error}");
    assert_eq!(sink.keys(), before);
    repo.prune(SET, &KeepLast::new(2)).now(at(10)).allow_mass_delete().await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), ids[8..]);
}

#[tokio::test]
async fn the_last_good_backup_stays_whatever_the_policy_says() {
    let (sink, ids) = daily(0..3).await;
    let repo = repository([&sink]);
    repo.prune(SET, &ForgetAll).now(at(4)).allow_mass_delete().await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), ids[2..]);
}

#[tokio::test]
async fn only_what_is_listed_below_the_backup_is_deleted() {
    let (sink, ids) = daily(0..4).await;
    let strangers = [
        format!("{SET}/notes.txt"),
        format!("{SET}/{}x/manifest.json", ids[0]),
        format!("{SET}-b/{}/manifest.json", ids[0]),
        format!("{SET}/deeper/{}/manifest.json", ids[0]),
        "app/readme".to_owned(),
    ]
    .map(|name| backup_core::Key::parse(name).unwrap());
    for key in &strangers {
        sink.replace(key, "not ours");
    }
    let extra = object(ids[0], "an-object-no-manifest-names.bin");
    sink.replace(&extra, "left by somebody");
    let repo = repository([&sink]);
    repo.prune(SET, &KeepLast::new(2)).now(at(4)).await.unwrap().into_result().unwrap();
    assert!(strangers.iter().all(|key| sink.get(key).is_some()));
    assert!(sink.get(&extra).is_none(), "what lies in the directory goes with it");
    assert_eq!(held(&sink), ids[2..]);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_trusted_stops_the_prune_and_is_named() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("changed", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
        ("of another format", |bytes| {
            let text = String::from_utf8(std::mem::take(bytes)).unwrap();
            let (document, _) = text.trim_end().rsplit_once('\n').unwrap();
            let document = document.replace("\"format\": 1", "\"format\": 99") + "\n";
            let digest = backup_core::Digest::of(document.as_bytes());
            *bytes = format!("{document}{{\"seal\":\"sha256\",\"value\":\"{digest}\"}}\n").into_bytes();
        }),
    ];
    // The oldest, which would go, and the newest; on the only sink, and on the second of two.
    for (what, damage) in damages {
        for position in [0, 4] {
            let first = MemorySink::new();
            let second = MemorySink::new();
            let repo = repository([&first, &second]);
            let mut ids = Vec::new();
            for day in 0..5 {
                ids.push(full(&repo, day).await);
            }
            assert!(second.damage(&object(ids[position], "manifest.json"), damage));
            let before = (first.keys(), second.keys());
            for repo in [repository([&second]), repository([&first, &second])] {
                let error = repo.prune(SET, &KeepLast::new(3)).now(at(5)).plan().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PruneRefused, "{what}: {}", error.chain());
                assert_eq!(error.context_value("backup"), Some(ids[position].to_string().as_str()));
                let sink: &backup_core::SinkId = backup_core::Sink::id(&second);
                assert_eq!(error.context_value("sink"), Some(sink.to_string().as_str()));
            }
            assert_eq!((first.keys(), second.keys()), before, "{what}");
        }
    }
}

#[tokio::test]
async fn a_backup_without_a_seal_stops_the_prune_of_a_repository_with_keys() {
    let (sink, _) = daily(0..4).await;
    let keyring = Keyring::builder().key([9; 32]).build().unwrap();
    let repo = Repository::builder().sink(sink.clone()).transform(AesGcm::new(keyring)).build().unwrap();
    for day in 4..8 {
        let source = MemorySource::new().artifact("a", "secret");
        repo.backup(SET, &source).started_at(at(day)).await.unwrap();
    }
    let before = sink.keys();
    let error = repo.prune(SET, &KeepLast::new(5)).now(at(8)).plan().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PruneRefused, "{}", error.chain());
    assert_eq!(error.context_value("unreadable"), Some("4"));
    assert_eq!(sink.keys(), before);
}

#[tokio::test]
async fn parents_and_references_of_what_stays_stay() {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let mut ids = vec![];
    for day in 0..3 {
        ids.push(full(&repo, day).await);
    }
    for day in 3..6 {
        ids.push(chained(&repo, day).await);
    }
    let list = repo.backups(SET).await.unwrap();
    assert_eq!(list[0].references.len(), 2, "the third of a chain refers to both before it");
    let report = repo
        .prune(SET, &KeepLast::new(1))
        .now(at(6))
        .allow_mass_delete()
        .await
        .unwrap()
        .into_result()
        .unwrap();
    assert_eq!(report.deleted.len(), 3);
    assert_eq!(held(&sink), ids[3..]);
    // When the chain is forgotten, it goes children first.
    ids.push(full(&repo, 7).await);
    let plan = repo.prune(SET, &KeepLast::new(1)).now(at(8)).allow_mass_delete().plan().await.unwrap();
    assert_eq!(plan.sinks()[0].plan().deletions(), [ids[5], ids[4], ids[3]]);
    plan.execute().await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), ids[6..]);
    assert_tidy(&sink);
}

#[tokio::test]
async fn keep_until_outlasts_the_policy() {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let source = MemorySource::new().artifact("a", "kept");
    let week = std::time::Duration::from_secs(7 * 86_400);
    let kept = repo.backup(SET, &source).started_at(at(0)).keep_for(week).await.unwrap().id;
    let gone = full(&repo, 1).await;
    let newest = full(&repo, 2).await;
    repo.prune(SET, &KeepLast::new(1)).now(at(6)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), [kept, newest], "not {gone}");
    repo.prune(SET, &KeepLast::new(1)).now(at(8)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), [newest]);
}

#[tokio::test]
async fn clocks_that_are_wrong_by_a_day_or_by_years_delete_nothing_that_counts() {
    let (sink, ids) = daily(0..6).await;
    let repo = repository([&sink]);
    let future = full(&repo, 4000).await;
    // The one from the future takes no place and is not judged.
    repo.prune(SET, &KeepLast::new(3)).now(at(6)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), [&ids[3..], &[future]].concat());
    // A pruner a day behind or ahead, or decades ahead, still leaves as many.
    for day in [5, 7, 9999] {
        repo.prune(SET, &KeepLast::new(3)).now(at(day)).await.unwrap().into_result().unwrap();
        assert!(held(&sink).len() >= 3, "at {day}");
        assert!(held(&sink).contains(&ids[5]), "at {day}");
    }
    // One decades behind takes everything for the future, and touches nothing.
    let before = held(&sink);
    repo.prune(SET, &KeepLast::new(1))
        .now(at(-9999))
        .allow_mass_delete()
        .await
        .unwrap()
        .into_result()
        .unwrap();
    assert_eq!(held(&sink), before);
}

#[tokio::test]
async fn a_prune_told_to_stop_stops_and_the_next_one_finishes() {
    let (sink, ids) = daily(0..8).await;
    let jitter = Jitter::new(&sink, 3);
    let repo = Repository::builder().sink(jitter).build().unwrap();
    let mut stopped = 0;
    for millis in [0, 10, 20, 30, 40, 50, 60] {
        let stop = tokio::time::sleep(std::time::Duration::from_millis(millis));
        match repo.prune(SET, &KeepLast::new(4)).now(at(8)).run_until(stop).await {
            Ok(report) => assert!(report.is_complete()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                stopped += 1;
            }
        }
        assert_whole(&sink).await;
        assert!(ids[4..].iter().all(|id| held(&sink).contains(id)));
    }
    assert!(stopped > 1, "{stopped} of the prunes were stopped");
    repo.prune(SET, &KeepLast::new(4)).now(at(8)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&sink), ids[4..]);
    assert_tidy(&sink);
}

#[tokio::test]
async fn restorable_ranges_are_asked_of_the_repository() {
    let (sink, _) = daily(0..3).await;
    assert!(
        repository([&sink]).pitr_ranges(SET).await.unwrap().is_empty(),
        "without a log there is no range"
    );
}
