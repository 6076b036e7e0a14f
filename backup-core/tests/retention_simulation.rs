//! Five simulated years: backups, incrementals, a log with gaps, skipped weeks, pins, wrong clocks and prunes
//! that die half-way, checked against what was ever made by arithmetic of the test's own.
//!
//! 20 seeds, or as many as `BACKUP_TORTURE` says; `scripts/torture.d/follow` runs 50.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backup_core::{
    BackupId, BackupKind, BackupSummary, Gfs, KeepLabelled, LogPosition, PrunePlan, RetentionPolicy, SetName,
    Tz, pitr_ranges, pitr_window,
};
use backup_testkit::retention::Random;
use chrono::{DateTime, Datelike as _, Utc};

const DAY: i64 = 86_400;
const WINDOW_DAYS: i64 = 10;
const YEARS: i64 = 5;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

fn position(seconds: i64) -> LogPosition {
    LogPosition::from_number(u64::try_from(seconds).unwrap())
}

/// What the test itself knows of a backup.
#[derive(Clone, Debug)]
struct Made {
    summary: BackupSummary,
    /// The true moment of a base, or the true start and end of a slice, in seconds.
    from: i64,
    to: i64,
    /// Numbers of the day, week, month and year of its id in the zone.
    slots: [i64; 4],
}

/// Weeks are counted from Monday 1 January of the year 1, without the calendar's own weeks.
fn slots(summary: &BackupSummary, zone: Tz) -> [i64; 4] {
    let date = summary.id.time().with_timezone(&zone).date_naive();
    let (day, year) = (i64::from(date.num_days_from_ce()), i64::from(date.year()));
    [day, (day - 1).div_euclid(7), year * 12 + i64::from(date.month0()), year]
}

struct World {
    random: Random,
    zone: Tz,
    /// True seconds.
    now: i64,
    /// Every base ever made, and the slices and bases that are there.
    bases: Vec<Made>,
    present: BTreeMap<BackupId, Made>,
    /// Intervals of the log that were never stored.
    lost: Vec<(i64, i64)>,
    logged: i64,
    /// The latest any pruner believed it to be.
    latest_clock: i64,
    last_full: i64,
    prunes: usize,
    deleted: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let zones =
            [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York, Tz::America__Sao_Paulo, Tz::Pacific__Apia];
        let zone = zones[usize::try_from(random.below(5)).unwrap()];
        let now = 1_500_000_000 + random.signed(300 * DAY);
        Self {
            random,
            zone,
            now,
            bases: Vec::new(),
            present: BTreeMap::new(),
            lost: Vec::new(),
            logged: now,
            latest_clock: now,
            last_full: 0,
            prunes: 0,
            deleted: 0,
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.below(100) < percent
    }

    /// The log up to now in slices of about six hours; some are never stored, some degraded, and of these some are stored
    /// again together with what follows.
    fn follow_log(&mut self) {
        while self.now - self.logged > 1_800 {
            let end = (self.logged + 3 * 3_600 + self.random.signed(6 * 3_600)).min(self.now);
            if self.chance(1) {
                self.lost.push((self.logged, end));
                self.logged = end;
                continue;
            }
            let degraded = self.chance(3);
            let kind = BackupKind::Log {
                from: position(self.logged),
                to: position(end),
                from_time: at(self.logged),
                to_time: at(end),
            };
            let mut summary = self.summary(end, kind);
            summary.degraded = degraded;
            self.present.insert(summary.id, Made { summary, from: self.logged, to: end, slots: [0; 4] });
            // A degraded slice is in the store. The next one begins behind it, or, with another follower, where it began.
            if !degraded || self.chance(50) {
                self.logged = end;
            } else if end == self.now {
                break;
            }
        }
    }

    fn summary(&mut self, clock: i64, kind: BackupKind) -> BackupSummary {
        let set = SetName::parse("simulated/set").unwrap();
        BackupSummary::new(BackupId::new(at(clock), self.random.bits()), set, kind)
    }

    fn back_up(&mut self) {
        let clock = match self.random.below(200) {
            0..=1 => self.now - 3 * DAY,
            2..=3 => self.now + 23 * 3_600,
            4 => self.now + 40 * DAY,
            _ => self.now,
        };
        let parent = self.present.values().rev().map(|m| &m.summary).find(|b| !b.is_log() && !b.degraded);
        let parent = parent.map(|b| (b.id, b.references.clone()));
        let incremental = self.now - self.last_full < 7 * DAY;
        let mut references = BTreeSet::new();
        let kind = match parent {
            Some((id, older)) if incremental => {
                references = older;
                references.insert(id);
                BackupKind::Incremental { parent: id }
            }
            _ => {
                self.last_full = self.now;
                BackupKind::Full
            }
        };
        let mut summary = self.summary(clock, kind);
        summary.references = references;
        summary.consistent_at = Some(at(self.now));
        summary.log_position = Some(position(self.now));
        summary.degraded = self.chance(5);
        summary.pinned = self.chance(1);
        if self.chance(1) {
            summary.keep_until = Some(at(self.now + 300 * DAY));
        }
        if self.chance(2) {
            summary.labels.insert("reason".to_owned(), "release".to_owned());
        }
        let slots = slots(&summary, self.zone);
        let made = Made { summary, from: self.now, to: self.now, slots };
        if self.present.insert(made.summary.id, made.clone()).is_none() {
            self.bases.push(made);
        }
    }

    fn prune(&mut self, policy: &dyn RetentionPolicy) {
        let clock = match self.random.below(10) {
            0 => self.now - DAY,
            1 => self.now + DAY,
            _ => self.now,
        };
        self.latest_clock = self.latest_clock.max(clock);
        let list: Vec<_> = self.present.values().map(|m| m.summary.clone()).collect();
        let plan = PrunePlan::new(&list, policy, at(clock));
        let stop = if self.chance(20) {
            usize::try_from(self.random.below(u64::try_from(plan.deletions().len()).unwrap() + 1)).unwrap()
        } else {
            plan.deletions().len()
        };
        for id in &plan.deletions()[..stop] {
            assert!(self.present.remove(id).is_some());
        }
        self.prunes += 1;
        self.deleted += stop;
    }

    fn is_whole(&self, base: &BackupSummary) -> bool {
        base.needs().all(|needed| self.present.contains_key(&needed))
    }

    /// Whether `moment` could be restored if nothing had ever been deleted.
    fn was_restorable(&self, moment: i64) -> bool {
        let newest = self.bases.iter().rev().find(|base| base.from <= moment);
        newest.is_some_and(|base| {
            moment <= self.logged && !self.lost.iter().any(|(from, to)| base.from < *to && *from < moment)
        })
    }

    /// Whether it can be restored from what is there: some base, and slices that lead from it to the moment.
    fn is_restorable(&self, slices: &[(i64, i64)], moment: i64) -> bool {
        let mut bases = self.present.values().rev().filter(|m| !m.summary.is_log() && m.from <= moment);
        bases.any(|base| {
            let mut reached = base.from;
            for (from, to) in slices {
                if *from > reached {
                    break;
                }
                reached = reached.max(*to);
            }
            reached >= moment && self.is_whole(&base.summary)
        })
    }

    fn check(&mut self, seed: u64) {
        let context = format!("seed {seed} at {}", at(self.now));
        for made in self.present.values() {
            assert!(self.is_whole(&made.summary), "{context}: {} lost what it needs", made.summary.id);
        }
        // Never zero, and what somebody asked to keep is there.
        let limit = self.latest_clock + DAY;
        let good = |made: &&Made| !made.summary.degraded && made.summary.id.time() <= at(limit);
        if self.bases.iter().any(|made| good(&made)) {
            assert!(
                self.present.values().any(|m| !m.summary.is_log() && !m.summary.degraded),
                "{context}: empty"
            );
        }
        let oldest_kept = at(self.now.max(self.latest_clock) - WINDOW_DAYS * DAY);
        for made in &self.bases {
            let b = &made.summary;
            let asked = b.pinned
                || b.labels.contains_key("reason")
                || b.keep_until.is_some_and(|until| until > at(self.latest_clock))
                || b.id.time() >= oldest_kept;
            assert!(!asked || self.present.contains_key(&b.id), "{context}: {} was to stay", b.id);
        }
        self.check_slots(&context, limit);
        self.check_window(&context);
    }

    /// Every one of the last slots that ever had a good backup still has one.
    fn check_slots(&self, context: &str, limit: i64) {
        let good = |made: &&Made| !made.summary.degraded && made.summary.id.time() <= at(limit);
        let ever: Vec<_> = self.bases.iter().filter(good).collect();
        for (kind, quota) in [DAYS, WEEKS, MONTHS, 5].into_iter().enumerate() {
            let slot = |made: &Made| made.slots[kind];
            let ever: BTreeSet<_> = ever.iter().map(|made| slot(made)).collect();
            let present = self.present.values().filter(|m| !m.summary.is_log()).filter(good);
            let present: BTreeSet<_> = present.map(slot).collect();
            for promised in ever.iter().rev().take(quota) {
                assert!(
                    present.contains(promised),
                    "{context}: slot {promised} of the last {quota} is empty"
                );
            }
        }
    }

    /// What could ever be restored inside the window still can be, and `pitr_ranges` knows it.
    fn check_window(&mut self, context: &str) {
        let mut slices: Vec<_> =
            self.present.values().filter(|m| m.summary.is_log()).map(|m| (m.from, m.to)).collect();
        slices.sort_unstable();
        let list: Vec<_> = self.present.values().map(|m| m.summary.clone()).collect();
        let ranges = pitr_ranges(&list);
        for _ in 0..60 {
            let moment = self.now - self.random.signed(WINDOW_DAYS * DAY);
            let is = self.is_restorable(&slices, moment);
            assert!(
                is || !self.was_restorable(moment),
                "{context}: {} cannot be restored any more",
                at(moment)
            );
            let exact = self.bases.binary_search_by_key(&moment, |base| base.from).is_ok();
            let listed = ranges.iter().any(|range| range.contains(at(moment)));
            assert!(exact || listed == is, "{context}: pitr_ranges is wrong about {}", at(moment));
        }
    }
}

const DAYS: usize = 14;
const WEEKS: usize = 8;
const MONTHS: usize = 12;

fn simulate(seed: u64) -> World {
    let mut world = World::new(seed);
    let window = Duration::from_secs(u64::try_from(WINDOW_DAYS * DAY).unwrap());
    let policy = Gfs::new()
        .daily(DAYS)
        .weekly(WEEKS)
        .monthly(MONTHS)
        .yearly(5)
        .time_zone(world.zone)
        .or(pitr_window(window))
        .or(KeepLabelled::new("reason", "release"));
    let end = world.now + YEARS * 365 * DAY;
    while world.now < end {
        // Now and then nothing runs for some weeks.
        world.now += if world.chance(1) { 7 * DAY + world.random.signed(30 * DAY) } else { DAY - 3_600 };
        let runs = if world.chance(5) { 1 + world.random.below(5) } else { 1 };
        for _ in 0..runs {
            world.now += 60 + world.random.signed(2 * 3_600);
            world.follow_log();
            if !world.chance(3) {
                world.back_up();
            }
        }
        if world.chance(12) {
            world.prune(&policy);
            world.check(seed);
        }
    }
    world
}

#[test]
fn five_years_of_backups_and_prunes_lose_nothing_that_was_promised() {
    let seeds: u64 = std::env::var("BACKUP_TORTURE").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads as u64 {
            scope.spawn(move || (first..seeds).step_by(threads).for_each(five_years));
        }
    });
}

fn five_years(seed: u64) {
    let world = simulate(seed);
    assert!(world.prunes > 100 && world.deleted > 2_000, "seed {seed}: too little happened");
    // What is over the promises goes: the store does not grow with time. The parents of some forty kept
    // incrementals are up to six each.
    let bases = world.present.values().filter(|m| !m.summary.is_log()).count();
    let slices = world.present.len() - bases;
    let (made, prunes) = (world.bases.len(), world.prunes);
    #[allow(clippy::print_stdout)] // The figures of a torture run are quoted from here.
    {
        println!("seed {seed}: {made} made, {prunes} prunes, {bases} bases and {slices} slices left");
    }
    assert!(bases < 450 && slices < 450, "seed {seed}: {bases} bases and {slices} slices are left");
}
