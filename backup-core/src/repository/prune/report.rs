//! What a prune did.

use std::fmt;
use std::time::Duration;

use super::archive::Moved;
use super::delete::Done;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName, SinkId};

/// What a prune did, and could not do.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a report may hold failures: look at `not_deleted` and `failed`, or call `into_result`"]
pub struct PruneReport {
    /// The set.
    pub set: SetName,
    /// The copies that are gone.
    pub deleted: Vec<DeletedBackup>,
    /// The copies that were to go and stay for now, because something began to need them. No failure: the next
    /// prune decides anew.
    pub spared: Vec<Spared>,
    /// The copies that a sink refuses to delete.
    pub not_deleted: Vec<NotDeleted>,
    /// The copies whose artifacts were moved to another storage class.
    pub archived: Vec<Archived>,
    /// The copies that could not be moved.
    pub not_archived: Vec<NotArchived>,
    /// The sinks that could not be listed, or failed on the way.
    pub failed: Vec<(SinkId, Error)>,
    /// How long planning and execution took, and the time between them.
    pub elapsed: Duration,
}

/// A copy that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeletedBackup {
    /// The sink.
    pub sink: SinkId,
    /// The backup.
    pub id: BackupId,
    /// Objects deleted.
    pub objects: u64,
    /// Bytes these took.
    pub freed: u64,
    /// Whether an earlier prune had begun it; objects and bytes are those that were left.
    pub resumed: bool,
}

/// A copy that stays for now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spared {
    /// The sink.
    pub sink: SinkId,
    /// The backup.
    pub id: BackupId,
    /// Why.
    pub why: String,
}

/// A copy that could not be deleted.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotDeleted {
    /// The sink.
    pub sink: SinkId,
    /// The backup.
    pub id: BackupId,
    /// Whether its manifest is gone all the same: it is not listed any more, and the next prune deletes the rest.
    pub manifest_gone: bool,
    /// Why, and what to do about it.
    pub error: Error,
}

/// A copy whose artifacts were moved to another storage class.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Archived {
    /// The sink.
    pub sink: SinkId,
    /// The backup.
    pub id: BackupId,
    /// The class.
    pub class: String,
    /// Objects moved.
    pub objects: u64,
}

/// A copy whose artifacts could not be moved to another storage class. It is whole, and the next prune tries again.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotArchived {
    /// The sink.
    pub sink: SinkId,
    /// The backup.
    pub id: BackupId,
    /// Why.
    pub error: Error,
}

impl PruneReport {
    pub(super) fn new(set: SetName) -> Self {
        Self {
            set,
            deleted: Vec::new(),
            spared: Vec::new(),
            not_deleted: Vec::new(),
            archived: Vec::new(),
            not_archived: Vec::new(),
            failed: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, done: Done, moved: Moved) {
        self.archived.extend(moved.archived);
        self.not_archived.extend(moved.not_archived);
        self.deleted.extend(done.deleted);
        self.spared.extend(done.spared);
        self.not_deleted.extend(done.not_deleted);
    }

    /// Bytes freed on all sinks together.
    pub fn freed_bytes(&self) -> u64 {
        self.deleted.iter().map(|deleted| deleted.freed).sum()
    }

    /// Whether every sink was worked through and refused nothing.
    pub fn is_complete(&self) -> bool {
        self.not_deleted.is_empty() && self.not_archived.is_empty() && self.failed.is_empty()
    }

    /// The report, or an error that names the first failure.
    pub fn into_result(mut self) -> Result<Self> {
        if self.is_complete() {
            return Ok(self);
        }
        let error = |kind| {
            Error::new(kind, "prune")
                .message("not everything that the plan says could be done")
                .with("set", &self.set)
                .with("deleted", self.deleted.len())
                .with("not_deleted", self.not_deleted.len())
                .with("failed_sinks", self.failed.len())
        };
        Err(match (self.failed.first(), self.not_deleted.first()) {
            (Some((sink, why)), _) => {
                let error = error(why.kind()).with("sink", sink);
                error.caused_by(self.failed.swap_remove(0).1)
            }
            (None, Some(first)) => {
                let error = error(first.error.kind()).with("sink", &first.sink).with("backup", first.id);
                error.caused_by(self.not_deleted.swap_remove(0).error)
            }
            (None, None) => match self.not_archived.pop() {
                Some(NotArchived { sink, id, error: why }) => {
                    error(why.kind()).with("sink", sink).with("backup", id).caused_by(why)
                }
                None => error(ErrorKind::Internal),
            },
        })
    }
}

impl fmt::Display for PruneReport {
    /// One line per copy, and a summary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for DeletedBackup { sink, id, freed, resumed, .. } in &self.deleted {
            let how = if *resumed { "deleted the rest of" } else { "deleted" };
            writeln!(f, "{how} {id} on {sink}, {freed} bytes")?;
        }
        for Spared { sink, id, why } in &self.spared {
            writeln!(f, "spared {id} on {sink}: {why}")?;
        }
        for NotDeleted { sink, id, error, .. } in &self.not_deleted {
            writeln!(f, "could not delete {id} on {sink}: {}", error.chain())?;
        }
        for Archived { sink, id, class, objects, .. } in &self.archived {
            writeln!(f, "moved {objects} objects of {id} on {sink} to {class}")?;
        }
        for NotArchived { sink, id, error, .. } in &self.not_archived {
            writeln!(f, "could not move {id} on {sink}: {}", error.chain())?;
        }
        for (sink, error) in &self.failed {
            writeln!(f, "failed on {sink}: {}", error.chain())?;
        }
        write!(f, "deleted {} copies of {}, freed {} bytes", self.deleted.len(), self.set, self.freed_bytes())
    }
}
