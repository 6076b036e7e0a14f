//! The built-in policies against the conformance suite, and their algebra.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use backup_core::{
    BackupId, BackupSummary, Gfs, KeepLabelled, KeepLast, KeepWithin, PrunePlan, RetentionPolicy, Standing,
    Tz, pitr_window,
};
use backup_testkit::retention::{CALENDAR_EDGES, History, check, kept};
use chrono::{DateTime, TimeDelta, Utc};

const DAY: Duration = Duration::from_secs(86_400);

fn policies() -> Vec<Box<dyn RetentionPolicy>> {
    let gfs = |zone| Gfs::new().hourly(5).daily(7).weekly(4).monthly(6).yearly(3).time_zone(zone);
    vec![
        Box::new(KeepLast::new(0)),
        Box::new(KeepLast::new(1)),
        Box::new(KeepLast::new(9)),
        Box::new(KeepWithin::new(Duration::ZERO)),
        Box::new(KeepWithin::hours(36)),
        Box::new(KeepWithin::days(90)),
        Box::new(KeepWithin::new(Duration::MAX)),
        Box::new(KeepLabelled::new("reason", "before deploy")),
        Box::new(KeepLabelled::any("reason").and(KeepWithin::days(20))),
        Box::new(Gfs::new()),
        Box::new(gfs(Tz::UTC)),
        Box::new(gfs(Tz::Europe__Berlin)),
        Box::new(gfs(Tz::America__New_York)),
        Box::new(gfs(Tz::America__Sao_Paulo)),
        Box::new(gfs(Tz::Africa__Cairo)),
        Box::new(gfs(Tz::Australia__Lord_Howe)),
        Box::new(gfs(Tz::Pacific__Apia)),
        Box::new(Gfs::new().hourly(usize::MAX).time_zone(Tz::Asia__Kathmandu)),
        Box::new(pitr_window(Duration::ZERO)),
        Box::new(pitr_window(3 * DAY)),
        Box::new(pitr_window(60 * DAY)),
        Box::new(pitr_window(Duration::MAX)),
        Box::new(gfs(Tz::UTC).or(pitr_window(7 * DAY)).or(KeepLast::new(3))),
        Box::new(KeepWithin::days(90).and(Gfs::new().monthly(4))),
        Box::new(gfs(Tz::UTC).and(pitr_window(30 * DAY))),
    ]
}

#[test]
fn every_policy_passes_the_conformance_suite() {
    for policy in policies() {
        check(&policy);
    }
}

#[test]
fn a_union_keeps_what_either_keeps_and_an_intersection_what_both_keep() {
    let policies = policies();
    for seed in 0..8 {
        let history = History::random(seed);
        let kept = |policy: &dyn RetentionPolicy| kept(policy, &history.backups, history.now);
        for a in &policies {
            for b in &policies {
                assert_eq!(kept(&a.or(b)), &kept(a) | &kept(b), "{a:?} or {b:?}");
                assert_eq!(kept(&a.and(b)), &kept(a) & &kept(b), "{a:?} and {b:?}");
            }
        }
    }
}

#[test]
fn the_minimum_of_a_union_is_the_longer_and_of_an_intersection_the_shorter() {
    let (week, month, count) = (KeepWithin::days(7), KeepWithin::days(30), KeepLast::new(9));
    assert_eq!(week.or(month).minimum_keep(), Some(30 * DAY));
    assert_eq!(week.and(month).minimum_keep(), Some(7 * DAY));
    assert_eq!(week.or(count).minimum_keep(), Some(7 * DAY));
    assert_eq!(week.and(count).minimum_keep(), None);
    assert_eq!(pitr_window(DAY).minimum_keep(), Some(DAY));
    for counting in [&count as &dyn RetentionPolicy, &Gfs::new().yearly(9), &KeepLabelled::any("x")] {
        assert_eq!(counting.minimum_keep(), None, "{counting:?}");
    }
    assert_eq!(Gfs::new().or(pitr_window(DAY)).log_window(), Some(DAY));
    assert_eq!(pitr_window(2 * DAY).and(pitr_window(DAY)).log_window(), Some(DAY));
    assert_eq!(pitr_window(DAY).and(Gfs::new()).log_window(), None);
}

/// Prunes after each backup, as a schedule does, and returns what is left.
fn pruned_all_along(history: &History, policy: &dyn RetentionPolicy) -> BTreeSet<BackupId> {
    let mut present: Vec<BackupSummary> = Vec::new();
    for backup in history.backups.iter().rev() {
        present.insert(0, backup.clone());
        let plan = PrunePlan::new(&present, policy, backup.id.time());
        for gone in plan.deletions() {
            present.retain(|b| b.id != *gone);
        }
    }
    present.iter().map(|b| b.id).collect()
}

#[test]
fn pruning_after_every_backup_ends_with_what_pruning_once_keeps() {
    let gfs = Gfs::new().hourly(6).daily(7).weekly(4).monthly(5).yearly(2);
    let edges = CALENDAR_EDGES.iter().filter_map(|edge| DateTime::from_timestamp(*edge, 0));
    // Fulls only: pruned all along, a recorded incremental's parent could be gone before the incremental is made,
    // which no producer would do.
    let random = (0..20).map(History::random).map(|mut history| {
        history.backups.retain(|b| !b.is_log());
        for backup in &mut history.backups {
            backup.kind = backup_core::BackupKind::Full;
            backup.references.clear();
        }
        history
    });
    for (n, history) in random.chain(edges.map(History::around)).enumerate() {
        let newest: DateTime<Utc> = history.backups.first().map_or(history.now, |b| b.id.time());
        for policy in [&gfs as &dyn RetentionPolicy, &KeepLast::new(5), &KeepWithin::days(12)] {
            let once = PrunePlan::new(&history.backups, policy, newest);
            let once: BTreeSet<_> = once.kept().map(|entry| entry.id).collect();
            assert_eq!(once, pruned_all_along(&history, policy), "{policy:?} on history {n}");
        }
    }
}

#[test]
fn a_deletion_that_stops_anywhere_leaves_nothing_without_what_it_needs() {
    for seed in 0..60 {
        let history = History::random(seed);
        let plan = PrunePlan::new(&history.backups, &KeepLast::new(2), history.now + TimeDelta::days(3));
        let mut present: BTreeSet<_> = history.backups.iter().map(|b| b.id).collect();
        for gone in plan.deletions() {
            assert!(present.remove(gone), "{gone} is deleted twice");
            for backup in history.backups.iter().filter(|b| present.contains(&b.id)) {
                assert!(backup.needs().all(|needed| present.contains(&needed)), "seed {seed}: {}", backup.id);
            }
        }
        assert_eq!(present, plan.kept().map(|entry| entry.id).collect(), "seed {seed}");
    }
}

#[test]
fn every_entry_says_why_and_the_table_shows_it() {
    let history = History::random(11);
    let policy = Gfs::new().daily(3).monthly(2).or(pitr_window(2 * DAY));
    let plan = PrunePlan::new(&history.backups, &policy, history.now);
    let table = plan.to_string();
    assert_eq!(table.lines().count(), 2 + plan.entries().len() + usize::from(plan.mass_delete()));
    for (line, entry) in table.lines().skip(1).zip(plan.entries()) {
        assert!(!entry.reasons.is_empty() && entry.reasons.iter().all(|reason| !reason.is_empty()));
        assert!(line.contains(&entry.id.to_string()) && line.ends_with(&entry.reasons.join("; ")), "{line}");
        assert!(line.starts_with(if entry.keep { "keep" } else { "forget" }), "{line}");
    }
    assert!(plan.forgotten().count() > 0 && plan.kept().any(|e| e.standing == Standing::Good), "{table}");
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<PrunePlan>(&text).unwrap(), plan);
}
