//! What a replication did.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::{BackupId, SetName, SinkId};

/// What a replication did.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReplicateReport {
    /// The set.
    pub set: SetName,
    /// One entry per backup and sink that was looked at, in the order of the work.
    pub replicas: Vec<Replica>,
    /// What could not be done. Everything else was.
    pub failures: Vec<ReplicateFailure>,
    /// How long it took.
    pub elapsed: Duration,
}

/// One backup on one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replica {
    /// The backup.
    pub id: BackupId,
    /// The sink.
    pub sink: SinkId,
    /// Objects that were missing and are there now.
    pub copied: Vec<Key>,
    /// Objects that were damaged and are good now.
    pub healed: Vec<Key>,
    /// Objects that were good already, or had the right size (see
    /// [`verify_existing`](crate::Replicate::verify_existing)).
    pub kept: usize,
    /// Bytes written.
    pub bytes: u64,
    /// Of these, bytes that the store copied by itself.
    pub copied_by_store: u64,
    /// Whether the sink holds the backup whole now.
    pub whole: bool,
}

/// Something a replication could not do.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReplicateFailure {
    /// The backup; `None` when the failure concerns a sink as such.
    pub id: Option<BackupId>,
    /// The sink; `None` when the failure concerns the backup on every sink.
    pub sink: Option<SinkId>,
    /// Why.
    pub error: Error,
}

impl ReplicateReport {
    pub(super) fn new(set: SetName) -> Self {
        Self { set, replicas: Vec::new(), failures: Vec::new(), elapsed: Duration::ZERO }
    }

    /// Bytes written to all sinks.
    pub fn bytes(&self) -> u64 {
        self.replicas.iter().map(|r| r.bytes).sum()
    }

    /// Whether every copy that was looked at is whole.
    pub fn is_whole(&self) -> bool {
        self.failures.is_empty() && self.replicas.iter().all(|r| r.whole)
    }

    /// The report, or an error that names what could not be done.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooFewCopies`] when some copies are whole; else the kind of the first failure.
    pub fn into_result(mut self) -> Result<Self> {
        if self.is_whole() {
            return Ok(self);
        }
        let some_whole = self.replicas.iter().any(|r| r.whole);
        let failed = self.failures.len();
        let first = (failed > 0).then(|| self.failures.remove(0));
        let kind = match &first {
            Some(first) if !some_whole => first.error.kind(),
            _ => ErrorKind::TooFewCopies,
        };
        let mut error = Error::new(kind, "replicate")
            .message("not every copy could be made whole; repair what is named here and replicate again")
            .with("set", &self.set)
            .with("failures", failed);
        for other in self.failures.iter().take(8) {
            error = error.with("also", other);
        }
        Err(match first {
            Some(ReplicateFailure { id, sink, error: cause }) => {
                if let Some(id) = id {
                    error = error.with("id", id);
                }
                if let Some(sink) = sink {
                    error = error.with("sink", sink);
                }
                error.caused_by(cause)
            }
            None => error,
        })
    }
}

impl std::fmt::Display for ReplicateFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(id) = &self.id {
            write!(f, "{id} ")?;
        }
        if let Some(sink) = &self.sink {
            write!(f, "on {sink}")?;
        }
        write!(f, ": {}", self.error.chain())
    }
}
