//! Several processes at once.

use std::time::Duration;

use backup_core::{BackupId, BackupKind, ErrorKind, KeepLast, MemorySink, Repository};

use crate::support::*;

fn jittered(sink: &MemorySink, seed: u64) -> Repository {
    Repository::builder()
        .sink(Jitter::new(sink, seed))
        .retries(0, Duration::from_millis(1))
        .stall_timeout(Duration::from_secs(600))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn two_prunes_at_once_delete_what_one_would() {
    let (template, ids) = daily(0..8).await;
    for seed in 0..60 {
        let sink = template.fork();
        let (one, other) = (jittered(&sink, 2 * seed + 1), jittered(&sink, 2 * seed + 2));
        let policy = KeepLast::new(4);
        let (a, b) = tokio::join!(
            one.prune(SET, &policy).now(at(8)).into_future(),
            other.prune(SET, &policy).now(at(8)).into_future()
        );
        for result in [a, b] {
            result.unwrap_or_else(|e| panic!("seed {seed}: {}", e.chain())).into_result().unwrap();
        }
        assert_eq!(held(&sink), ids[4..], "seed {seed}");
        assert_whole(&sink).await;
        one.prune(SET, &policy).now(at(8)).await.unwrap().into_result().unwrap();
        assert_tidy(&sink);
    }
}

#[tokio::test(start_paused = true)]
async fn two_prunes_that_disagree_keep_what_either_must_keep() {
    let (template, ids) = daily(0..8).await;
    for seed in 0..40 {
        let sink = template.fork();
        let (one, other) = (jittered(&sink, 2 * seed + 1), jittered(&sink, 2 * seed + 2));
        let (strict, lax) = (KeepLast::new(4), KeepLast::new(6));
        let (a, b) = tokio::join!(
            one.prune(SET, &strict).now(at(8)).into_future(),
            other.prune(SET, &lax).now(at(8)).into_future()
        );
        a.unwrap().into_result().unwrap();
        // The other may notice that what it keeps is gone; then it says so.
        if let Err(error) = b {
            assert_eq!(error.kind(), ErrorKind::PruneRefused, "{}", error.chain());
        }
        assert_eq!(held(&sink), ids[4..], "seed {seed}");
        assert_whole(&sink).await;
    }
}

/// A set where the newest backup that an incremental can build on is to be pruned: a newer one is of another source.
async fn contested() -> (MemorySink, BackupId) {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let parent = chained(&repo, 0).await;
    full(&repo, 1).await;
    full(&repo, 2).await;
    (sink, parent)
}

/// How one race ended.
#[derive(Default)]
struct Tally {
    pruned: usize,
    built: usize,
    gave_way: usize,
}

async fn race(sink: MemorySink, parent: BackupId, seed: u64) -> Tally {
    let (writing, pruning) = (jittered(&sink, 2 * seed + 1), jittered(&sink, 2 * seed + 2));
    let writer = async {
        tokio::time::sleep(Duration::from_millis(seed % 20 * 3)).await;
        writing.backup(SET, &Chained::new("new")).incremental().started_at(at(3)).await
    };
    let pruner = async {
        tokio::time::sleep(Duration::from_millis(seed / 20 * 6)).await;
        pruning.prune(SET, &KeepLast::new(2)).now(at(4)).await
    };
    let (written, report) = tokio::join!(writer, pruner);
    let report = report.unwrap_or_else(|e| panic!("seed {seed}: {}", e.chain()));
    assert!(report.is_complete(), "seed {seed}: {report}");
    let mut tally = Tally::default();
    match written {
        Ok(done) => {
            let list = repository([&sink]).backups(SET).await.unwrap();
            match list.iter().find(|b| b.id == done.id).unwrap().kind {
                BackupKind::Incremental { .. } => tally.built += 1,
                _ => tally.gave_way += 1,
            }
        }
        Err(error) => {
            // It had begun to read its parent, or was about to commit.
            assert!(held(&sink).len() < 4, "seed {seed}: {}", error.chain());
            tally.gave_way += 1;
        }
    }
    if report.deleted.iter().any(|deleted| deleted.id == parent) {
        tally.pruned += 1;
    }
    assert_whole(&sink).await;
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_and_a_prune_of_its_parent_never_both_succeed() {
    let (template, parent) = contested().await;
    let mut all = Tally::default();
    for round in 0..4 {
        let races = (0..100).map(|n| race(template.fork(), parent, round * 100 + n));
        for tally in futures::future::join_all(races).await {
            all.pruned += tally.pruned;
            all.built += tally.built;
            all.gave_way += tally.gave_way;
        }
    }
    let Tally { pruned, built, gave_way } = all;
    assert_eq!(built + gave_way, 400);
    assert!(pruned > 10 && built > 10 && gave_way > 10, "{pruned} {built} {gave_way}: the race is one-sided");
}

#[tokio::test]
async fn an_incremental_finished_after_the_plan_saves_its_parent() {
    let (sink, parent) = contested().await;
    let repo = repository([&sink]);
    let plan = repo.prune(SET, &KeepLast::new(2)).now(at(4)).plan().await.unwrap();
    assert_eq!(plan.sinks()[0].plan().deletions(), [parent]);
    let child = chained(&repo, 3).await;
    let report = plan.execute().await.unwrap().into_result().unwrap();
    assert_eq!(report.spared.len(), 1, "{report}");
    assert!(report.spared[0].why.contains(&child.to_string()), "{report}");
    assert_tidy(&sink);
    assert_whole(&sink).await;
}

#[tokio::test]
async fn a_newcomer_that_cannot_be_read_stops_the_execution() {
    let (sink, _) = daily(0..4).await;
    let repo = repository([&sink]);
    let plan = repo.prune(SET, &KeepLast::new(2)).now(at(4)).plan().await.unwrap();
    sink.replace(&object(BackupId::new(at(5), 1), "manifest.json"), "who knows");
    let before = held(&sink);
    assert_eq!(plan.execute().await.unwrap_err().kind(), ErrorKind::PruneRefused);
    assert_eq!(held(&sink), before);
}

#[tokio::test]
async fn a_plan_whose_kept_backups_are_gone_is_refused() {
    let (sink, ids) = daily(0..6).await;
    let repo = repository([&sink]);
    let plan = repo.prune(SET, &KeepLast::new(3)).now(at(6)).plan().await.unwrap();
    sink.remove(&object(ids[5], "manifest.json"));
    let error = plan.execute().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PruneRefused);
    assert_eq!(held(&sink), ids[..5]);
    assert!(!sink.keys().iter().any(|key| key.as_str().contains("condemned")));
}

#[tokio::test]
async fn a_marker_of_a_running_backup_saves_what_it_names_for_as_long_as_clocks_may_be_wrong() {
    // Expires, is saved.
    for (expires, saved) in [(TODAY + 1, true), (TODAY - 1, true), (TODAY - 3, false)] {
        let (sink, parent) = contested().await;
        let run = BackupId::new(at(TODAY), 5);
        sink.replace(&object(run, "pending.json"), pending(run, Some(parent), at(expires)));
        let repo = repository([&sink]);
        let report = repo.prune(SET, &KeepLast::new(2)).now(at(TODAY)).await.unwrap().into_result().unwrap();
        assert_eq!(held(&sink).contains(&parent), saved, "{report}");
        assert_eq!(report.spared.len(), usize::from(saved));
    }
    // A copy that is being made is left to whoever makes it.
    let (sink, parent) = contested().await;
    sink.replace(&object(parent, "pending.json"), pending(parent, None, at(TODAY + 1)));
    let report = repository([&sink]).prune(SET, &KeepLast::new(2)).now(at(TODAY)).await.unwrap();
    assert_eq!(report.spared.len(), 1);
    assert!(held(&sink).contains(&parent));
}

#[tokio::test]
async fn a_marker_that_cannot_be_read_stops_the_prune_and_is_named() {
    let (sink, _) = daily(0..4).await;
    let run = BackupId::new(at(TODAY), 5);
    sink.replace(&object(run, "pending.json"), r#"{"format":2,"parents":[]}"#);
    let before = held(&sink);
    let error = repository([&sink]).prune(SET, &KeepLast::new(2)).now(at(4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PruneRefused);
    assert!(error.context_value("key").unwrap().contains(&run.to_string()));
    assert_eq!(held(&sink), before);
}

#[tokio::test]
async fn a_writer_that_finds_its_parent_condemned_makes_a_full() {
    let (sink, parent) = contested().await;
    sink.replace(&object(parent, "condemned/0011223344556677.json"), "{}");
    let repo = repository([&sink]);
    let done = repo.backup(SET, &Chained::new("x")).incremental().started_at(at(3)).await.unwrap();
    assert!(done.warnings.iter().any(|w| w.code == "full-instead-of-incremental"), "{:?}", done.warnings);
    let list = repo.backups(SET).await.unwrap();
    assert_eq!(list[0].kind, BackupKind::Full);
    assert_eq!(list[0].id, done.id);
}
