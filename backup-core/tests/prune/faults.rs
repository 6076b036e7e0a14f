//! A fault at every sink call of a prune.

use std::time::Duration;

use backup_core::{BackupId, KeepLast, MemorySink, PruneReport, Repository, Result, Sink as _};
use backup_testkit::{Fault, FaultySink, Operation, Rule};

use crate::support::*;

/// Two copies of fulls and a chain, half of which go.
async fn template() -> (MemorySink, MemorySink, Vec<BackupId>) {
    let (first, second) = (MemorySink::new(), MemorySink::new());
    let repo = repository([&first, &second]);
    let mut ids = vec![chained(&repo, 0).await, chained(&repo, 1).await, full(&repo, 2).await];
    for day in 3..6 {
        ids.push(full(&repo, day).await);
    }
    (first, second, ids)
}

fn repo(faulty: &FaultySink, other: &MemorySink) -> Repository {
    let builder = Repository::builder().sink(faulty.clone()).sink(other.clone());
    builder.retries(0, Duration::from_millis(1)).stall_timeout(Duration::from_secs(5)).build().unwrap()
}

async fn prune(repo: &Repository) -> Result<PruneReport> {
    repo.prune(SET, &KeepLast::new(3)).now(at(6)).await?.into_result()
}

async fn calls() -> u64 {
    let (first, second, _) = template().await;
    let faulty = FaultySink::new(first);
    prune(&repo(&faulty, &second)).await.unwrap();
    faulty.total()
}

/// Runs with `fault` at call `n`; says whether it was reported.
async fn with_fault(n: u64, fault: Fault, template: &(MemorySink, MemorySink, Vec<BackupId>)) -> bool {
    let (first, second, ids) = (template.0.fork(), template.1.fork(), &template.2);
    let faulty = FaultySink::new(first.clone());
    faulty.arm(Rule::nth(n).fault(fault));
    let result = prune(&repo(&faulty, &second)).await;
    assert_eq!(faulty.faults(), 1, "{fault:?} at call {n} did not happen");
    for sink in [&first, &second] {
        assert_whole(sink).await;
        assert!(
            ids[3..].iter().all(|id| held(sink).contains(id)),
            "{fault:?} at call {n} lost a kept backup"
        );
    }
    faulty.disarm();
    let again = prune(&repo(&faulty, &second)).await;
    again.unwrap_or_else(|e| panic!("after {fault:?} at call {n}: {}", e.chain()));
    for sink in [&first, &second] {
        assert_eq!(held(sink), ids[3..], "after {fault:?} at call {n}");
        assert!(
            traces(sink).into_iter().eq(ids[3..].iter().copied()),
            "after {fault:?} at call {n}: {:?}",
            sink.keys()
        );
    }
    result.is_err()
}

#[tokio::test(start_paused = true)]
async fn every_failed_hung_or_unanswered_call_is_reported_and_the_next_prune_is_clean() {
    let template = template().await;
    let total = calls().await;
    assert!(total > 100, "{total} calls");
    for n in 1..=total {
        for fault in [Fault::permanent(), Fault::Hang, Fault::LostReply { retryable: false }] {
            assert!(with_fault(n, fault, &template).await, "{fault:?} at call {n} went unreported");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_connection_cut_is_survived_and_the_next_prune_is_clean() {
    let template = template().await;
    let mut quiet = 0;
    let total = calls().await;
    for n in 1..=total {
        // A list that ends early without an error cannot always be told from a shorter set. Then less is deleted.
        quiet += u64::from(!with_fault(n, Fault::Cut, &template).await);
    }
    assert!(quiet < total / 2, "{quiet} of {total} cuts were not reported");
}

#[tokio::test(start_paused = true)]
async fn passing_failures_are_tried_again() {
    let (first, second, ids) = template().await;
    let total = calls().await;
    for n in (1..=total).step_by(3) {
        let (first, second) = (first.fork(), second.fork());
        let faulty = FaultySink::new(first.clone());
        faulty.arm(Rule::nth(n).fault(Fault::retryable()));
        let builder = Repository::builder().sink(faulty).sink(second);
        let patient = builder.retries(2, Duration::from_millis(1)).build().unwrap();
        prune(&patient).await.unwrap_or_else(|e| panic!("at call {n}: {}", e.chain()));
        assert_eq!(held(&first), ids[3..]);
        assert_tidy(&first);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_does_not_stop_the_other() {
    let (first, second, ids) = template().await;
    let faulty = FaultySink::new(first.clone());
    faulty.arm(Rule::always().on(Operation::Delete));
    let report = repo(&faulty, &second).prune(SET, &KeepLast::new(3)).now(at(6)).await.unwrap();
    assert!(!report.is_complete());
    assert_eq!(report.failed.len(), 1);
    assert_eq!(report.failed[0].0, *first.id());
    assert_eq!(held(&second), ids[3..]);
    assert_whole(&first).await;
}
