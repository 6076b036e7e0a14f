//! What a rotation did.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};
use crate::key::Key;
use crate::name::{BackupId, SetName, SinkId};

/// What a rotation did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RotateReport {
    /// Copies that open with the new keyring now, one entry per backup and sink.
    pub rotated: Vec<Rotated>,
    /// Old wraps that the store refused to delete: whoever has the old key and this object can still read the backup.
    pub locked: Vec<KeptWrap>,
    /// Wraps for keys of neither keyring. They were left alone.
    pub foreign: Vec<KeptWrap>,
    /// What could not be done. Such copies open with the keys they opened with before.
    pub failures: Vec<RotateFailure>,
    /// How long it took.
    pub elapsed: Duration,
}

/// One backup on one sink that opens with the new keyring.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rotated {
    /// The set.
    pub set: SetName,
    /// The backup.
    pub id: BackupId,
    /// The sink.
    pub sink: SinkId,
    /// New wraps written; none where an earlier run did it.
    pub written: usize,
    /// Old wraps deleted.
    pub deleted: usize,
}

/// A wrap that is still there.
#[derive(Debug)]
#[non_exhaustive]
pub struct KeptWrap {
    /// The sink.
    pub sink: SinkId,
    /// The wrap.
    pub wrap: Key,
    /// Until when the store keeps it, where its refusal said so (in the error's context, as `retain_until`).
    pub until: Option<DateTime<Utc>>,
    /// When it was written, where the store knows.
    pub written: Option<DateTime<Utc>>,
    /// What the store said when it was to be deleted.
    pub error: Option<Error>,
}

/// Something a rotation could not do.
#[derive(Debug)]
#[non_exhaustive]
pub struct RotateFailure {
    /// The set; `None` when the failure concerns a sink as such.
    pub set: Option<SetName>,
    /// The backup; `None` when the failure concerns the set as such.
    pub id: Option<BackupId>,
    /// The sink; `None` when the failure concerns every copy.
    pub sink: Option<SinkId>,
    /// Why.
    pub error: Error,
}

impl RotateReport {
    /// The report, or an error that names the first failure. Locked and foreign wraps are no failures.
    pub fn into_result(mut self) -> Result<Self> {
        if self.failures.is_empty() {
            return Ok(self);
        }
        let count = self.failures.len();
        let RotateFailure { set, id, sink, error: cause } = self.failures.remove(0);
        let mut error = Error::new(cause.kind(), "rotate")
            .message(
                "not every copy has its new wrap; keep the old keys, repair what is named here and rotate again",
            )
            .with("failures", count)
            .with("rotated", self.rotated.len());
        if let Some(set) = set {
            error = error.with("set", set);
        }
        if let Some(id) = id {
            error = error.with("id", id);
        }
        if let Some(sink) = sink {
            error = error.with("sink", sink);
        }
        Err(error.caused_by(cause))
    }
}
