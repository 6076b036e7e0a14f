//! What a plan protects, whatever the policy says, and when it refuses.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use backup_core::{
    BackupId, BackupKind, BackupSummary, Decision, ErrorKind, Gfs, KeepLabelled, KeepLast, LogPosition,
    PitrRange, PrunePlan, RetentionPolicy, SetName, Standing, pitr_ranges, pitr_window, standings,
};
use chrono::{DateTime, TimeDelta, Utc};

const HOUR: i64 = 3_600;

/// Hour `n` of the test's calendar.
fn at(n: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_000_000 + n * HOUR, 0).unwrap()
}

fn position(n: i64) -> LogPosition {
    LogPosition::from_number(u64::try_from(n).unwrap())
}

fn backup(n: i64, kind: BackupKind) -> BackupSummary {
    let set = SetName::parse("plan/set").unwrap();
    let mut backup = BackupSummary::new(BackupId::new(at(n), 1), set, kind);
    backup.stored_size = 1_000;
    if !backup.is_log() {
        backup.log_position = Some(position(n));
    }
    backup
}

fn full(n: i64) -> BackupSummary {
    backup(n, BackupKind::Full)
}

fn child(n: i64, parent: &BackupSummary) -> BackupSummary {
    backup(n, BackupKind::Incremental { parent: parent.id })
}

/// Slices are made at odd seconds so that their ids differ from those of fulls.
fn slice(from: i64, to: i64) -> BackupSummary {
    let kind =
        BackupKind::Log { from: position(from), to: position(to), from_time: at(from), to_time: at(to) };
    let mut slice = backup(to, kind);
    slice.id = BackupId::new(at(to) + TimeDelta::seconds(1), 2);
    slice
}

fn forgotten(backups: &[BackupSummary], policy: &dyn RetentionPolicy, now: i64) -> Vec<i64> {
    let plan = PrunePlan::new(backups, policy, at(now));
    let mut hours: Vec<_> = plan.forgotten().map(|entry| (entry.id.time() - at(0)).num_hours()).collect();
    hours.sort_unstable();
    hours
}

fn reasons(plan: &PrunePlan, id: BackupId) -> String {
    plan.entries().iter().find(|entry| entry.id == id).unwrap().reasons.join("; ")
}

/// A policy that decides nothing, or forgets everything.
#[derive(Debug)]
struct Blunt {
    forget: bool,
}

impl RetentionPolicy for Blunt {
    fn decide(&self, backups: &[BackupSummary], _now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        backups.iter().filter(|_| self.forget).map(|b| (b.id, Decision::Forget)).collect()
    }
    fn log_window(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

const FORGET_ALL: Blunt = Blunt { forget: true };

#[test]
fn an_id_without_a_decision_is_kept() {
    let backups = [full(0), full(1), slice(0, 1), slice(1, 2)];
    assert!(forgotten(&backups, &Blunt { forget: false }, 9).is_empty());
}

#[test]
fn the_newest_good_backup_stays_with_all_it_needs() {
    let base = full(0);
    let first = child(2, &base);
    let second = child(4, &first);
    let backups = [base.clone(), full(1), first, full(3), second];
    assert_eq!(forgotten(&backups, &FORGET_ALL, 9), [1, 3]);
    let plan = PrunePlan::new(&backups, &FORGET_ALL, at(9));
    assert!(reasons(&plan, base.id).starts_with("needed by "), "{plan}");
    assert_eq!(plan.freed_bytes(), 2_000);
}

#[test]
fn references_bind_as_a_parent_does() {
    let (a, b) = (full(0), full(1));
    let mut newest = full(2);
    newest.references.insert(a.id);
    assert_eq!(forgotten(&[a, b, newest], &FORGET_ALL, 9), [1]);
}

#[test]
fn what_does_not_count_is_never_the_newest_and_takes_no_place() {
    let mut unsealed = full(40);
    unsealed.sealed = false;
    let mut degraded = full(30);
    degraded.degraded = true;
    let (orphan, future) = (child(35, &full(99)), full(40 + 25));
    let backups =
        [full(0), full(1), full(2), degraded.clone(), orphan.clone(), unsealed.clone(), future.clone()];
    let now = 40;
    let found = standings(&backups, at(now));
    let expected = [
        (&backups[2], Standing::Good),
        (&degraded, Standing::Degraded),
        (&orphan, Standing::Incomplete),
        (&unsealed, Standing::Unsealed),
        (&future, Standing::Future),
    ];
    for (backup, standing) in expected {
        assert_eq!(found[&backup.id], standing);
    }
    // One place: the newest good one has it. Nothing is known to replace the others yet.
    assert_eq!(forgotten(&backups, &KeepLast::new(1), now), [0, 1]);
    // Once a good one is newer, degraded and incomplete ones go; the unsealed and the future one still stay.
    let mut later = backups.to_vec();
    later.push(full(39));
    assert_eq!(forgotten(&later, &KeepLast::new(1), now), [0, 1, 2, 30, 35]);
    // Within the tolerance a date in the future counts.
    assert_eq!(forgotten(&[full(0), full(24)], &KeepLast::new(1), 0), [0]);
}

#[test]
fn without_a_good_backup_nothing_goes() {
    let backups: Vec<_> = (0..9)
        .map(full)
        .map(|mut b| {
            b.degraded = true;
            b
        })
        .collect();
    assert!(forgotten(&backups, &FORGET_ALL, 99).is_empty());
}

#[test]
fn a_child_of_what_is_unsealed_or_gone_is_incomplete_to_any_depth() {
    let mut root = full(0);
    root.sealed = false;
    let a = child(1, &root);
    let b = child(2, &a);
    let c = child(3, &b);
    let found = standings(&[root, a, b, c.clone(), full(4)], at(9));
    assert_eq!(found[&c.id], Standing::Incomplete);
    assert_eq!(found.values().filter(|s| **s == Standing::Incomplete).count(), 3);
}

#[test]
fn pinned_backups_and_those_whose_time_has_not_come_stay() {
    let (mut pinned, mut held) = (full(0), full(1));
    pinned.pinned = true;
    held.keep_until = Some(at(50));
    let backups = [pinned, held, full(2), full(3)];
    assert_eq!(forgotten(&backups, &KeepLast::new(1), 49), [2]);
    assert_eq!(forgotten(&backups, &KeepLast::new(1), 50), [1, 2]);
}

#[test]
fn a_label_keeps_with_its_value_or_with_any() {
    let (mut release, mut test) = (full(0), full(1));
    release.labels.insert("reason".into(), "release".into());
    test.labels.insert("reason".into(), "test".into());
    let backups = [release, test, full(2), full(3)];
    assert_eq!(forgotten(&backups, &KeepLabelled::new("reason", "release"), 9), [1, 2]);
    assert_eq!(forgotten(&backups, &KeepLabelled::any("reason"), 9), [2]);
}

#[test]
fn an_unsealed_backup_stops_the_prune_of_its_set() {
    let mut strange = full(0);
    strange.sealed = false;
    let plan = PrunePlan::new(&[strange.clone(), full(1), full(2)], &KeepLast::new(2), at(9));
    assert_eq!(plan.unsealed(), [strange.id]);
    assert_eq!(plan.permit(true).unwrap_err().kind(), ErrorKind::PruneRefused);
    assert!(plan.to_string().contains("refused: 1 unsealed"), "{plan}");
}

#[test]
fn forgetting_more_than_half_must_be_allowed() {
    let backups: Vec<_> = (0..10).map(full).collect();
    for (keep, mass) in [(4, true), (5, false), (9, false)] {
        let plan = PrunePlan::new(&backups, &KeepLast::new(keep), at(9));
        assert_eq!(plan.mass_delete(), mass, "{keep}");
        assert_eq!(plan.permit(false).is_err(), mass, "{keep}");
        assert!(plan.permit(true).is_ok());
    }
    // Of two, one is not much.
    assert!(!PrunePlan::new(&backups[..2], &KeepLast::new(1), at(9)).mass_delete());
}

#[test]
fn forgetting_most_of_the_log_must_be_allowed_but_a_weekly_base_passes_with_a_window_of_days() {
    let weekly = |weeks: i64| -> Vec<_> {
        let bases = (0..weeks).map(|week| full(week * 168));
        bases.chain((0..weeks * 28).map(|n| slice(n * 6, n * 6 + 6))).collect()
    };
    let policy = Gfs::new().weekly(52).or(pitr_window(Duration::from_secs(3 * 86_400)));
    // Twelve weeks that were never pruned: ten stretches would go.
    let plan = PrunePlan::new(&weekly(12), &policy, at(12 * 168));
    assert!(plan.mass_delete() && plan.forgotten().all(|entry| entry.standing == Standing::Log));
    // Pruned every week from then on: one of the three stretches.
    let left: Vec<_> = plan.kept().map(|entry| entry.id).collect();
    let mut present: Vec<_> = weekly(12).into_iter().filter(|b| left.contains(&b.id)).collect();
    present.extend(weekly(13).into_iter().filter(|b| b.id.time() >= at(12 * 168)));
    let plan = PrunePlan::new(&present, &policy, at(13 * 168));
    assert!(plan.forgotten().count() >= 14 && !plan.mass_delete(), "{plan}");
}

#[test]
fn slices_stay_as_long_as_a_kept_backup_can_use_them_unless_a_window_is_set() {
    let mut backups: Vec<_> = (0..10).map(|n| slice(n * 4, n * 4 + 4)).collect();
    backups.extend([full(9), full(20), full(30)]);
    // The slice from 8 to 12 holds the position of the full at 9.
    assert_eq!(forgotten(&backups, &KeepLast::new(3), 40), [4, 8]);
    assert_eq!(forgotten(&backups, &KeepLast::new(1), 40), [4, 8, 9, 12, 16, 20, 20, 24, 28]);
    // With a window of five hours the base before hour 35 is the full at 30; the others stay without their log.
    let policy = KeepLast::new(3).or(pitr_window(Duration::from_secs(5 * 3_600)));
    assert_eq!(forgotten(&backups, &policy, 40), [4, 8, 12, 16, 20, 24, 28]);
    // No base at all: the first may be in the making.
    let slices: Vec<_> = backups.into_iter().filter(BackupSummary::is_log).collect();
    assert!(forgotten(&slices, &policy, 40).is_empty() && forgotten(&slices, &FORGET_ALL, 40).is_empty());
}

#[test]
fn a_kept_slice_keeps_the_way_to_it() {
    let mut backups: Vec<_> = (0..6).map(|n| slice(n * 4, n * 4 + 4)).collect();
    backups[2].pinned = true;
    let mut base = full(0);
    base.pinned = true;
    backups.extend([base, full(24)]);
    // The log after the pinned slice may go; the log before it leads to it.
    assert_eq!(forgotten(&backups, &FORGET_ALL, 30), [16, 20, 24]);
}

#[test]
fn a_window_whose_newest_base_the_log_left_behind_keeps_an_older_one_that_reaches_it() {
    let mut nameless = full(10);
    nameless.log_position = None;
    let mut backups: Vec<_> = (0..10).map(|n| slice(n * 4, n * 4 + 4)).collect();
    backups.extend([full(1), nameless]);
    let policy = pitr_window(Duration::from_secs(6 * 3_600));
    assert!(forgotten(&backups, &policy, 40).is_empty());
    assert_eq!(pitr_ranges(&backups), [PitrRange { from: at(1), to: at(40) }]);
}

#[test]
fn the_window_stops_when_the_log_stops() {
    let mut backups: Vec<_> = (0..10).map(|n| slice(n * 4, n * 4 + 4)).collect();
    backups.extend([full(1), full(30)]);
    let policy = pitr_window(Duration::from_secs(20 * 3_600));
    assert!(forgotten(&backups, &policy, 5_000).is_empty());
}

#[test]
fn a_log_that_begins_again_at_zero_is_not_taken_for_an_old_one() {
    let mut after = slice(0, 3);
    (after.id, after.started) = (BackupId::new(at(104), 2), at(101));
    if let BackupKind::Log { from_time, to_time, .. } = &mut after.kind {
        (*from_time, *to_time) = (at(101), at(104));
    }
    // The first full of the new datastore is still being made.
    assert!(forgotten(&[full(100), after], &FORGET_ALL, 105).is_empty());
}

#[test]
fn ranges_end_at_gaps_and_begin_at_bases() {
    let base = full(2);
    let mut late = full(30);
    late.consistent_at = Some(at(31));
    let mut unsealed = slice(44, 48);
    unsealed.sealed = false;
    let backups = [
        base,
        late,
        child(33, &full(999)),
        slice(0, 8),
        slice(8, 12),
        // 12 to 20 is lost; before the next base nothing can be restored.
        slice(20, 32),
        // Overlaps, as a slice made again after a degraded one does.
        slice(28, 40),
        slice(40, 44),
        unsealed,
    ];
    let ranges = pitr_ranges(&backups);
    assert_eq!(ranges, [PitrRange { from: at(2), to: at(12) }, PitrRange { from: at(31), to: at(44) }]);
    assert!(ranges[1].contains(at(44)) && !ranges[1].contains(at(45)) && !ranges[0].contains(at(1)));
    assert!(pitr_ranges(&backups[3..]).is_empty(), "slices alone restore nothing");
}

#[test]
fn backups_that_need_each_other_in_a_circle_are_planned_and_ordered() {
    let (mut a, mut b) = (full(0), full(1));
    a.references.insert(b.id);
    b.references.insert(a.id);
    let plan = PrunePlan::new(&[a.clone(), b.clone(), full(2)], &FORGET_ALL, at(9));
    assert_eq!(plan.deletions(), [b.id, a.id]);
}

#[test]
fn a_chain_of_a_hundred_thousand_increments_is_planned_without_recursion() {
    let mut chain = vec![full(0)];
    for n in 1..100_000 {
        let next = child(n, &chain[chain.len() - 1]);
        chain.push(next);
    }
    assert!(forgotten(&chain, &FORGET_ALL, 100_000).is_empty());
}

#[test]
fn a_parent_whose_clock_was_ahead_of_its_childs_is_deleted_after_all_its_children() {
    let parent = full(5);
    let (early, late) = (child(1, &parent), child(9, &parent));
    let log = slice(2, 4);
    let order = [log.id, late.id, early.id, parent.id];
    let plan = PrunePlan::new(&[parent, early, late, log, full(20)], &FORGET_ALL, at(30));
    assert_eq!(plan.deletions(), order);
}

#[test]
fn a_parent_that_stays_for_its_child_keeps_its_log_too() {
    let parent = full(0);
    let backups = [slice(0, 4), slice(4, 8), child(8, &parent), parent];
    assert!(forgotten(&backups, &KeepLast::new(1), 30).is_empty());
}
