//! Remains of runs that died.

use std::time::Duration;

use backup_core::{BackupId, KeepLast, MemorySink, MemorySource, Repository};
use backup_testkit::{Fault, FaultySink, Operation, RecordingSink, Rule};

use crate::support::*;

/// What a run leaves that was killed before its manifest.
fn remains(sink: &MemorySink, id: BackupId, expires: Option<i64>) {
    sink.replace(&object(id, "data.bin"), vec![1; 1000]);
    sink.replace(&object(id, "keys/main.json"), "wrap");
    if let Some(day) = expires {
        sink.replace(&object(id, "pending.json"), pending(id, None, at(day)));
    }
}

#[tokio::test]
async fn remains_are_swept_by_the_time_in_their_id_once_nobody_can_be_at_work() {
    let (sink, ids) = daily(0..3).await;
    let old = |random| BackupId::new(at(10), random);
    let (no_marker, over, tolerated, alive, unknown) = (old(1), old(2), old(3), old(4), old(5));
    remains(&sink, no_marker, None);
    remains(&sink, over, Some(TODAY - 3));
    remains(&sink, tolerated, Some(TODAY - 1));
    remains(&sink, alive, Some(TODAY + 1));
    remains(&sink, unknown, None);
    sink.replace(&object(unknown, "pending.json"), r#"{"format":7}"#);
    let recent = BackupId::new(at(TODAY - 2), 6);
    remains(&sink, recent, None);
    // Written a moment ago, like everything here: modification times say nothing.
    let recording = RecordingSink::new(sink.clone());
    let repo = Repository::builder().sink(recording.clone()).build().unwrap();
    let report = repo.sweep(SET).await.unwrap().into_result().unwrap();
    assert_eq!(report.removed.iter().map(|r| r.id).collect::<Vec<_>>(), [no_marker, over], "{report}");
    assert_eq!(report.kept.len(), 4, "{report}");
    assert_eq!(report.removed[0].freed, 1004);
    let left: Vec<_> = traces(&sink).into_iter().filter(|id| !ids.contains(id)).collect();
    assert_eq!(left, [tolerated, alive, unknown, recent]);
    assert_eq!(recording.count(Operation::Sweep), 1, "unfinished uploads are asked for");
    assert_whole(&sink).await;

    let report = repo.sweep(SET).now(at(TODAY + 9)).await.unwrap().into_result().unwrap();
    assert_eq!(report.removed.len(), 3);
    assert_eq!(report.kept.len(), 1, "a marker that cannot be read may belong to a newer version: {report}");
}

#[tokio::test]
async fn a_copy_on_one_sink_does_not_make_the_remains_on_another_a_backup() {
    let (first, second) = (MemorySink::new(), MemorySink::new());
    let repo = repository([&first, &second]);
    let id = full(&repo, 0).await;
    second.remove(&object(id, "manifest.json"));
    let report = repo.sweep(SET).await.unwrap().into_result().unwrap();
    assert_eq!(report.removed.len(), 1);
    assert!(second.keys().is_empty());
    assert_eq!(held(&first), [id]);
}

#[tokio::test]
async fn a_list_cut_short_sweeps_no_backup() {
    let (sink, ids) = daily(0..3).await;
    let total = sink.keys().len() as u64;
    for n in 1..=total + 1 {
        let cut = FaultySink::new(sink.clone());
        cut.arm(Rule::nth(n).on(Operation::List).fault(Fault::Cut));
        let repo = Repository::builder().sink(cut).build().unwrap();
        let report = repo.sweep(SET).grace(Duration::ZERO).await.unwrap().into_result().unwrap();
        assert!(report.removed.is_empty());
        assert_eq!(held(&sink), ids);
        assert_whole(&sink).await;
    }
}

#[tokio::test]
async fn a_run_that_was_swept_away_does_not_commit() {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let source = MemorySource::new().artifact("big", vec![5; 3_000_000]);
    let backup = async { repo.backup(SET, &source).rate_limit(2_000_000).await };
    let sweep = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let marker = sink.keys().into_iter().find(|key| key.file_name() == "pending.json").unwrap();
        // As if it had been silent for days.
        let report = repo.sweep(SET).now(at(TODAY + 9)).await.unwrap();
        assert_eq!(report.removed.len(), 1);
        assert!(sink.get(&marker).is_none());
    };
    let (result, ()) = tokio::join!(backup, sweep);
    let error = result.unwrap_err();
    assert!(error.chain().contains("swept away"), "{}", error.chain());
    assert!(held(&sink).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fault_at_every_call_of_a_sweep_is_reported_and_the_next_sweep_is_clean() {
    let (template, ids) = daily(0..2).await;
    for random in 1..4 {
        remains(&template, BackupId::new(at(10), random), Some(12));
    }
    let faulty = FaultySink::new(template.fork());
    let run = |faulty: &FaultySink| {
        let builder = Repository::builder().sink(faulty.clone());
        let builder = builder.retries(0, Duration::from_millis(1)).stall_timeout(Duration::from_secs(5));
        builder.build().unwrap()
    };
    run(&faulty).sweep(SET).await.unwrap().into_result().unwrap();
    let total = faulty.total();
    assert!(total > 20);
    for n in 1..=total {
        for fault in [Fault::permanent(), Fault::Hang, Fault::LostReply { retryable: false }] {
            let sink = template.fork();
            let faulty = FaultySink::new(sink.clone());
            faulty.arm(Rule::nth(n).fault(fault));
            let result = run(&faulty).sweep(SET).await.unwrap().into_result();
            // The lost reply of a call that finds nothing is that it finds nothing: no fault at all.
            let harmless = matches!(fault, Fault::LostReply { .. }) && traces(&sink).len() == ids.len();
            assert!(result.is_err() || harmless, "{fault:?} at call {n} went unreported");
            assert_whole(&sink).await;
            faulty.disarm();
            run(&faulty).sweep(SET).await.unwrap().into_result().unwrap();
            assert_eq!(held(&sink), ids);
            assert_tidy(&sink);
        }
    }
}

#[tokio::test]
async fn what_a_killed_prune_left_is_finished_by_the_next() {
    let (sink, ids) = daily(0..6).await;
    sink.replace(&object(ids[0], "condemned/aaaa.json"), "{}");
    sink.remove(&object(ids[0], "manifest.json"));
    // A marker on something that stays: young ones may belong to a pruner at work.
    let marker = |days: i64| {
        format!(r#"{{"format":1,"set":"{SET}","id":"{}","at":"{}"}}"#, ids[5], at(days).to_rfc3339())
    };
    sink.replace(&object(ids[5], "condemned/old.json"), marker(TODAY - 4));
    sink.replace(&object(ids[5], "condemned/young.json"), marker(TODAY - 2));
    let repo = repository([&sink]);
    let plan = repo.prune(SET, &KeepLast::new(9)).plan().await.unwrap();
    assert_eq!(plan.sinks()[0].unfinished().collect::<Vec<_>>(), [ids[0]]);
    assert!(plan.to_string().contains("half deleted"), "{plan}");
    let report = plan.execute().await.unwrap().into_result().unwrap();
    assert!(report.deleted[0].resumed);
    assert!(!traces(&sink).contains(&ids[0]));
    assert!(sink.get(&object(ids[5], "condemned/old.json")).is_none());
    assert!(sink.get(&object(ids[5], "condemned/young.json")).is_some());
    assert_eq!(held(&sink), ids[1..]);
}
