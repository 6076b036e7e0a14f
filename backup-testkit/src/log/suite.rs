//! The conformance suite of log sources.

use std::time::Duration;

use async_trait::async_trait;
use backup_core::{
    Bytes, CancellationToken, Cut, CutRequest, ErrorKind, LogPosition, LogSource, Outcome, Proofs, Result,
};
use futures::StreamExt as _;

/// How long a source may take to show what was written, and to notice that it is to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// More bytes than the suite writes.
const ALL: u64 = 1 << 40;

/// A datastore with a log, for [`LogSourceSuite`].
#[async_trait]
pub trait LogWorld: Send + Sync {
    /// The source of its log.
    fn source(&self) -> &dyn LogSource;

    /// A place in the log at or before its end, from which a slice may begin.
    async fn here(&self) -> LogPosition;

    /// Writes this many entries of some hundred bytes, and waits until they are in the log.
    async fn write(&self, entries: usize);

    /// Makes the store lose everything in its log before the present end; `false` where a test cannot.
    async fn forget(&self) -> bool {
        false
    }

    /// Panics if the store still holds something for a slice that was given up.
    async fn no_leaks(&self) {}
}

/// Runs the promises of [`LogSource`] against a store that only the suite writes to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LogSourceSuite {}

impl LogSourceSuite {
    /// The suite.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs all checks.
    pub async fn run(&self, world: &dyn LogWorld) {
        let start = world.here().await;
        world.write(50).await;
        let first = due(world, &start).await;
        let nothing = ask(world, &first.to, ALL, true).await.expect("cut at the end");
        assert_eq!(nothing, None, "a cut at the end of the log is offered although nothing is new");
        world.write(50).await;
        let second = due(world, &first.to).await;
        let whole = due(world, &start).await;
        assert!(whole.to >= second.to, "a later cut ends earlier");

        slices_join(world, &start, &first, &second).await;
        a_small_goal_gives_small_slices_that_lead_to_the_end(world, &start, &second.to).await;
        nothing_is_finished_before_it_is_read(world, &first).await;
        a_slice_given_up_leaves_nothing(world, &first).await;
        what_is_written_meanwhile_is_in_a_later_slice(world, &second).await;
        a_log_that_was_lost_is_a_gap(world, &start, &first).await;
    }
}

async fn ask(world: &dyn LogWorld, from: &LogPosition, bytes: u64, due: bool) -> Result<Option<Cut>> {
    let cut = world.source().cut(CutRequest::new(from, bytes, due)).await?;
    if let Some(cut) = &cut {
        assert_eq!(cut.from, *from, "a cut begins elsewhere than asked");
        assert!(cut.to > cut.from, "a cut has no extent: {cut:?}");
        assert!(cut.from_time <= cut.to_time, "a cut ends before it begins: {cut:?}");
    }
    Ok(cut)
}

/// What a slice that is due would be.
async fn due(world: &dyn LogWorld, from: &LogPosition) -> Cut {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(cut) = ask(world, from, ALL, true).await.expect("cut") {
            return cut;
        }
        assert!(tokio::time::Instant::now() < deadline, "what was written never shows in a cut");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn take(world: &dyn LogWorld, cut: &Cut) -> (Vec<(String, Bytes)>, Proofs) {
    let mut snapshot = world.source().slice(cut, CancellationToken::new()).await.expect("slice");
    let mut artifacts = Vec::new();
    while let Some(artifact) = snapshot.next().await.expect("next") {
        let bytes = crate::collect(artifact.data).await.expect("the bytes of a slice");
        artifacts.push((artifact.meta.name.into_owned(), bytes));
    }
    let report = snapshot.finish().await.expect("finish");
    snapshot.close(Outcome::Committed).await.expect("close");
    assert_eq!(report.log_position.as_ref(), Some(&cut.to), "a slice does not say that it reached its end");
    (artifacts, report.proofs)
}

fn joined(a: &Proofs, b: &Proofs) -> Proofs {
    let mut sum = a.clone();
    for (name, proof) in b {
        sum.entry(name.clone()).or_default().merge(proof);
    }
    sum
}

async fn slices_join(world: &dyn LogWorld, start: &LogPosition, first: &Cut, second: &Cut) {
    let (a, proofs_a) = take(world, first).await;
    assert!(a.iter().any(|(_, bytes)| !bytes.is_empty()), "a slice with entries has no bytes");
    assert_eq!(take(world, first).await, (a, proofs_a.clone()), "the same range gives other bytes");
    let (_, proofs_b) = take(world, second).await;
    let whole = Cut { from: start.clone(), from_time: first.from_time, ..second.clone() };
    let (_, proofs) = take(world, &whole).await;
    assert_eq!(proofs, joined(&proofs_a, &proofs_b), "joining slices do not add up to the whole");
    assert!(proofs.values().any(|proof| proof.count > 0), "a slice proves nothing");
}

async fn a_small_goal_gives_small_slices_that_lead_to_the_end(
    world: &dyn LogWorld,
    start: &LogPosition,
    end: &LogPosition,
) {
    let (mut at, mut cuts) = (start.clone(), 0);
    while at < *end {
        let cut = ask(world, &at, 1, false).await.expect("cut").expect("a slice before the end");
        assert!(cut.full, "a goal of one byte is not reached by {cut:?}");
        take(world, &cut).await;
        at = cut.to;
        cuts += 1;
        assert!(cuts < 10_000, "small slices do not come to an end");
    }
}

async fn nothing_is_finished_before_it_is_read(world: &dyn LogWorld, cut: &Cut) {
    let mut snapshot = world.source().slice(cut, CancellationToken::new()).await.expect("slice");
    drop(snapshot.next().await.expect("next").expect("an artifact"));
    let finished = tokio::time::timeout(PATIENCE, snapshot.finish()).await.expect("finish hangs");
    assert!(finished.is_err(), "finish succeeded although an artifact was given up");
    snapshot.close(Outcome::Aborted).await.expect("close");
    world.no_leaks().await;
}

async fn a_slice_given_up_leaves_nothing(world: &dyn LogWorld, cut: &Cut) {
    for cancel in [false, true] {
        let stop = CancellationToken::new();
        let mut snapshot = world.source().slice(cut, stop.clone()).await.expect("slice");
        let mut artifact = snapshot.next().await.expect("next").expect("an artifact");
        if cancel {
            stop.cancel();
            let drained = async { while let Some(Ok(_)) = artifact.data.next().await {} };
            tokio::time::timeout(PATIENCE, drained).await.expect("a cancelled slice goes on and on");
        } else {
            let _ = artifact.data.next().await;
        }
        drop(artifact);
        drop(snapshot);
        world.no_leaks().await;
    }
    take(world, cut).await;
}

async fn what_is_written_meanwhile_is_in_a_later_slice(world: &dyn LogWorld, last: &Cut) {
    let (before, _) = take(world, last).await;
    let mut snapshot = world.source().slice(last, CancellationToken::new()).await.expect("slice");
    world.write(20).await;
    let mut during = Vec::new();
    while let Some(artifact) = snapshot.next().await.expect("next") {
        world.write(1).await;
        during.push((artifact.meta.name.into_owned(), crate::collect(artifact.data).await.expect("bytes")));
    }
    let report = snapshot.finish().await.expect("finish");
    snapshot.close(Outcome::Committed).await.expect("close");
    assert_eq!(during, before, "entries written meanwhile got into a slice that ends before them");
    assert_eq!(report.log_position.as_ref(), Some(&last.to));
    assert!(due(world, &last.to).await.to > last.to, "entries written meanwhile are nowhere");
}

async fn a_log_that_was_lost_is_a_gap(world: &dyn LogWorld, start: &LogPosition, lost: &Cut) {
    if !world.forget().await {
        return;
    }
    world.write(5).await;
    let cut = ask(world, start, ALL, true).await;
    let error = cut.expect_err("a cut is offered from a position that the log no longer has");
    assert_eq!(error.kind(), ErrorKind::LogGap, "{}", error.chain());
    let taken = async {
        let mut snapshot = world.source().slice(lost, CancellationToken::new()).await?;
        while let Some(artifact) = snapshot.next().await? {
            crate::collect(artifact.data).await?;
        }
        snapshot.finish().await
    };
    let error = taken.await.expect_err("a slice is given that the log no longer has");
    assert_eq!(error.kind(), ErrorKind::LogGap, "{}", error.chain());
    let here = world.here().await;
    world.write(5).await;
    due(world, &here).await;
}
