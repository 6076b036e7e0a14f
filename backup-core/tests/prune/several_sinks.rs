//! Policies of their own, sinks that are away, copies that are missing.

use std::time::Duration;

use backup_core::{BackupId, ErrorKind, KeepLast, MemorySink, Repository, Sink as _};
use backup_testkit::{Fault, FaultySink, Operation, Rule};

use crate::support::*;

async fn two(days: std::ops::Range<i64>) -> (MemorySink, MemorySink, Vec<BackupId>) {
    let (near, far) = (MemorySink::named("near"), MemorySink::named("far"));
    let repo = repository([&near, &far]);
    let mut ids = Vec::new();
    for day in days {
        ids.push(full(&repo, day).await);
    }
    (near, far, ids)
}

/// A repository whose second sink answers nothing.
fn without_far(near: &MemorySink, far: &MemorySink) -> Repository {
    let gone = FaultySink::new(far.clone());
    gone.arm(Rule::always().fault(Fault::permanent()));
    let builder = Repository::builder().sink(near.clone()).sink(gone);
    builder.retries(0, Duration::from_millis(1)).build().unwrap()
}

#[tokio::test]
async fn each_sink_is_pruned_by_its_own_policy_over_its_own_list() {
    let (near, far, ids) = two(0..10).await;
    let repo = repository([&near, &far]);
    let (short, long) = (KeepLast::new(5), KeepLast::new(8));
    let prune = || repo.prune(SET, &short).on(far.id(), &long).now(at(10));
    let plan = prune().plan().await.unwrap();
    assert!(plan.to_string().contains("on near:") && plan.to_string().contains("on far:"), "{plan}");
    plan.execute().await.unwrap().into_result().unwrap();
    assert_eq!(held(&near), ids[5..]);
    assert_eq!(held(&far), ids[2..]);
    // What only one sink holds by design is no degraded backup: it goes on being judged by that sink's policy.
    assert!(prune().plan().await.unwrap().is_empty());
    full(&repo, 10).await;
    prune().await.unwrap().into_result().unwrap();
    assert_eq!((held(&near).len(), held(&far).len()), (5, 8));
    assert_tidy(&near);
    assert_tidy(&far);
    let stranger = backup_core::SinkId::new("nowhere");
    let error = repo.prune(SET, &short).on(&stranger, &long).plan().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_sink_that_is_away_does_not_stop_the_others_where_all_have_one_policy() {
    let (near, far, ids) = two(0..6).await;
    let repo = without_far(&near, &far);
    let plan = repo.prune(SET, &KeepLast::new(3)).now(at(6)).plan().await.unwrap();
    assert_eq!(plan.unreachable().len(), 1);
    assert!(plan.to_string().contains("far cannot be listed"), "{plan}");
    let report = plan.execute().await.unwrap();
    assert!(!report.is_complete(), "a sink that is away is no success");
    assert_eq!(report.into_result().unwrap_err().context_value("sink"), Some("far"));
    assert_eq!(held(&near), ids[3..]);
    assert_eq!(held(&far), ids);
}

#[tokio::test]
async fn a_copy_stays_while_the_sink_that_would_keep_it_cannot_be_listed() {
    let (near, far, ids) = two(0..6).await;
    let (short, long) = (KeepLast::new(3), KeepLast::new(5));
    let repo = without_far(&near, &far);
    let plan = repo.prune(SET, &short).on(far.id(), &long).now(at(6)).plan().await.unwrap();
    assert!(plan.to_string().contains("for far, which keeps it by its policy"), "{plan}");
    plan.execute().await.unwrap();
    assert_eq!(held(&near), ids[1..], "only what no policy wants goes");
    // Back again, it is seen to hold them, and they go.
    let repo = repository([&near, &far]);
    repo.prune(SET, &short).on(far.id(), &long).now(at(6)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&near), ids[3..]);
}

#[tokio::test]
async fn a_copy_stays_while_the_sink_that_would_keep_it_has_none() {
    let (near, far, ids) = two(0..6).await;
    for key in far.keys().into_iter().filter(|key| key.as_str().contains(&ids[2].to_string())) {
        far.remove(&key);
    }
    let (short, long) = (KeepLast::new(3), KeepLast::new(5));
    let repo = repository([&near, &far]);
    repo.prune(SET, &short).on(far.id(), &long).now(at(6)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&near), ids[2..], "the copy of {} is the last of something that is to be kept", ids[2]);
}

#[tokio::test]
async fn backups_that_did_not_reach_a_sink_push_out_none_that_did() {
    // Known to their manifests, and, where a sink failed at the very end, only to be seen from its absence there.
    for known in [true, false] {
        let (near, far, mut ids) = two(0..4).await;
        let alone = if known { without_far(&near, &far) } else { repository([&near, &far]) };
        for day in 4..8 {
            let source = backup_core::MemorySource::new().artifact("a", "b");
            match alone.backup(SET, &source).started_at(at(day)).await {
                Ok(done) => ids.push(done.id),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::TooFewCopies);
                    ids.push(error.context_value("id").unwrap().parse().unwrap());
                }
            }
        }
        for id in &ids[4..] {
            far.remove(&object(*id, "manifest.json"));
        }
        let repo = repository([&near, &far]);
        repo.prune(SET, &KeepLast::new(2)).now(at(8)).await.unwrap().into_result().unwrap();
        assert_eq!(held(&near), ids[2..], "known {known}: two good ones, and all that are newer");
        assert_eq!(held(&far), ids[2..4]);
    }
}

#[tokio::test]
async fn an_empty_new_disk_lets_nothing_go_before_it_has_a_backup() {
    let (near, _, ids) = two(0..6).await;
    let new = MemorySink::named("far");
    let repo = repository([&near, &new]);
    repo.prune(SET, &KeepLast::new(3)).now(at(6)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&near), ids);
    full(&repo, 6).await;
    repo.prune(SET, &KeepLast::new(3)).now(at(7)).allow_mass_delete().await.unwrap().into_result().unwrap();
    assert_eq!(held(&near).len(), 3);
}

#[tokio::test]
async fn locked_objects_are_reported_with_what_to_do_and_hold_back_what_they_need() {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let mut ids = vec![chained(&repo, 0).await, chained(&repo, 1).await];
    for day in 2..6 {
        ids.push(full(&repo, day).await);
    }
    let locked = FaultySink::new(sink.clone());
    let denied = Fault::Fail { kind: ErrorKind::PermissionDenied, retryable: false };
    // The first deletion is that of the incremental's manifest; its marker can be taken back.
    locked.arm(Rule::nth(1).on(Operation::Delete).fault(denied));
    let guarded = Repository::builder().sink(locked).retries(0, Duration::from_millis(1)).build().unwrap();
    let report = guarded.prune(SET, &KeepLast::new(4)).now(at(6)).await.unwrap();
    assert_eq!(report.not_deleted.len(), 1, "{report}");
    assert_eq!(report.not_deleted[0].id, ids[1]);
    assert!(!report.not_deleted[0].manifest_gone);
    assert!(report.to_string().contains("object lock"), "{report}");
    assert_eq!(report.spared.len(), 1, "its parent stays: {report}");
    assert_eq!(report.spared[0].id, ids[0]);
    assert_eq!(report.into_result().unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(held(&sink), ids);
    assert_tidy(&sink);
    assert_whole(&sink).await;
}

#[tokio::test]
async fn credentials_that_may_not_delete_are_found_out_by_one_marker() {
    let (sink, ids) = daily(0..9).await;
    let append_only = FaultySink::new(sink.clone());
    let denied = Fault::Fail { kind: ErrorKind::PermissionDenied, retryable: false };
    append_only.arm(Rule::always().on(Operation::Delete).fault(denied));
    let repo = Repository::builder().sink(append_only).retries(0, Duration::from_millis(1)).build().unwrap();
    let error = repo.prune(SET, &KeepLast::new(5)).now(at(9)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.chain().contains("an account that may"), "{}", error.chain());
    let markers = sink.keys().iter().filter(|key| key.as_str().contains("condemned")).count();
    assert_eq!((held(&sink), markers), (ids, 1));
}

#[tokio::test]
async fn a_full_sink_can_be_pruned() {
    let (sink, ids) = daily(0..8).await;
    let full_sink = FaultySink::new(sink.clone());
    let no_space = Fault::Fail { kind: ErrorKind::StorageFull, retryable: false };
    // Full until something was deleted: the first marker does not fit, the others do.
    full_sink.arm(Rule::nth(1).on(Operation::Finish).fault(no_space));
    let repo = Repository::builder().sink(full_sink).retries(0, Duration::from_millis(1)).build().unwrap();
    let report = repo.prune(SET, &KeepLast::new(4)).now(at(8)).await.unwrap().into_result().unwrap();
    assert_eq!(report.deleted.len(), 4);
    assert_eq!(held(&sink), ids[4..]);
    assert_tidy(&sink);
}

#[tokio::test]
async fn a_full_sink_where_something_runs_is_left_alone() {
    let (sink, ids) = daily(0..6).await;
    let running = BackupId::new(at(TODAY), 1);
    sink.replace(&object(running, "pending.json"), pending(running, None, at(TODAY + 1)));
    let full_sink = FaultySink::new(sink.clone());
    let no_space = Fault::Fail { kind: ErrorKind::StorageFull, retryable: false };
    full_sink.arm(Rule::always().on(Operation::Finish).fault(no_space));
    let repo = Repository::builder().sink(full_sink).retries(0, Duration::from_millis(1)).build().unwrap();
    let report = repo.prune(SET, &KeepLast::new(4)).now(at(TODAY)).await.unwrap();
    assert_eq!(report.spared.len(), 2, "{report}");
    assert!(report.spared[0].why.contains("too full"), "{report}");
    assert_eq!(held(&sink), ids);
}
