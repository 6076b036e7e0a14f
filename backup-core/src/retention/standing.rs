//! Which backups count.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::summary::BackupSummary;
use crate::name::BackupId;

/// How far in the future a backup may date before it no longer counts: clocks of several producers differ, and
/// a clock set wrongly by a day is corrected before it does harm.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(24 * 3_600);

/// What retention may rely on a backup for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Standing {
    /// A full or incremental that counts.
    Good,
    /// Fewer good copies than were required.
    Degraded,
    /// It needs a backup that is not in the list or not sealed, directly or through others.
    Incomplete,
    /// It dates from more than [`CLOCK_TOLERANCE`] after now.
    Future,
    /// Its manifest's seal was not verified.
    Unsealed,
    /// A log slice that can be used.
    Log,
}

/// The standing of each backup of a list.
pub fn standings(backups: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Standing> {
    let broken = broken(backups);
    let limit = super::after(now, CLOCK_TOLERANCE);
    let standing = |backup: &BackupSummary| {
        if !backup.sealed {
            Standing::Unsealed
        } else if backup.id.time() > limit {
            Standing::Future
        } else if broken.contains(&backup.id) {
            Standing::Incomplete
        } else if backup.is_log() {
            Standing::Log
        } else if backup.degraded {
            Standing::Degraded
        } else {
            Standing::Good
        }
    };
    backups.iter().map(|backup| (backup.id, standing(backup))).collect()
}

/// The backups that count ([`Standing::Good`]), newest first: those a policy gives its places to.
pub fn countable(backups: &[BackupSummary], now: DateTime<Utc>) -> Vec<&BackupSummary> {
    let standings = standings(backups, now);
    let mut good: Vec<_> = backups.iter().filter(|b| standings.get(&b.id) == Some(&Standing::Good)).collect();
    good.sort_by_key(|b| std::cmp::Reverse(b.id));
    good.dedup_by_key(|b| b.id);
    good
}

/// The ids that cannot be restored from what is in the list: those that need something absent or unsealed,
/// those that need one of these, and so on.
fn broken(backups: &[BackupSummary]) -> BTreeSet<BackupId> {
    let sound: BTreeSet<_> = backups.iter().filter(|b| b.sealed).map(|b| b.id).collect();
    let misses = |b: &&BackupSummary| b.needs().any(|needed| !sound.contains(&needed));
    let mut broken: BTreeSet<_> = backups.iter().filter(misses).map(|b| b.id).collect();
    if broken.is_empty() {
        return broken;
    }
    let mut needed_by: BTreeMap<BackupId, Vec<BackupId>> = BTreeMap::new();
    for backup in backups {
        for needed in backup.needs() {
            needed_by.entry(needed).or_default().push(backup.id);
        }
    }
    let mut queue: Vec<_> = broken.iter().copied().collect();
    while let Some(id) = queue.pop() {
        for child in needed_by.get(&id).into_iter().flatten() {
            if broken.insert(*child) {
                queue.push(*child);
            }
        }
    }
    broken
}
