//! Grandfather, father, son: one backup an hour, a day, a week, a month, a year.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, Datelike as _, NaiveDateTime, Offset as _, TimeZone as _, Timelike as _, Utc};
use chrono_tz::Tz;

use super::keep::decide_each;
use super::standing::countable;
use super::summary::BackupSummary;
use super::{Decision, RetentionPolicy};
use crate::name::BackupId;

/// A kind of slot of [`Gfs`]. Reasons begin with its name: `"yearly 2026"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Slot {
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Slot {
    const ALL: [Self; 5] = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];

    /// The slot a reason for keeping names, if it is one of [`Gfs`].
    pub(crate) fn of_reason(reason: &str) -> Option<Self> {
        let name = reason.split(' ').next()?;
        Self::ALL.into_iter().find(|slot| slot.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Keeps the newest backup of each of the last so many hours, days, weeks, months and years **that have one**.
///
/// * A slot is a calendar hour, day, ISO 8601 week (Monday to Sunday, the week of the year that holds its
///   Thursday), month or year in [`time_zone`](Self::time_zone), UTC unless given. Days of 23 and 25 hours are days. The hour a
///   clock repeats in autumn is two hours.
/// * The **newest** backup of a slot stands for it, as in restic and borg. Pruning often or seldom ends with the
///   same backups, because what stands for a finished slot never changes.
/// * Only slots that have a backup are counted: a week without backups takes no place, so after a month
///   off-line `daily(30)` still holds thirty days. Slots of one kind never take places of another; one backup
///   may stand for several.
/// * Only backups that count ([`countable`]) stand for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gfs {
    hourly: usize,
    daily: usize,
    weekly: usize,
    monthly: usize,
    yearly: usize,
    zone: Tz,
}

impl Default for Gfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Gfs {
    /// Keeps nothing until told how many of what.
    pub fn new() -> Self {
        Self { hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, zone: Tz::UTC }
    }

    /// Keeps one for each of the last `n` hours that have one.
    pub fn hourly(mut self, n: usize) -> Self {
        self.hourly = n;
        self
    }

    /// Keeps one for each of the last `n` days that have one.
    pub fn daily(mut self, n: usize) -> Self {
        self.daily = n;
        self
    }

    /// Keeps one for each of the last `n` ISO weeks that have one.
    pub fn weekly(mut self, n: usize) -> Self {
        self.weekly = n;
        self
    }

    /// Keeps one for each of the last `n` months that have one.
    pub fn monthly(mut self, n: usize) -> Self {
        self.monthly = n;
        self
    }

    /// Keeps one for each of the last `n` years that have one.
    pub fn yearly(mut self, n: usize) -> Self {
        self.yearly = n;
        self
    }

    /// Where days begin: `Tz::Europe__Berlin`, or `"Europe/Berlin".parse()`.
    pub fn time_zone(mut self, zone: Tz) -> Self {
        self.zone = zone;
        self
    }

    fn rules(&self) -> [(usize, SlotName); 5] {
        [
            (self.hourly, hour),
            (self.daily, day),
            (self.weekly, week),
            (self.monthly, month),
            (self.yearly, year),
        ]
    }
}

impl RetentionPolicy for Gfs {
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        let places: Vec<_> = countable(newest_first, now)
            .into_iter()
            .map(|backup| (backup.id, Local::new(backup.id.time(), self.zone)))
            .collect();
        let mut reasons: BTreeMap<BackupId, Vec<String>> = BTreeMap::new();
        for (quota, name) in self.rules() {
            let mut taken = BTreeSet::new();
            for (id, local) in &places {
                if taken.len() == quota {
                    break;
                }
                let slot = name(local);
                if taken.insert(slot.clone()) {
                    reasons.entry(*id).or_default().push(slot);
                }
            }
        }
        decide_each(newest_first, |b| reasons.remove(&b.id))
    }
}

/// A moment as the clock on the wall shows it.
struct Local {
    time: NaiveDateTime,
    offset: chrono::FixedOffset,
}

impl Local {
    fn new(moment: DateTime<Utc>, zone: Tz) -> Self {
        let utc = moment.naive_utc();
        let offset = zone.offset_from_utc_datetime(&utc).fix();
        // Only within hours of the first and last representable moments does the addition fail.
        Self { time: utc.checked_add_offset(offset).unwrap_or(utc), offset }
    }
}

/// The name of the slot a moment falls into. It identifies the slot and is the reason a person reads.
type SlotName = fn(&Local) -> String;

fn hour(local: &Local) -> String {
    // The offset tells the two passes of the hour that autumn repeats apart.
    format!("{} {} {:02}:00{}", Slot::Hourly, local.time.date(), local.time.hour(), local.offset)
}

fn day(local: &Local) -> String {
    format!("{} {}", Slot::Daily, local.time.date())
}

fn week(local: &Local) -> String {
    let week = local.time.iso_week();
    format!("{} {}-W{:02}", Slot::Weekly, week.year(), week.week())
}

fn month(local: &Local) -> String {
    format!("{} {}-{:02}", Slot::Monthly, local.time.year(), local.time.month())
}

fn year(local: &Local) -> String {
    format!("{} {}", Slot::Yearly, local.time.year())
}
