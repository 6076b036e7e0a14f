//! What lists, policies and plans know of a backup.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::log::LogPosition;
use crate::name::{BackupId, SetName, SinkId};
use crate::placement::Shortfall;

/// A backup as lists show it.
// Four independent facts, each recorded as it is; no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BackupSummary {
    /// Its id.
    pub id: BackupId,
    /// Its set.
    pub set: SetName,
    /// Full, incremental or log slice.
    pub kind: BackupKind,
    /// Start, by the producer's clock.
    pub started: DateTime<Utc>,
    /// End, by the producer's clock.
    pub finished: DateTime<Utc>,
    /// The moment a restore of this backup alone leads to, by the datastore's clock, where its source knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_at: Option<DateTime<Utc>>,
    /// Where replay of the set's continuous log begins after a restore of this full or incremental. Only
    /// backups that have it can be combined with log slices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_position: Option<LogPosition>,
    /// Backups whose artifacts this one refers to.
    pub references: BTreeSet<BackupId>,
    /// Labels given by the caller.
    pub labels: BTreeMap<String, String>,
    /// Whether it stays until somebody unpins it.
    #[serde(default)]
    pub pinned: bool,
    /// Until when it stays whatever the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<DateTime<Utc>>,
    /// What made it: `"postgres"`.
    pub source_kind: String,
    /// Plain bytes of its own artifacts.
    pub plain_size: u64,
    /// Bytes its own objects take on one sink.
    pub stored_size: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// Whether its manifest's seal was verified, or nothing was there to verify it with because the repository
    /// has no keys.
    pub sealed: bool,
    /// Whether fewer sinks hold it now than its repository required when it was made, or they break its copy rule. A replication can end this; what
    /// was so when it was committed is in [`Manifest::good_copies`](crate::Manifest::good_copies).
    pub degraded: bool,
    /// Which parts of the repository's [`CopyRule`](crate::CopyRule) its copies do not keep. Any makes it degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<Shortfall>,
    /// The sinks that hold its manifest.
    pub copies: Vec<SinkId>,
}

impl BackupSummary {
    /// A sealed, complete backup that took no time and holds nothing; the fields are public to be filled in.
    pub fn new(id: BackupId, set: SetName, kind: BackupKind) -> Self {
        Self {
            id,
            set,
            kind,
            started: id.time(),
            finished: id.time(),
            consistent_at: None,
            log_position: None,
            references: BTreeSet::new(),
            labels: BTreeMap::new(),
            pinned: false,
            keep_until: None,
            source_kind: String::new(),
            plain_size: 0,
            stored_size: 0,
            encrypted: false,
            sealed: true,
            degraded: false,
            shortfalls: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Whether this is a log slice, on which policies that count do not decide.
    pub fn is_log(&self) -> bool {
        matches!(self.kind, BackupKind::Log { .. })
    }

    /// The moment a restore of this backup alone leads to, as exactly as it is known.
    pub fn moment(&self) -> DateTime<Utc> {
        self.consistent_at.unwrap_or(self.finished)
    }

    /// Every backup this one cannot be restored without.
    pub fn needs(&self) -> impl Iterator<Item = BackupId> + '_ {
        let parent = match self.kind {
            BackupKind::Incremental { parent } => Some(parent),
            _ => None,
        };
        self.references.iter().copied().chain(parent).filter(|id| *id != self.id)
    }
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackupKind {
    /// Everything.
    Full,
    /// What changed since a parent; refers to earlier backups for the rest.
    Incremental {
        /// The backup it was made against.
        parent: BackupId,
    },
    /// A slice of a continuous log.
    Log {
        /// Position where the slice begins. A slice continues another whose `to` is not before it.
        from: LogPosition,
        /// Position behind its last entry.
        to: LogPosition,
        /// The moment of its first entry, by the datastore's clock.
        from_time: DateTime<Utc>,
        /// The moment up to which it is complete, by the datastore's clock.
        to_time: DateTime<Utc>,
    },
}
