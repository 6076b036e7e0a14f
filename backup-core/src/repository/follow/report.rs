//! What following a log did.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::name::{BackupId, SetName};
use crate::retention::LogPosition;

/// What following a log did, until it was stopped or had caught up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FollowReport {
    /// The set.
    pub set: SetName,
    /// Slices stored.
    pub slices: u64,
    /// Of these, how many reached fewer sinks than required at first.
    pub degraded: u64,
    /// Slices that not every sink holds, in spite of the attempts to replicate them.
    pub lacking: Vec<BackupId>,
    /// The newest slice stored by this run.
    pub newest: Option<BackupId>,
    /// The end of the log on the sinks.
    pub position: Option<LogPosition>,
    /// The moment up to which the log was stored by this run, by the datastore's clock.
    pub to_time: Option<DateTime<Utc>>,
    /// Where the log broke off and went on, if the source had lost a part: `(from, to)`.
    pub gaps: Vec<(LogPosition, LogPosition)>,
    /// Plain bytes stored.
    pub plain_size: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl FollowReport {
    pub(super) fn new(set: SetName) -> Self {
        Self {
            set,
            slices: 0,
            degraded: 0,
            lacking: Vec::new(),
            newest: None,
            position: None,
            to_time: None,
            gaps: Vec::new(),
            plain_size: 0,
            elapsed: Duration::ZERO,
        }
    }
}
