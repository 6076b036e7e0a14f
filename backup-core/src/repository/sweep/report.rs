//! What a sweep did.

use std::fmt;

use crate::error::{Error, Result};
use crate::name::{BackupId, SetName, SinkId};

/// What a sweep removed.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a report may hold failures: look at `failed`, or call `into_result`"]
pub struct SweepReport {
    /// The set.
    pub set: SetName,
    /// The remains that are gone.
    pub removed: Vec<Swept>,
    /// Directories without a manifest that stay, and why.
    pub kept: Vec<(SinkId, BackupId, String)>,
    /// Unfinished uploads that were removed, of all sets, by sink.
    pub uploads: Vec<(SinkId, u64)>,
    /// What failed, by sink.
    pub failed: Vec<(SinkId, Error)>,
}

/// What was left of one run on one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// The sink.
    pub sink: SinkId,
    /// The id the backup would have had.
    pub id: BackupId,
    /// Objects removed.
    pub objects: u64,
    /// Bytes these took.
    pub freed: u64,
}

impl SweepReport {
    pub(super) fn new(set: SetName) -> Self {
        Self { set, removed: Vec::new(), kept: Vec::new(), uploads: Vec::new(), failed: Vec::new() }
    }

    /// The report, or an error that names the first failure.
    pub fn into_result(mut self) -> Result<Self> {
        if self.failed.is_empty() {
            return Ok(self);
        }
        let count = self.failed.len();
        let (sink, error) = self.failed.swap_remove(0);
        Err(Error::new(error.kind(), "sweep")
            .message("not everything could be swept")
            .with("set", &self.set)
            .with("sink", sink)
            .with("failures", count)
            .caused_by(error))
    }
}

impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Swept { sink, id, objects, freed } in &self.removed {
            writeln!(f, "removed the remains of {id} on {sink}: {objects} objects, {freed} bytes")?;
        }
        for (sink, id, why) in &self.kept {
            writeln!(f, "kept the remains of {id} on {sink}: {why}")?;
        }
        for (sink, count) in self.uploads.iter().filter(|(_, count)| *count > 0) {
            writeln!(f, "removed {count} unfinished uploads on {sink}")?;
        }
        for (sink, error) in &self.failed {
            writeln!(f, "failed on {sink}: {}", error.chain())?;
        }
        write!(f, "swept {}: {} removed, {} kept", self.set, self.removed.len(), self.kept.len())
    }
}
