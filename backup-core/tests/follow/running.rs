//! The loop itself: time and bytes, writers beside it, stops, failures, and sources that do not keep their word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use backup_core::{
    CancellationToken, Cut, CutRequest, Error, ErrorKind, LogPosition, LogSource, MemorySink, Outcome,
    Result, Snapshot, Until, async_trait,
};
use backup_testkit::log::LogFileSource;
use backup_testkit::{Fault, FaultySink, Operation, Rule};

use crate::support::{ALL, Log, SET, base, catch_up, repository, restored, slices};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_beside_the_loop_lose_nothing_and_a_stop_is_clean() {
    let (log, sink) = (Arc::new(Log::new()), MemorySink::new());
    let repo = repository([&sink]);
    log.write(10);
    base(&repo, &log).await;
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..3)
        .map(|n| {
            let (log, stop) = (Arc::clone(&log), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    log.write(20);
                    if n == 0 {
                        log.file.rotate();
                    }
                    tokio::time::sleep(Duration::from_millis(7)).await;
                }
            })
        })
        .collect();
    let source = log.file.source();
    let report = repo
        .follow(SET, &source)
        .slice(Duration::from_millis(40), 8 * 1024)
        .run_until(tokio::time::sleep(Duration::from_millis(900)))
        .await
        .unwrap();
    stop.cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(report.slices >= 3, "{report:?}");
    let stored = slices(&repo).await;
    assert_eq!(stored.len() as u64, report.slices);
    assert!(stored.windows(2).all(|pair| pair[0].1 == pair[1].0), "slices do not join");
    assert!(
        !sink.keys().iter().any(|key| key.as_str().ends_with("pending.json")),
        "something was left behind"
    );
    let end = report.position.unwrap();
    assert_eq!(restored(&repo, end.clone()).await, log.file.text_to(&end));
    // A new loop goes on exactly there.
    catch_up(&repo, &log).await;
    assert_eq!(restored(&repo, Until::End).await, log.file.text_of(log.file.len()));
}

#[tokio::test]
async fn a_slice_ends_at_its_bytes_and_nothing_new_stores_nothing() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    base(&repo, &log).await;
    assert_eq!(catch_up(&repo, &log).await.slices, 0);
    log.write(100);
    let source = log.file.source();
    let hour = Duration::from_secs(3600);
    let report = repo.follow(SET, &source).slice(hour, 1_000).once().await.unwrap();
    let sizes: Vec<_> = slices(&repo).await.iter().map(|(.., b)| b.plain_size).collect();
    assert!(report.slices > 4 && sizes.iter().all(|size| *size < 1_100), "{sizes:?}");
    // Full slices do not wait for their time, and a rest does.
    log.write(50);
    let before = slices(&repo).await.len();
    let soon = tokio::time::sleep(Duration::from_millis(300));
    repo.follow(SET, &source).slice(hour, 2_000).run_until(soon).await.unwrap();
    let after = slices(&repo).await;
    assert!(after.len() > before && after[before..].iter().all(|(.., b)| b.plain_size >= 2_000));
    assert!(after.last().unwrap().1 < log.file.position());
}

#[tokio::test]
async fn a_failing_sink_is_tried_again_until_the_loop_gives_up() {
    let (log, inner) = (Log::new(), MemorySink::new());
    let sink = FaultySink::new(inner.clone());
    let repo = repository([&sink]);
    base(&repo, &log).await;
    log.write(3);
    let source = log.file.source();
    sink.arm(Rule::nth(4).on(Operation::Create).fault(Fault::permanent()));
    let report = repo.follow(SET, &source).once().await.unwrap();
    assert_eq!((report.slices, sink.faults()), (1, 1));

    log.write(3);
    sink.arm(Rule::always().on(Operation::Create).fault(Fault::permanent()));
    let error = repo.follow(SET, &source).give_up_after(Duration::from_millis(600)).once().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain());
    sink.disarm();
    catch_up(&repo, &log).await;
    assert_eq!(restored(&repository([&inner]), Until::End).await, log.file.text_of(6));
}

/// A log source that breaks one promise.
#[derive(Debug)]
struct Broken {
    inner: LogFileSource,
    how: How,
    asked: AtomicUsize,
    hung: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
enum How {
    CutElsewhere,
    NoExtent,
    OtherEnd,
    Hang,
}

#[async_trait]
impl LogSource for Broken {
    fn kind(&self) -> &'static str {
        "log-file"
    }

    async fn cut(&self, request: CutRequest<'_>) -> Result<Option<Cut>> {
        // The first question only finds out where to begin.
        let first = self.asked.fetch_add(1, Relaxed) == 0;
        let cut = self.inner.cut(request).await?;
        Ok(match (self.how, cut) {
            (How::CutElsewhere, Some(cut)) if !first => {
                Some(Cut { from: LogPosition::from_number(0), ..cut })
            }
            (How::NoExtent, Some(cut)) if !first => Some(Cut { to: cut.from.clone(), ..cut }),
            (_, cut) => cut,
        })
    }

    async fn slice(&self, slice: &Cut, cancelled: CancellationToken) -> Result<Box<dyn Snapshot>> {
        if matches!(self.how, How::Hang) && !self.hung.swap(true, Relaxed) {
            std::future::pending::<()>().await;
        }
        let snapshot = self.inner.slice(slice, cancelled).await?;
        Ok(match self.how {
            How::OtherEnd => Box::new(Short(snapshot)),
            _ => snapshot,
        })
    }
}

struct Short(Box<dyn Snapshot>);

#[async_trait]
impl Snapshot for Short {
    async fn next(&mut self) -> Result<Option<backup_core::Artifact>> {
        self.0.next().await
    }
    async fn finish(&mut self) -> Result<backup_core::SourceReport> {
        let mut report = self.0.finish().await?;
        report.log_position = Some(LogPosition::from_number(7));
        Ok(report)
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.0.close(outcome).await
    }
}

#[tokio::test]
async fn a_source_that_breaks_its_word_stores_nothing_and_one_that_hangs_is_asked_again() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = backup_core::Repository::builder()
        .sink(sink.clone())
        .source_stall_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    base(&repo, &log).await;
    log.write(3);
    let broken = |how| Broken {
        inner: log.file.source(),
        how,
        asked: AtomicUsize::new(0),
        hung: AtomicBool::new(false),
    };
    for how in [How::CutElsewhere, How::NoExtent, How::OtherEnd] {
        let source = broken(how);
        let follow = repo.follow(SET, &source).slice(Duration::from_secs(60), ALL).once();
        let error: Error = follow.give_up_after(Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceFailed, "{how:?}: {}", error.chain());
        assert!(slices(&repo).await.is_empty(), "{how:?}");
    }
    let source = broken(How::Hang);
    let report = repo.follow(SET, &source).once().await.unwrap();
    assert_eq!(report.slices, 1);
}
