//! One stream, N sinks: each with its own task, so that one that fails or hangs does not stop the others.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::progress::Watch;
use super::retry::Patience;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::observer::Event;
use crate::sink::{ObjectInfo, PutOptions, Sink, SinkWriter};

/// Stored blocks that may wait for one sink.
pub(crate) const QUEUE: usize = 2;

/// A sink and its place in the repository's list.
pub(crate) type Numbered = (usize, Arc<dyn Sink>);

/// An object being written to several sinks.
pub(crate) struct Fanout {
    lanes: Vec<Lane>,
    failed: Vec<(usize, Error)>,
    patience: Patience,
    watch: Watch,
}

struct Lane {
    number: usize,
    sink: Arc<dyn Sink>,
    to: mpsc::Sender<Bytes>,
    task: AbortOnDropHandle<Result<Box<dyn SinkWriter>>>,
}

impl Fanout {
    /// Begins `key` on every sink. Opening happens in the lanes: a slow sink does not delay the others.
    pub(crate) fn open(
        sinks: &[Numbered],
        key: &Key,
        options: &PutOptions,
        patience: Patience,
        watch: &Watch,
    ) -> Self {
        let lanes = sinks
            .iter()
            .map(|(number, sink)| {
                let (to, from) = mpsc::channel(QUEUE);
                let task =
                    run_lane(Arc::clone(sink), key.clone(), options.clone(), from, patience, watch.clone());
                Lane {
                    number: *number,
                    sink: Arc::clone(sink),
                    to,
                    task: AbortOnDropHandle::new(tokio::spawn(task)),
                }
            })
            .collect();
        Self { lanes, failed: Vec::new(), patience, watch: watch.clone() }
    }

    /// Offers `chunk` to every sink that still works; fails when none does.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let mut i = 0;
        while let Some(lane) = self.lanes.get(i) {
            if lane.to.send(chunk.clone()).await.is_ok() {
                i += 1;
            } else {
                // The lane ended early; its result says why.
                let lane = self.lanes.remove(i);
                let error = match joined(lane.task.await) {
                    Err(error) => error,
                    Ok(_) => Error::new(ErrorKind::Internal, "write object").message("a writer ended early"),
                };
                self.fail(lane.number, &lane.sink, error);
            }
        }
        if self.lanes.is_empty() { Err(self.all_failed()) } else { Ok(()) }
    }

    /// Makes the object durable everywhere it arrived whole. Returns the sinks that failed, with their errors; an
    /// error of its own when all did.
    pub(crate) async fn finish(mut self, size: u64) -> Result<Vec<(usize, Error)>> {
        let lanes = std::mem::take(&mut self.lanes);
        let patience = self.patience;
        let finishing = lanes.into_iter().map(|lane| async move {
            let Lane { number, sink, to, task } = lane;
            drop(to);
            let result = async {
                let writer = joined(task.await)?;
                let info = patience.bound_finish(writer.finish()).await?;
                check_size(&info, size)
            };
            let result = result.await.map_err(|e| e.with("sink", sink.id()));
            (number, sink, result)
        });
        let mut good = 0;
        for (number, sink, result) in futures::future::join_all(finishing).await {
            match result {
                Ok(()) => good += 1,
                Err(error) => self.fail(number, &sink, error),
            }
        }
        if good == 0 { Err(self.all_failed()) } else { Ok(self.failed) }
    }

    fn fail(&mut self, number: usize, sink: &Arc<dyn Sink>, error: Error) {
        self.watch.event(&Event::SinkFailed { sink: sink.id(), error: &error });
        self.failed.push((number, error));
    }

    fn all_failed(&mut self) -> Error {
        all_failed(std::mem::take(&mut self.failed))
    }
}

/// The error of an operation that failed on every sink: the last one's kind, and what each said.
pub(crate) fn all_failed(failed: Vec<(usize, Error)>) -> Error {
    let others: Vec<String> = failed.iter().rev().skip(1).map(|(_, e)| e.chain()).collect();
    match failed.into_iter().next_back() {
        Some((_, last)) => {
            let mut error = Error::new(last.kind(), "write to sinks").message("every sink failed");
            for other in others {
                error = error.with("also", other);
            }
            error.caused_by(last)
        }
        None => Error::new(ErrorKind::TooFewCopies, "write to sinks").message("no working sink is left"),
    }
}

fn check_size(info: &ObjectInfo, size: u64) -> Result<()> {
    if info.size == size {
        return Ok(());
    }
    Err(Error::corrupt("write object", "the sink holds another number of bytes than it was given")
        .with("given", size)
        .with("held", info.size))
}

fn joined<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.unwrap_or_else(|e| {
        Err(Error::new(ErrorKind::Internal, "write object").message("a task failed").caused_by(e))
    })
}

async fn run_lane(
    sink: Arc<dyn Sink>,
    key: Key,
    options: PutOptions,
    mut from: mpsc::Receiver<Bytes>,
    patience: Patience,
    watch: Watch,
) -> Result<Box<dyn SinkWriter>> {
    let mut writer = patience.retry(sink.id(), &watch, || sink.create(&key, options.clone())).await?;
    while let Some(chunk) = from.recv().await {
        let mut tries = patience.tries(sink.id(), &watch);
        loop {
            let Err(error) = patience.bound(writer.write(chunk.clone())).await else { break };
            // A write cut short by the time-out may have taken part of the chunk: it cannot be offered again.
            let error = if error.kind() == ErrorKind::Timeout { error.retryable(false) } else { error };
            if let Err(error) = tries.again(error).await {
                let _ = patience.bound(writer.abort()).await;
                return Err(error);
            }
        }
    }
    Ok(writer)
}
