//! Restoring to any moment: bases, slices, and the window in which they stay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::chain::{Log, LogGap};
use super::log::LogPosition;
use super::standing::{CLOCK_TOLERANCE, Standing, countable, standings};
use super::summary::{BackupKind, BackupSummary};
use super::{Decision, RetentionPolicy, after, before, keep::decide_each, spoken};
use crate::name::BackupId;

/// Keeps what is needed to restore to any moment in the last `window`: the newest good full or incremental at
/// or before the window's start, every later one, and every log slice from the oldest of these on.
///
/// The window ends at the newest moment that can be restored, if that is before now: when the log stops, the
/// window stops with it instead of running out. What a gap in the log already made impossible stays impossible;
/// no new gap is opened.
pub fn pitr_window(window: Duration) -> PitrWindow {
    PitrWindow(window)
}

/// The policy [`pitr_window`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PitrWindow(Duration);

impl RetentionPolicy for PitrWindow {
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        let good = countable(newest_first, now);
        let log = Log::new(newest_first);
        let since = before(window_end(newest_first, &good, &log, now), self.0);
        let anchors = anchors(newest_first, &good, &log, since);
        let inside = |b: &BackupSummary| b.id.time().max(b.moment()) >= since;
        let bases = newest_first.iter().filter(|b| !b.is_log() && (anchors.contains(&b.id) || inside(b)));
        let need = Need::of(bases);
        decide_each(newest_first, |b| {
            let reason = match &b.kind {
                BackupKind::Log { to, to_time, .. } => {
                    need.covers(to, *to_time).then(|| format!("log of the last {}", spoken(self.0)))
                }
                _ if inside(b) => Some(format!("within the last {}", spoken(self.0))),
                _ => anchors.contains(&b.id).then(|| format!("base of the last {}", spoken(self.0))),
            };
            reason.map(|reason| vec![reason])
        })
    }

    fn minimum_keep(&self) -> Option<Duration> {
        Some(self.0)
    }

    fn log_window(&self) -> Option<Duration> {
        Some(self.0)
    }
}

/// The newest moment that good bases and slices lead to, but never after `now`.
fn window_end(
    backups: &[BackupSummary],
    good: &[&BackupSummary],
    log: &Log<'_>,
    now: DateTime<Utc>,
) -> DateTime<Utc> {
    let limit = after(now, CLOCK_TOLERANCE);
    let moments = good.iter().map(|b| b.moment()).chain(log.runs.iter().map(|run| run.until));
    let newest = moments.filter(|moment| *moment <= limit).max();
    let any = || backups.iter().map(|b| b.id.time()).filter(|start| *start <= limit).max();
    newest.or_else(any).map_or(now, |moment| moment.min(now))
}

/// The backups from which the window's first moment is reached: the newest good one before it, and, where the
/// log does not lead from that one into the window, the newest from which it does, a degraded one if need be.
fn anchors(
    backups: &[BackupSummary],
    good: &[&BackupSummary],
    log: &Log<'_>,
    since: DateTime<Utc>,
) -> BTreeSet<BackupId> {
    let reaches = |b: &BackupSummary| log.reach(b).is_some_and(|end| end >= since);
    let newest = |of: &mut dyn Iterator<Item = &BackupSummary>| {
        of.filter(|b| b.moment() <= since).max_by_key(|b| (b.moment(), b.id)).map(|b| b.id)
    };
    let reaching = newest(&mut good.iter().copied().filter(|b| reaches(b)))
        .or_else(|| newest(&mut usable(backups).into_iter().filter(|b| reaches(b))));
    newest(&mut good.iter().copied()).into_iter().chain(reaching).collect()
}

/// The fulls and incrementals that can be restored from at least one sink, whatever their date: a date in the
/// future keeps nobody from restoring.
pub(super) fn usable(backups: &[BackupSummary]) -> Vec<&BackupSummary> {
    let standings = standings(backups, DateTime::<Utc>::MAX_UTC);
    let usable = |b: &&BackupSummary| {
        !b.is_log() && matches!(standings.get(&b.id), Some(Standing::Good | Standing::Degraded))
    };
    backups.iter().filter(usable).collect()
}

/// Which slices some backups need.
///
/// A slice is needless only if it lies before all of them both by position and by time: positions begin again
/// when a datastore is created anew, and clocks go back.
#[derive(Debug)]
pub(super) struct Need {
    position: Option<LogPosition>,
    since: DateTime<Utc>,
}

impl Need {
    /// What `bases` need; everything if there are none, because the first base may be in the making.
    pub(super) fn of<'a>(bases: impl Iterator<Item = &'a BackupSummary>) -> Self {
        let mut since = None;
        let mut position: Option<&LogPosition> = None;
        for base in bases {
            // Without a position there is only the producer's clock to go by.
            let start = match base.log_position {
                Some(_) => base.moment(),
                None => before(base.started.min(base.moment()), CLOCK_TOLERANCE),
            };
            since = Some(since.map_or(start, |earliest: DateTime<Utc>| earliest.min(start)));
            position = match (position, &base.log_position) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b.as_ref()),
            };
        }
        Self { position: position.cloned(), since: since.unwrap_or(DateTime::<Utc>::MIN_UTC) }
    }

    /// Whether a slice that ends there is needed.
    pub(super) fn covers(&self, to: &LogPosition, to_time: DateTime<Utc>) -> bool {
        to_time > self.since || self.position.as_ref().is_some_and(|position| to > position)
    }
}

/// An interval of which every moment can be restored, by the datastore's clock, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitrRange {
    /// The first moment.
    pub from: DateTime<Utc>,
    /// The last moment.
    pub to: DateTime<Utc>,
}

impl PitrRange {
    /// Whether `moment` can be restored.
    pub fn contains(&self, moment: DateTime<Utc>) -> bool {
        self.from <= moment && moment <= self.to
    }
}

/// The intervals in which every moment can be restored from the backups and log slices of one set, oldest
/// first, not overlapping.
///
/// A range begins at the [`moment`](BackupSummary::moment) of a sealed full or incremental whose references are
/// present and that has a [`log_position`](BackupSummary::log_position), and goes on as long as slices join
/// without a gap. The moment of a backup without a joining slice is no range; it is restored by its id.
/// Degraded backups are used: they can be restored from at least one sink.
pub fn pitr_ranges(backups: &[BackupSummary]) -> Vec<PitrRange> {
    let log = Log::new(backups);
    let mut ranges: Vec<_> = usable(backups)
        .into_iter()
        .filter_map(|b| Some(PitrRange { from: b.moment(), to: log.reach(b)? }))
        .filter(|range| range.from < range.to)
        .collect();
    ranges.sort_by_key(|range| (range.from, range.to));
    let mut merged: Vec<PitrRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.from <= last.to => last.to = last.to.max(range.to),
            _ => merged.push(range),
        }
    }
    merged
}

/// The stretches of the log that are missing between slices of one set, oldest first.
pub fn pitr_gaps(backups: &[BackupSummary]) -> Vec<LogGap> {
    Log::new(backups).gaps()
}
