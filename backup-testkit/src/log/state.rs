//! [`LogState`]: a full backup of what a log leads to.

use async_trait::async_trait;
use backup_core::{
    Artifact, ArtifactMeta, Bytes, CheckReport, Error, ErrorKind, Outcome, Recipe, Result, Snapshot,
    SnapshotRequest, Source, SourceReport,
};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ENTRIES, LogFile, STATE, prove};

/// The state of a [`LogFile`]: every line so far. Its backups know their place in the log.
#[derive(Clone, Debug)]
pub struct LogState(LogFile);

impl LogState {
    pub(super) fn new(file: LogFile) -> Self {
        Self(file)
    }
}

#[async_trait]
impl Source for LogState {
    fn kind(&self) -> &'static str {
        "log-file"
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }

    async fn snapshot(&self, _request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let (bytes, position, time) = self.0.now();
        let report = SourceReport {
            log_position: Some(position),
            consistent_at: Some(time.unwrap_or(DateTime::<Utc>::UNIX_EPOCH)),
            proofs: [(ENTRIES.to_owned(), prove(&bytes))].into(),
            recipe: Recipe { joined: Some("cat > state.lines".to_owned()), ..Recipe::default() },
            ..SourceReport::default()
        };
        Ok(Box::new(State { bytes: Some(bytes.into()), report: Some(report), drained: Arc::default() }))
    }
}

struct State {
    bytes: Option<Bytes>,
    report: Option<SourceReport>,
    drained: Arc<AtomicBool>,
}

#[async_trait]
impl Snapshot for State {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        let Some(bytes) = self.bytes.take() else { return Ok(None) };
        let drained = Arc::clone(&self.drained);
        let data = futures::stream::iter([Ok(bytes)]).chain(futures::stream::poll_fn(move |_| {
            drained.store(true, Ordering::Relaxed);
            std::task::Poll::Ready(None)
        }));
        Ok(Some(Artifact { meta: ArtifactMeta::new("state", STATE), data: data.boxed() }))
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let report = self.report.take().filter(|_| self.drained.load(Ordering::Relaxed));
        report.ok_or_else(|| {
            Error::new(ErrorKind::SourceFailed, "read state").message("the state was not read to its end")
        })
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        Ok(())
    }
}
