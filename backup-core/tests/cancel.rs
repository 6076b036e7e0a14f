//! Stopping and dropping runs at any moment: nothing is left behind, soon.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backup_core::{
    AesGcm, Artifact, CheckReport, ErrorKind, Gzip, Keyring, MemorySink, MemorySource, MemoryTarget, Outcome,
    Repository, Result, Snapshot, SnapshotRequest, Source, SourceReport, async_trait,
};
use backup_testkit::noise;

/// A run notices within a chunk; this is far more.
const SOON: Duration = Duration::from_secs(10);
const BIG: usize = 3_000_000;

/// A source that counts how its snapshots end.
#[derive(Debug)]
struct Counted {
    inner: MemorySource,
    opened: AtomicUsize,
    ends: Arc<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    aborted: AtomicUsize,
    committed: AtomicUsize,
}

struct CountedSnapshot {
    inner: Box<dyn Snapshot>,
    ends: Arc<Ends>,
}

impl Counted {
    fn new() -> Self {
        let inner = MemorySource::new()
            .artifact("a", noise(BIG, 1))
            .artifact("b", noise(BIG, 2))
            .chunk_size(50_000)
            .max_open(2);
        Self { inner, opened: AtomicUsize::new(0), ends: Arc::default() }
    }
}

#[async_trait]
impl Source for Counted {
    fn kind(&self) -> &'static str {
        "counted"
    }
    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let inner = self.inner.snapshot(request).await?;
        self.opened.fetch_add(1, SeqCst);
        Ok(Box::new(CountedSnapshot { inner, ends: Arc::clone(&self.ends) }))
    }
}

#[async_trait]
impl Snapshot for CountedSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        self.inner.next().await
    }
    fn max_open(&self) -> usize {
        self.inner.max_open()
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        self.inner.finish().await
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        let count = if outcome == Outcome::Aborted { &self.ends.aborted } else { &self.ends.committed };
        count.fetch_add(1, SeqCst);
        self.inner.close(outcome).await
    }
}

fn repository(sinks: &[MemorySink]) -> Repository {
    let mut builder = Repository::builder()
        .transform(Gzip::default())
        .transform(AesGcm::new(Keyring::builder().key([3; 32]).build().unwrap()));
    for sink in sinks {
        builder = builder.sink(sink.clone());
    }
    builder.build().unwrap()
}

/// The same moments every time, in microseconds: from at once to about as long as a run takes.
fn moments(seed: u64, count: usize, longest: Duration) -> Vec<Duration> {
    let longest = u64::try_from(longest.as_micros()).unwrap().max(2);
    let bytes = noise(count * 8, seed);
    bytes
        .chunks_exact(8)
        .map(|b| Duration::from_micros(u64::from_le_bytes(b.try_into().unwrap()) % longest))
        .collect()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

fn threads() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok())
}

async fn soon(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < limit, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a test in a runtime of its own, and no other test of this program meanwhile: it counts threads.
fn alone(test: impl Future<Output = ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Threads of the blocking pool that idle are let go at once, so that what is left over can be told from them.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_millis(50))
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn a_backup_stopped_at_any_moment_leaves_nothing() {
    alone(async {
        let source = Counted::new();
        let probe = [MemorySink::named("first"), MemorySink::named("second")];
        let began = Instant::now();
        repository(&probe).backup("app", &source).rate_limit(30_000_000).await.unwrap();
        let usual = began.elapsed();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (tasks_before, threads_before) = (tasks(), threads());
        let (mut stopped, mut finished) = (0, 1);
        for (i, moment) in moments(1, 40, usual).into_iter().enumerate() {
            let sinks = [MemorySink::named("first"), MemorySink::named("second")];
            let repo = repository(&sinks);
            let run = repo.backup("app", &source).rate_limit(30_000_000);
            let done = if i % 2 == 0 {
                match run.run_until(tokio::time::sleep(moment)).await {
                    Ok(_) => true,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", error.chain());
                        false
                    }
                }
            } else {
                tokio::time::timeout(moment, run.into_future()).await.is_ok_and(|done| done.is_ok())
            };
            if done {
                finished += 1;
                continue;
            }
            stopped += 1;
            soon("the snapshot is closed", || {
                let ends = source.ends.aborted.load(SeqCst) + source.ends.committed.load(SeqCst);
                ends == source.opened.load(SeqCst)
            })
            .await;
            soon("the sinks are empty", || sinks.iter().all(|s| s.keys().is_empty())).await;
            assert!(repo.backups("app").await.unwrap().is_empty(), "after {moment:?}");
        }
        assert!(stopped >= 20, "only {stopped} runs were stopped");
        assert_eq!(source.ends.committed.load(SeqCst), finished);
        soon("all tasks end", || tasks() <= tasks_before).await;
        soon("all threads end", || threads() <= threads_before.map(|n| n + 1)).await;
    });
}

#[test]
fn a_restore_stopped_at_any_moment_leaves_the_target_alone() {
    alone(async {
        let sinks = [MemorySink::named("first"), MemorySink::named("second")];
        let repo = repository(&sinks);
        let source = Counted::new();
        repo.backup("app", &source).await.unwrap();
        // The quickest of a few: the first one warms everything up.
        let (mut usual, restored) = (Duration::MAX, MemoryTarget::new());
        for _ in 0..4 {
            let began = Instant::now();
            repo.restore("app").into(&restored).replace().await.unwrap();
            usual = usual.min(began.elapsed());
        }
        let objects = sinks[0].keys();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (tasks_before, threads_before) = (tasks(), threads());
        let mut stopped = 0;
        for (i, moment) in moments(2, 60, usual).into_iter().enumerate() {
            let target = MemoryTarget::new();
            target.put("precious", "as it was");
            let run = repo.restore("app").into(&target).replace();
            let told = i % 2 == 0;
            let done = if told {
                match run.run_until(tokio::time::sleep(moment)).await {
                    Ok(_) => true,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", error.chain());
                        false
                    }
                }
            } else {
                tokio::time::timeout(moment, run.into_future()).await.is_ok_and(|done| done.is_ok())
            };
            if done {
                continue;
            }
            // Nobody hears of a commit that had begun when its future was dropped: it ends on its own, and whole.
            soon("the commit ends", || tasks() <= tasks_before).await;
            if !told && target.names() == restored.names() {
                assert!(restored.names().iter().all(|name| target.get(name) == restored.get(name)));
                continue;
            }
            stopped += 1;
            assert_eq!(target.names(), ["precious"], "after {moment:?}");
            assert_eq!(target.get("precious").unwrap(), "as it was");
        }
        assert!(stopped >= 20, "only {stopped} restores were stopped");
        assert_eq!(sinks[0].keys(), objects);
        soon("all tasks end", || tasks() <= tasks_before).await;
        soon("all threads end", || threads() <= threads_before.map(|n| n + 1)).await;
    });
}
