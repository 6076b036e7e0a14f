//! A backup of files in progress: the threads behind it, and the [`Snapshot`] in front.

use std::sync::{Arc, PoisonError};
use std::thread::{self, Builder};

use backup_core::{
    Artifact, CancellationToken, Error, ErrorKind, Finished, Outcome, Result, Selection, Snapshot,
    SnapshotRequest, SourceReport, async_trait,
};
use futures::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::assemble::{Archives, Assembler};
use super::earlier::{Comparison, Span, Spliced, spans};
use super::output::{Announced, Output};
use super::parent::Parent;
use super::readahead::Window;
use super::walk::Walker;
use crate::config::Config;

const OPERATION: &str = "read directory tree";

/// Starts reading. The threads go as far as the bounded queues let them, and stop when the snapshot or the open
/// stream is dropped.
pub(crate) fn begin(config: Arc<Config>, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
    let handle = Handle::current();
    let cancelled = request.cancelled.child_token();
    let (announce, artifacts) = mpsc::channel(1);
    let (report, done) = oneshot::channel();
    let parent = request.parent.and_then(|parent| Parent::open(parent, handle.clone(), cancelled.clone()));
    let output = Output::new(announce, config.artifact_size, handle, cancelled.clone());
    let finished = Archives::default();
    let assembler = match parent {
        // What an incremental leaves out lies in other backups: its archives mean nothing without them.
        Some(_) => Assembler::new(output),
        None => Assembler::new(output.independent()).telling(Arc::clone(&finished)),
    };
    let spans = spans(&request.earlier);
    let job = Job {
        parent,
        selection: request.selection,
        assembler: assembler.with(request.earlier),
        spans,
        cancelled: cancelled.clone(),
        config,
    };
    Builder::new()
        .name("backup-files".to_owned())
        // Nobody may be there to hear it.
        .spawn(move || drop(report.send(job.run())))
        .map_err(|e| Error::io(OPERATION, e))?;
    Ok(Box::new(DirectorySnapshot { artifacts, done: Some(done), report: None, finished, cancelled }))
}

/// Which archives of an earlier run hold what a walk meets now.
pub(crate) async fn unchanged(config: Arc<Config>, request: SnapshotRequest<'_>) -> Result<Vec<usize>> {
    let (handle, cancelled) = (Handle::current(), request.cancelled.child_token());
    // Nobody waits for the walk any more when this is dropped.
    let _stop = cancelled.clone().drop_guard();
    let (selection, earlier) = (request.selection, request.earlier);
    let walk = tokio::task::spawn_blocking(move || {
        let comparison = Comparison::new(&earlier, handle, cancelled.clone());
        let (window, cancelled) = (&comparison, &cancelled);
        Walker { config: &config, selection: &selection, window, parent: None, cancelled }.run()?;
        Ok(comparison.same())
    });
    walk.await.map_err(|e| Error::new(ErrorKind::Internal, OPERATION).caused_by(e))?
}

/// What the thread behind a snapshot works on.
#[derive(Debug)]
struct Job {
    config: Arc<Config>,
    selection: Selection,
    parent: Option<Parent>,
    assembler: Assembler,
    spans: Vec<(usize, Span)>,
    cancelled: CancellationToken,
}

impl Job {
    fn run(self) -> Result<SourceReport> {
        let Self { config, selection, parent, mut assembler, spans, cancelled } = self;
        let window = Window::new(config.read_ahead);
        let spliced = Spliced::new(&window, spans);
        let walker = Walker {
            config: &config,
            selection: &selection,
            window: &spliced,
            parent,
            cancelled: &cancelled,
        };
        let result = thread::scope(|scope| {
            // However this ends, the other threads must not wait for it.
            let _stop = StopAtEnd(&window);
            for _ in 0..config.readers {
                Builder::new()
                    .name("backup-read".to_owned())
                    .spawn_scoped(scope, || window.read())
                    .map_err(|e| Error::io(OPERATION, e))?;
            }
            let walk = Builder::new()
                .name("backup-walk".to_owned())
                .spawn_scoped(scope, || {
                    let _stop = super::readahead::StopOnPanic(&window);
                    walker.run()
                })
                .map_err(|e| Error::io(OPERATION, e))?;
            let written = assembler.run(&window);
            window.stop();
            // If the walk failed, that is why the assembler was stopped.
            walk.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, OPERATION)))?;
            written
        });
        match result {
            Ok(()) => assembler.report(&config),
            Err(error) => {
                let kind = error.kind();
                Err(assembler.fail(error).unwrap_or_else(|| {
                    Error::new(kind, OPERATION)
                        .message("the tree was not read to its end; its stream says why")
                }))
            }
        }
    }
}

struct StopAtEnd<'a>(&'a Window);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// See [`DirectorySource`](crate::DirectorySource).
#[derive(Debug)]
struct DirectorySnapshot {
    artifacts: mpsc::Receiver<Announced>,
    /// Until the threads have ended.
    done: Option<oneshot::Receiver<Result<SourceReport>>>,
    /// From then on, until `finish`.
    report: Option<SourceReport>,
    finished: Archives,
    cancelled: CancellationToken,
}

#[async_trait]
impl Snapshot for DirectorySnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        if let Some((meta, chunks)) = self.artifacts.recv().await {
            let data = futures::stream::unfold(chunks, |mut chunks| async move {
                chunks.recv().await.map(|chunk| (chunk, chunks))
            });
            return Ok(Some(Artifact { meta, data: data.boxed() }));
        }
        if let Some(done) = self.done.take() {
            let ended = done.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, OPERATION)));
            self.report = Some(ended?);
        }
        Ok(None)
    }

    fn finished(&mut self, artifact: &str) -> Option<Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).remove(artifact)
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        self.report.take().ok_or_else(|| {
            Error::new(ErrorKind::SourceFailed, OPERATION)
                .message("there is no report: not every archive was read to its end, or the run failed")
        })
    }

    async fn close(mut self: Box<Self>, _outcome: Outcome) -> Result<()> {
        self.cancelled.cancel();
        self.artifacts.close();
        if let Some(done) = self.done.take() {
            // Only that they ended matters.
            let _ = done.await;
        }
        Ok(())
    }
}

impl Drop for DirectorySnapshot {
    fn drop(&mut self) {
        self.cancelled.cancel();
    }
}
