//! Trying again: sink operations that failed for a passing reason.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::TryStreamExt as _;

use super::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::SinkId;
use crate::observer::Event;
use crate::sink::{ObjectInfo, Sink};

/// How sink operations are timed and repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// An operation, or a chunk, that does not finish within this is given up.
    pub(crate) stall: Duration,
    /// A source that delivers nothing for this long is given up.
    pub(crate) source_stall: Duration,
    /// Tries after the first.
    pub(crate) retries: usize,
    /// The wait before the first repetition; doubled each time, with jitter, up to thirty times as long.
    pub(crate) first_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(120),
            source_stall: Duration::from_secs(1800),
            retries: 4,
            first_wait: Duration::from_millis(200),
        }
    }
}

impl Patience {
    /// Runs `operation` until it succeeds, fails for good, or the tries are used up.
    pub(crate) async fn retry<T, F: Future<Output = Result<T>>>(
        &self,
        sink: &SinkId,
        watch: &Watch,
        mut operation: impl FnMut() -> F,
    ) -> Result<T> {
        let mut tries = self.tries(sink, watch);
        loop {
            match self.bound(operation()).await {
                Ok(value) => return Ok(value),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// Everything `sink` lists below `prefix`, gathered by `take`, from the beginning again after a passing failure.
    ///
    /// Each item has its own time: a large list may take longer than one answer may.
    pub(crate) async fn list<T: Default>(
        &self,
        sink: &dyn Sink,
        prefix: &Key,
        watch: &Watch,
        mut take: impl FnMut(&mut T, ObjectInfo) -> Result<()>,
    ) -> Result<T> {
        let mut tries = self.tries(sink.id(), watch);
        loop {
            match self.list_once(sink, prefix, &mut take).await {
                Ok(all) => return Ok(all),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    async fn list_once<T: Default>(
        &self,
        sink: &dyn Sink,
        prefix: &Key,
        take: &mut impl FnMut(&mut T, ObjectInfo) -> Result<()>,
    ) -> Result<T> {
        let mut all = T::default();
        let mut objects = sink.list(prefix);
        while let Some(object) = self.bound(objects.try_next()).await? {
            take(&mut all, object)?;
        }
        Ok(all)
    }

    /// Counts the tries of one operation.
    pub(crate) fn tries<'a>(&self, sink: &'a SinkId, watch: &'a Watch) -> Tries<'a> {
        let waits = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(self.first_wait)
            .with_max_delay(self.first_wait * 30)
            .with_max_times(self.retries)
            .build();
        Tries { sink, watch, waits, attempt: 0 }
    }

    /// Runs `operation`, or fails when it does not finish in time.
    pub(crate) async fn bound<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        bound(self.stall, operation, sink_stalls).await
    }

    /// The same patience with so much more time for each operation.
    pub(crate) fn for_work(self, time: Duration) -> Self {
        Self { stall: self.stall.saturating_add(time), ..self }
    }

    /// Runs a call of a source, or fails when it does not finish in time.
    pub(crate) async fn bound_source<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        bound(self.source_stall, call, source_stalls).await
    }

    /// Like [`bound`](Self::bound), for making a large object durable.
    pub(crate) async fn bound_finish<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        bound(self.stall * 5, operation, sink_stalls).await
    }
}

async fn bound<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T>>,
    stalls: fn() -> Error,
) -> Result<T> {
    match tokio::time::timeout(limit, operation).await {
        Ok(result) => result,
        Err(_) => Err(stalls().with("seconds", limit.as_secs())),
    }
}

fn sink_stalls() -> Error {
    Error::new(ErrorKind::Timeout, "use sink")
        .message("the sink did not answer in time; check its connection, or raise the stall time-out")
}

fn source_stalls() -> Error {
    Error::new(ErrorKind::Timeout, "read source").message(
        "the source did not answer in time; see what it waits for, or raise the source's stall time-out",
    )
}

/// The tries of one operation.
pub(crate) struct Tries<'a> {
    sink: &'a SinkId,
    watch: &'a Watch,
    waits: ExponentialBackoff,
    attempt: u32,
}

impl Tries<'_> {
    /// Waits before the next try, or gives the error back when there is none.
    pub(crate) async fn again(&mut self, error: Error) -> Result<()> {
        let Some(after) = error.is_retryable().then(|| self.waits.next()).flatten() else {
            return Err(error.with("sink", self.sink));
        };
        self.attempt += 1;
        self.watch.event(&Event::Retrying { sink: self.sink, error: &error, attempt: self.attempt, after });
        tokio::time::sleep(after).await;
        Ok(())
    }
}
