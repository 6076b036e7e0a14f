//! What a run stores: a snapshot of a source, or a slice of a log.

use crate::error::{Error, ErrorKind, Result};
use crate::log::{Cut, LogSource};
use crate::manifest::Previous;
use crate::retention::BackupKind;
use crate::source::{Snapshot, SnapshotRequest, Source, SourceReport};

#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    Source(&'a dyn Source),
    Slice(&'a Slice<'a>),
}

/// A slice to be stored.
pub(super) struct Slice<'a> {
    pub(super) source: &'a dyn LogSource,
    pub(super) cut: Cut,
    /// The slice that it continues.
    pub(super) previous: Option<Previous>,
}

impl Slice<'_> {
    pub(super) fn kind(&self) -> BackupKind {
        BackupKind::Log {
            from: self.cut.from.clone(),
            to: self.cut.to.clone(),
            from_time: self.cut.from_time,
            to_time: self.cut.to_time,
        }
    }
}

impl<'a> Origin<'a> {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Source(source) => source.kind(),
            Self::Slice(slice) => slice.source.kind(),
        }
    }

    pub(super) fn slice(&self) -> Option<&'a Slice<'a>> {
        match self {
            Self::Source(_) => None,
            Self::Slice(slice) => Some(slice),
        }
    }

    pub(super) async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        match self {
            Self::Source(source) => source.snapshot(request).await,
            Self::Slice(slice) => slice.source.slice(&slice.cut, request.cancelled).await,
        }
    }

    /// Insists that a slice holds what its name will say.
    pub(super) fn confirm(&self, report: &mut SourceReport) -> Result<()> {
        let Some(slice) = self.slice() else { return Ok(()) };
        let reached = report.log_position.take();
        if reached.as_ref() == Some(&slice.cut.to) {
            return Ok(());
        }
        let reached = reached.map_or_else(|| "nothing".to_owned(), |position| position.to_string());
        Err(Error::new(ErrorKind::SourceFailed, "read log")
            .message("the source did not deliver the slice that it had offered")
            .with("expected", &slice.cut.to)
            .with("reached", reached))
    }
}
