//! Which backups stay: [`RetentionPolicy`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::name::{BackupId, SetName, SinkId};

/// Decides which backups of a set stay. Pure: no clock, no input or output.
pub trait RetentionPolicy: Debug + Send + Sync {
    /// A decision for each backup, given newest first. A backup without a decision is kept.
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision>;

    /// The time for which this policy keeps every new backup at least, if it has one. Feeds object locks.
    fn minimum_keep(&self) -> Option<Duration> {
        None
    }
}

/// What a policy decided for one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It stays, for these reasons, each a phrase a person understands: `"daily 2026-11-20"`.
    Keep {
        /// Why.
        reasons: Vec<String>,
    },
    /// Nothing keeps it.
    Forget,
}

/// A backup as lists show it.
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
    /// Backups whose artifacts this one refers to.
    pub references: BTreeSet<BackupId>,
    /// Labels given by the caller.
    pub labels: BTreeMap<String, String>,
    /// What made it: `"postgres"`.
    pub source_kind: String,
    /// Plain bytes of its own artifacts.
    pub plain_size: u64,
    /// Bytes its own objects take on one sink.
    pub stored_size: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// Whether its manifest's seal was verified.
    pub sealed: bool,
    /// Whether it has fewer good copies than its repository required when it was made.
    pub degraded: bool,
    /// The sinks that hold its manifest.
    pub copies: Vec<SinkId>,
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
        /// Position where the slice begins.
        from: String,
        /// Position where it ends.
        to: String,
    },
}
