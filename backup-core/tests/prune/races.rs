//! Several processes at once.

use std::time::Duration;

use backup_core::{
    BackupId, BackupKind, Bytes, ErrorKind, Event, KeepLast, Key, MemorySink, Observer, Repository,
};
use backup_testkit::{FaultySink, Operation, Rule};

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

/// Puts a backup back as soon as a prune has deleted it, as a replication does.
struct CopiesBack {
    sink: MemorySink,
    saved: Vec<(Key, Bytes)>,
    id: BackupId,
}

impl Observer for CopiesBack {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::Deleted { id, .. } if *id == self.id) {
            for (key, bytes) in &self.saved {
                self.sink.replace(key, bytes.clone());
            }
        }
    }
}

/// Found by the model checker (seed 13): the prune went on to delete the parent.
#[tokio::test]
async fn a_backup_copied_back_while_a_prune_is_at_work_keeps_its_parent() {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let parent = chained(&repo, 0).await;
    let child = chained(&repo, 1).await;
    for day in 2..5 {
        full(&repo, day).await;
    }
    let of_child = sink.keys().into_iter().filter(|key| key.as_str().contains(&child.to_string()));
    let saved = of_child.map(|key| (key.clone(), sink.get(&key).unwrap())).collect();
    let copies_back = CopiesBack { sink: sink.clone(), saved, id: child };
    let report = repo.prune(SET, &KeepLast::new(3)).now(at(6)).observer(copies_back).await.unwrap();
    assert_eq!(report.deleted.len(), 1, "{report}");
    assert_eq!(report.spared.iter().map(|spared| spared.id).collect::<Vec<_>>(), [parent], "{report}");
    assert!(held(&sink).contains(&child));
    assert_whole(&sink).await;
}

/// Found by the model checker (seeds 2 and 11): a prune deleted what the copy under way was to build on.
#[tokio::test]
async fn a_replication_under_way_saves_what_its_backup_builds_on() {
    let (from, to) = (MemorySink::new(), MemorySink::new());
    let both = repository([&from, &to]);
    let parent = chained(&both, 0).await;
    let child = chained(&both, 1).await;
    for day in 2..5 {
        full(&both, day).await;
    }
    for key in to.keys().iter().filter(|key| key.as_str().contains(&child.to_string())) {
        to.remove(key);
    }
    let faulty = FaultySink::new(to.clone());
    faulty.arm(Rule::nth(3).on(Operation::Create).times(u64::MAX));
    let builder = Repository::builder().sink(from.clone()).sink(faulty);
    let repo = builder.retries(0, Duration::from_millis(1)).build().unwrap();
    repo.replicate(SET, child).await.unwrap_err();
    let report = repository([&to]).prune(SET, &KeepLast::new(3)).now(at(TODAY)).await.unwrap();
    assert_eq!(report.spared.iter().map(|spared| spared.id).collect::<Vec<_>>(), [parent], "{report}");
    both.replicate(SET, child).await.unwrap();
    assert_whole(&to).await;
}

/// Found by the model checker (seed 1): the sweep took objects that the replication had found to be there.
#[tokio::test(start_paused = true)]
async fn a_sweep_and_a_replication_of_the_same_remains_leave_a_whole_copy_or_none() {
    let (template, ids) = daily(0..2).await;
    let (mut copied, mut swept) = (0, 0);
    for seed in 0..150 {
        let (from, to) = (template.fork(), MemorySink::new());
        for key in from.keys().iter().filter(|key| key.file_name() != "manifest.json") {
            to.replace(key, from.get(key).unwrap());
        }
        let builder = Repository::builder().sink(from).sink(Jitter::new(&to, 2 * seed + 1));
        let replicating = builder.retries(0, Duration::from_millis(1)).build().unwrap();
        let sweeping = jittered(&to, 2 * seed + 2);
        let sweep = async {
            tokio::time::sleep(Duration::from_millis(seed % 30)).await;
            sweeping.sweep(SET).await
        };
        let (_, report) = tokio::join!(replicating.replicate(SET, ids[0]).into_future(), sweep);
        drop(report.unwrap());
        assert_whole(&to).await;
        copied += usize::from(held(&to).contains(&ids[0]));
        swept += usize::from(!held(&to).contains(&ids[0]));
        replicating.replicate_all(SET).await.unwrap();
        assert_eq!(held(&to), ids, "seed {seed}");
        assert_whole(&to).await;
    }
    assert!(copied > 5 && swept > 5, "{copied} copied, {swept} swept: the race is one-sided");
}
