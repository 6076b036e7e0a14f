//! The plain policies: a number, a time, a label.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::standing::{CLOCK_TOLERANCE, countable};
use super::summary::BackupSummary;
use super::{Decision, RetentionPolicy, after, before, spoken};
use crate::name::BackupId;

/// Forgets everything in `backups` but what `keep` has a reason for.
pub(super) fn decide_each(
    backups: &[BackupSummary],
    mut keep: impl FnMut(&BackupSummary) -> Option<Vec<String>>,
) -> BTreeMap<BackupId, Decision> {
    backups
        .iter()
        .map(|b| (b.id, keep(b).map_or(Decision::Forget, |reasons| Decision::Keep { reasons })))
        .collect()
}

/// Keeps the newest `n` backups that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepLast(usize);

impl KeepLast {
    /// Keeps the newest `n`.
    pub fn new(n: usize) -> Self {
        Self(n)
    }
}

impl RetentionPolicy for KeepLast {
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        let places: BTreeMap<_, _> =
            countable(newest_first, now).iter().take(self.0).zip(1_usize..).map(|(b, n)| (b.id, n)).collect();
        decide_each(newest_first, |b| places.get(&b.id).map(|n| vec![format!("last {n} of {}", self.0)]))
    }
}

/// Keeps every full and incremental that began within a time before the newest backup that counts.
///
/// The time is measured from the newest backup and not from now, unless that is earlier: when backups stop
/// being made, the old ones do not run out, and a clock that jumps ahead deletes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepWithin(Duration);

impl KeepWithin {
    /// Keeps what began within `time`.
    pub fn new(time: Duration) -> Self {
        Self(time)
    }

    /// Keeps what began within `n` hours.
    pub fn hours(n: u32) -> Self {
        Self(Duration::from_secs(u64::from(n) * 3_600))
    }

    /// Keeps what began within `n` times 24 hours.
    pub fn days(n: u32) -> Self {
        Self(Duration::from_secs(u64::from(n) * 86_400))
    }
}

/// The start of the newest backup that counts, or of the newest at all if none does, but never after `now`.
fn newest_start(backups: &[BackupSummary], now: DateTime<Utc>) -> DateTime<Utc> {
    let any = || {
        let limit = after(now, CLOCK_TOLERANCE);
        backups.iter().map(|b| b.id.time()).filter(|start| *start <= limit).max()
    };
    let newest = countable(backups, now).first().map(|b| b.id.time()).or_else(any);
    newest.map_or(now, |start| start.min(now))
}

impl RetentionPolicy for KeepWithin {
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        let since = before(newest_start(newest_first, now), self.0);
        decide_each(newest_first, |b| {
            (!b.is_log() && b.id.time() >= since).then(|| vec![format!("within {}", spoken(self.0))])
        })
    }

    fn minimum_keep(&self) -> Option<Duration> {
        Some(self.0)
    }
}

/// Keeps every backup, whatever its kind, that carries a label. Combine it with [`KeepWithin`] by `and` to
/// give the label an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepLabelled {
    key: String,
    value: Option<String>,
}

impl KeepLabelled {
    /// Keeps what carries the label `key` with exactly this `value`.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }

    /// Keeps what carries the label `key` with any value.
    pub fn any(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None }
    }
}

impl RetentionPolicy for KeepLabelled {
    fn decide(&self, newest_first: &[BackupSummary], _now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        decide_each(newest_first, |b| {
            let found = b.labels.get(&self.key)?;
            let fits = self.value.as_ref().is_none_or(|value| value == found);
            fits.then(|| vec![format!("labelled {}={found}", self.key)])
        })
    }
}
