//! Progress and events: [`Observer`].

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::Error;
use crate::key::Key;
use crate::name::{BackupId, SetName, SinkId};
use crate::retention::LogPosition;
use crate::source::Warning;

/// Watches what the engine does: progress bars, logs, metrics. Called from many tasks; must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync> Observer for F {
    fn on_event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// Something the engine did or met.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A verb begins.
    Started {
        /// `"backup"`, `"restore"`, `"verify"`.
        verb: &'static str,
        /// The set.
        set: &'a SetName,
        /// The backup.
        id: BackupId,
    },
    /// An artifact begins.
    ArtifactStarted {
        /// Its name.
        artifact: &'a str,
    },
    /// An artifact is complete.
    ArtifactFinished {
        /// Its name.
        artifact: &'a str,
        /// Its plain bytes.
        plain: u64,
        /// Its stored bytes.
        stored: u64,
    },
    /// An artifact was taken over from a run that died, and is not read from the source.
    ArtifactAdopted {
        /// Its name.
        artifact: &'a str,
        /// The run that died.
        from: BackupId,
        /// Its plain bytes.
        plain: u64,
    },
    /// Bytes moved. Sent a few times a second.
    Progress {
        /// Plain bytes so far, of the whole run.
        plain: u64,
        /// Stored bytes so far, of the whole run.
        stored: u64,
        /// Expected plain bytes, if known.
        total: Option<u64>,
        /// Plain bytes per second since the start.
        rate: f64,
    },
    /// A sink operation failed and is tried again.
    Retrying {
        /// The sink.
        sink: &'a SinkId,
        /// The error.
        error: &'a Error,
        /// Which try failed, from 1.
        attempt: u32,
        /// The wait before the next.
        after: Duration,
    },
    /// A sink is given up for the rest of the run.
    SinkFailed {
        /// The sink.
        sink: &'a SinkId,
        /// The error.
        error: &'a Error,
    },
    /// A copy of an object, or a block of it, is missing or damaged; reading goes on from another copy.
    CopyDamaged {
        /// The sink.
        sink: &'a SinkId,
        /// The object.
        key: &'a Key,
        /// The error.
        error: &'a Error,
    },
    /// A backup was deleted from a sink by a prune, or what was left of one by a sweep.
    Deleted {
        /// The sink.
        sink: &'a SinkId,
        /// The set.
        set: &'a SetName,
        /// The backup.
        id: BackupId,
        /// Stored bytes that were freed.
        freed: u64,
    },
    /// A slice of a continuous log is stored.
    LogSlice {
        /// The set.
        set: &'a SetName,
        /// The slice.
        id: BackupId,
        /// Where it begins.
        from: &'a LogPosition,
        /// Where it ends, and the log is stored up to.
        to: &'a LogPosition,
        /// The moment up to which the log is stored, by the datastore's clock.
        to_time: DateTime<Utc>,
        /// Whether fewer sinks hold it than required.
        degraded: bool,
    },
    /// Entries of a continuous log are missing: no moment after them can be restored from a backup before them.
    LogGap {
        /// The set.
        set: &'a SetName,
        /// Where the log breaks off.
        from: &'a LogPosition,
        /// Where it goes on; `None` while that is unknown.
        to: Option<&'a LogPosition>,
        /// The sink on which they are missing, while another has them; `None` where no sink has.
        sink: Option<&'a SinkId>,
    },
    /// Something a person should know.
    Warning(&'a Warning),
    /// A verb ended.
    Finished {
        /// The verb.
        verb: &'static str,
        /// The set.
        set: &'a SetName,
        /// The backup.
        id: BackupId,
        /// The error, if it failed.
        error: Option<&'a Error>,
        /// How long it took.
        elapsed: Duration,
    },
}
