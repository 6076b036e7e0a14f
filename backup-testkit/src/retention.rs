//! Conformance of retention policies: [`check`] holds an implementation of [`RetentionPolicy`] against the
//! trait's contract, over histories with bursts, pauses, incrementals, logs, degraded, unsealed and
//! future-dated backups, and hour by hour over changes of the clock.
//!
//! ```
//! use backup_core::KeepLast;
//!
//! backup_testkit::retention::check(&KeepLast::new(7));
//! ```
//!
//! Each check panics with the broken rule, the policy and where in the history it broke.

// Said once, above.
#![allow(clippy::missing_panics_doc)]

use std::collections::BTreeSet;

use backup_core::{
    BackupId, BackupKind, BackupSummary, CLOCK_TOLERANCE, Decision, LogPosition, PrunePlan, RetentionPolicy,
    SetName, Standing, standings,
};
use chrono::{DateTime, TimeDelta, Utc};

/// Random histories per property.
const HISTORIES: u64 = 40;

/// Moments, in seconds since 1970, around which clocks change or calendars turn somewhere: Europe and New York
/// in spring and autumn, São Paulo's and Cairo's missing midnights, Lord Howe's half hour, Samoa's missing day, leap
/// days, the ends of years with 53 weeks.
pub const CALENDAR_EDGES: [i64; 13] = [
    1_774_746_000, // 2026-03-29T01:00Z Europe, to summer time
    1_792_890_000, // 2026-10-25T01:00Z Europe, back
    1_772_953_200, // 2026-03-08T07:00Z New York, to summer time
    1_793_512_800, // 2026-11-01T06:00Z New York, back
    1_541_300_400, // 2018-11-04T03:00Z São Paulo, no midnight
    1_550_368_800, // 2019-02-17T02:00Z São Paulo, midnight's hour twice
    1_714_082_400, // 2024-04-25T22:00Z Cairo, no midnight
    1_696_087_800, // 2023-09-30T15:30Z Lord Howe, by half an hour
    1_325_239_200, // 2011-12-30T10:00Z Samoa, a day left out
    1_709_164_800, // 2024-02-29T00:00Z leap day
    951_782_400,   // 2000-02-29T00:00Z leap day of a century
    1_609_459_200, // 2021-01-01T00:00Z in week 53 of 2020
    1_798_761_600, // 2027-01-01T00:00Z in week 53 of 2026
];

/// Backups of one set and a moment to judge them at.
#[derive(Clone, Debug)]
pub struct History {
    /// Newest first.
    pub backups: Vec<BackupSummary>,
    /// Not before the newest backup's id, but for those dated in the future on purpose.
    pub now: DateTime<Utc>,
}

impl History {
    /// Up to some sixty backups over up to two years: bursts within an hour, pauses of weeks, incrementals that refer to
    /// earlier backups, joining log slices with a gap here and there, and one in ten degraded.
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut now = at(1_700_000_000) + TimeDelta::seconds(random.signed(100_000_000));
        let mut backups: Vec<BackupSummary> = Vec::new();
        let mut logged = now;
        for _ in 0..random.below(60) {
            now += match random.below(10) {
                0..=1 => TimeDelta::seconds(random.signed(1_800)),
                2..=3 => TimeDelta::seconds(random.signed(20_000)),
                4..=8 => TimeDelta::seconds(80_000 + random.signed(12_000)),
                _ => TimeDelta::days(random.signed(30)),
            };
            let id = BackupId::new(now, random.bits());
            if random.below(4) == 0 {
                if random.below(8) == 0 {
                    logged += (now - logged) / 2;
                }
                backups.push(slice(id, logged, now));
                logged = now;
                continue;
            }
            let parents: Vec<_> = backups.iter().filter(|b| !b.is_log()).map(|b| b.id).collect();
            let parent = parents.iter().rev().nth(usize::try_from(random.below(3)).unwrap_or(0));
            let kind = match parent {
                Some(parent) if random.below(3) != 0 => BackupKind::Incremental { parent: *parent },
                _ => BackupKind::Full,
            };
            let mut backup = BackupSummary::new(id, set(), kind);
            backup.references = backup.needs().collect();
            backup.log_position = Some(position(now));
            backup.degraded = random.below(10) == 0;
            if random.below(5) == 0 {
                backup.labels.insert("reason".to_owned(), "before deploy".to_owned());
            }
            backups.push(backup);
        }
        now += TimeDelta::seconds(random.signed(200_000));
        backups.sort_by_key(|b| std::cmp::Reverse(b.id));
        backups.dedup_by_key(|b| b.id);
        Self { backups, now }
    }

    /// A full every half hour from two days before `moment` to two days after it.
    pub fn around(moment: DateTime<Utc>) -> Self {
        let full = |n: i64| {
            let id = BackupId::new(moment + TimeDelta::minutes(30 * n), 1);
            BackupSummary::new(id, set(), BackupKind::Full)
        };
        Self { backups: (-96..=96).rev().map(full).collect(), now: moment + TimeDelta::days(2) }
    }

    fn all() -> impl Iterator<Item = Self> {
        let edges = CALENDAR_EDGES.iter().map(|edge| Self::around(at(*edge)));
        (0..HISTORIES).map(Self::random).chain(edges)
    }

    fn kept(&self, policy: &dyn RetentionPolicy) -> BTreeSet<BackupId> {
        kept(policy, &self.backups, self.now)
    }
}

/// The ids of `backups` that `policy` keeps, by decision or for want of one.
pub fn kept(
    policy: &dyn RetentionPolicy,
    backups: &[BackupSummary],
    now: DateTime<Utc>,
) -> BTreeSet<BackupId> {
    let decisions = policy.decide(backups, now);
    backups.iter().map(|b| b.id).filter(|id| decisions.get(id) != Some(&Decision::Forget)).collect()
}

/// Runs every check of this module.
///
/// # Panics
///
/// With the broken rule, the policy and the history's seed or moment, if the policy breaks the contract.
pub fn check(policy: &dyn RetentionPolicy) {
    for history in History::all() {
        decisions_are_repeatable(policy, &history);
        no_plan_forgets_the_newest_good_backup(policy, &history);
        a_newer_backup_brings_nothing_back(policy, &history);
        time_brings_nothing_back(policy, &history);
        forgetting_changes_no_other_decision(policy, &history);
        what_does_not_count_takes_no_place(policy, &history);
        the_minimum_is_kept(policy, &history);
    }
    an_empty_set_is_no_trouble(policy);
    extreme_dates_are_no_trouble(policy);
}

/// The same arguments give the same decisions.
pub fn decisions_are_repeatable(policy: &dyn RetentionPolicy, history: &History) {
    let (first, second) =
        (policy.decide(&history.backups, history.now), policy.decide(&history.backups, history.now));
    assert!(first == second, "{policy:?} decides differently when asked twice, at {}", history.now);
}

/// Planned, a policy never takes the last good backup, nor what a kept one refers to; an id without a decision
/// is kept.
pub fn no_plan_forgets_the_newest_good_backup(policy: &dyn RetentionPolicy, history: &History) {
    let History { backups, now } = history;
    let standings = standings(backups, *now);
    let plan = PrunePlan::new(backups, policy, *now);
    let planned: BTreeSet<_> = plan.kept().map(|entry| entry.id).collect();
    let newest = backups.iter().find(|b| standings.get(&b.id) == Some(&Standing::Good));
    if let Some(newest) = newest {
        assert!(planned.contains(&newest.id), "{policy:?}: the plan at {now} forgets the newest good backup");
    }
    for backup in backups.iter().filter(|b| planned.contains(&b.id)) {
        for needed in backup.needs() {
            assert!(planned.contains(&needed), "{policy:?}: {} is kept without {needed}", backup.id);
        }
    }
    for id in kept(policy, backups, *now) {
        assert!(planned.contains(&id), "{policy:?}: the plan at {now} forgets {id}, which the policy keeps");
    }
}

/// What is forgotten stays forgotten when a newer backup is added.
pub fn a_newer_backup_brings_nothing_back(policy: &dyn RetentionPolicy, history: &History) {
    let before = history.kept(policy);
    let newest = history.backups.first().map_or(history.now, |b| b.id.time());
    for gap in [TimeDelta::seconds(1), TimeDelta::hours(25), TimeDelta::days(40)] {
        let start = newest.max(history.now) + gap;
        let mut added = BackupSummary::new(BackupId::new(start, 2), set(), BackupKind::Full);
        added.log_position = Some(position(start));
        let mut backups = vec![added.clone()];
        backups.extend(history.backups.iter().cloned());
        let mut after = kept(policy, &backups, start);
        after.remove(&added.id);
        assert!(
            after.is_subset(&before),
            "{policy:?}: adding {} brings back {:?}",
            added.id,
            after.difference(&before).collect::<Vec<_>>()
        );
    }
}

/// What is forgotten stays forgotten when time passes.
pub fn time_brings_nothing_back(policy: &dyn RetentionPolicy, history: &History) {
    let before = history.kept(policy);
    for days in [1, 30, 400] {
        let later = kept(policy, &history.backups, history.now + TimeDelta::days(days));
        assert!(later.is_subset(&before), "{policy:?}: {days} days after {} more is kept", history.now);
    }
}

/// Among the kept, everything is kept: a second prune finds nothing to do.
pub fn forgetting_changes_no_other_decision(policy: &dyn RetentionPolicy, history: &History) {
    let plan = PrunePlan::new(&history.backups, policy, history.now);
    let left: BTreeSet<_> = plan.kept().map(|entry| entry.id).collect();
    let backups: Vec<_> = history.backups.iter().filter(|b| left.contains(&b.id)).cloned().collect();
    let again = PrunePlan::new(&backups, policy, history.now);
    assert!(
        again.deletions().is_empty(),
        "{policy:?}: a second prune at {} forgets {:?}",
        history.now,
        again.deletions()
    );
}

/// Unsealed, degraded and far-future backups never push a good one out.
pub fn what_does_not_count_takes_no_place(policy: &dyn RetentionPolicy, history: &History) {
    let before = history.kept(policy);
    let tolerance = TimeDelta::from_std(CLOCK_TOLERANCE).unwrap_or(TimeDelta::days(1));
    let mut backups = history.backups.clone();
    for n in 0..50_i32 {
        let step = TimeDelta::hours(i64::from(n));
        let mut unsealed = fake(history.now - step, 3);
        unsealed.sealed = false;
        let mut degraded = fake(history.now - step, 4);
        degraded.degraded = true;
        let future = fake(history.now + tolerance + TimeDelta::seconds(1) + step, 5);
        backups.extend([unsealed, degraded, future]);
    }
    backups.sort_by_key(|b| std::cmp::Reverse(b.id));
    let standings = standings(&history.backups, history.now);
    let after = kept(policy, &backups, history.now);
    for id in before.iter().filter(|id| standings.get(id) == Some(&Standing::Good)) {
        assert!(after.contains(id), "{policy:?}: backups that do not count push out {id} at {}", history.now);
    }
}

/// Every full and incremental that is younger than `minimum_keep` is kept.
pub fn the_minimum_is_kept(policy: &dyn RetentionPolicy, history: &History) {
    let Some(minimum) = policy.minimum_keep() else { return };
    let Ok(minimum) = TimeDelta::from_std(minimum) else { return };
    let kept = history.kept(policy);
    for backup in history.backups.iter().filter(|b| !b.is_log()) {
        let young = history.now - backup.id.time() <= minimum;
        assert!(
            !young || kept.contains(&backup.id),
            "{policy:?}: {} goes at {} before its minimum of {minimum}",
            backup.id,
            history.now
        );
    }
}

/// No backups, no decisions.
pub fn an_empty_set_is_no_trouble(policy: &dyn RetentionPolicy) {
    assert!(policy.decide(&[], at(0)).is_empty(), "{policy:?} decides on backups it was not given");
}

/// The first and last dates an id can carry, judged at the first and last moments there are.
pub fn extreme_dates_are_no_trouble(policy: &dyn RetentionPolicy) {
    let ids = ["99991231T235959Z-000001", "19700101T000000Z-000001", "00000101T000000Z-000001"];
    let backups: Vec<_> = ids
        .iter()
        .filter_map(|id| id.parse().ok())
        .map(|id| BackupSummary::new(id, set(), BackupKind::Full))
        .collect();
    for now in [DateTime::<Utc>::MIN_UTC, at(0), DateTime::<Utc>::MAX_UTC] {
        let plan = PrunePlan::new(&backups, policy, now);
        assert_eq!(plan.entries().len(), ids.len(), "{policy:?} at {now}");
        assert!(plan.kept().count() >= 1, "{policy:?} at {now} keeps nothing");
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}

fn set() -> SetName {
    SetName::parse("conformance/set").expect("a fixed, valid name")
}

fn fake(start: DateTime<Utc>, random: u32) -> BackupSummary {
    let mut backup = BackupSummary::new(BackupId::new(start, random), set(), BackupKind::Full);
    backup.log_position = Some(position(start));
    backup
}

fn position(moment: DateTime<Utc>) -> LogPosition {
    LogPosition::from_number(u64::try_from(moment.timestamp()).unwrap_or(0))
}

fn slice(id: BackupId, from: DateTime<Utc>, to: DateTime<Utc>) -> BackupSummary {
    let kind = BackupKind::Log { from: position(from), to: position(to), from_time: from, to_time: to };
    BackupSummary::new(id, set(), kind)
}

/// Seeded and the same everywhere: `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw().checked_rem(n).unwrap_or(0)
    }

    /// Below `n`, as a signed number that is not negative.
    pub fn signed(&mut self, n: i64) -> i64 {
        i64::try_from(self.below(n.unsigned_abs())).unwrap_or(0)
    }

    /// 24 random bits.
    pub fn bits(&mut self) -> u32 {
        u32::try_from(self.draw() >> 40).unwrap_or(0)
    }
}
