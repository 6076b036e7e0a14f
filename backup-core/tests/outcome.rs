//! What a source hears at the end of its snapshot: whether its backup counts decides what it may let go of.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::{
    Artifact, CheckReport, Error, ErrorKind, MemorySink, MemorySource, Outcome, Repository, Result, Snapshot,
    SnapshotRequest, Source, SourceReport, async_trait,
};
use backup_testkit::{FaultySink, Operation, Rule};

/// A source that notes what it hears, and can fail at its end.
#[derive(Debug)]
struct Listening {
    inner: MemorySource,
    fails: bool,
    heard: Arc<Mutex<Vec<Outcome>>>,
}

struct ListeningSnapshot {
    inner: Box<dyn Snapshot>,
    fails: bool,
    heard: Arc<Mutex<Vec<Outcome>>>,
}

#[async_trait]
impl Source for Listening {
    fn kind(&self) -> &'static str {
        "listening"
    }
    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let inner = self.inner.snapshot(request).await?;
        Ok(Box::new(ListeningSnapshot { inner, fails: self.fails, heard: Arc::clone(&self.heard) }))
    }
}

#[async_trait]
impl Snapshot for ListeningSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        self.inner.next().await
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        if self.fails {
            return Err(Error::new(ErrorKind::Io, "finish snapshot"));
        }
        self.inner.finish().await
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.heard.lock().unwrap().push(outcome);
        self.inner.close(outcome).await
    }
}

/// What a source hears, and what its caller does, when the second of two sinks fails (or both do).
async fn heard(broken: usize, required: usize, fails: bool) -> (Vec<Outcome>, Result<()>) {
    let mut builder = Repository::builder().require_copies(required).retries(0, Duration::from_millis(1));
    for (n, name) in ["second", "first"].into_iter().enumerate() {
        let sink = FaultySink::new(MemorySink::named(name));
        if n < broken {
            // The pending marker comes first; without it there would be no snapshot to hear anything.
            sink.arm(Rule::nth(2).times(u64::MAX).on(Operation::Finish));
        }
        builder = builder.sink(sink);
    }
    let inner = MemorySource::new().artifact("a", "one").artifact("b", "two");
    let source = Listening { inner, fails, heard: Arc::default() };
    let result = builder.build().unwrap().backup("app", &source).await.map(drop);
    let heard = source.heard.lock().unwrap().clone();
    (heard, result)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_hears_committed_only_with_every_copy_and_degraded_with_fewer() {
    let (outcome, result) = heard(0, 2, false).await;
    assert_eq!(outcome, [Outcome::Committed]);
    result.unwrap();

    let (outcome, result) = heard(1, 2, false).await;
    assert_eq!(outcome, [Outcome::Degraded]);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TooFewCopies);

    let (outcome, result) = heard(1, 1, false).await;
    assert_eq!(outcome, [Outcome::Committed]);
    result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_hears_aborted_when_no_copy_is_left_and_when_it_failed_itself() {
    for (broken, fails) in [(2, false), (0, true)] {
        let (outcome, result) = heard(broken, 1, fails).await;
        assert_eq!(outcome, [Outcome::Aborted], "{broken} {fails}");
        result.unwrap_err();
    }
}
