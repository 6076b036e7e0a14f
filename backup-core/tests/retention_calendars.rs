//! Worked calendars: which backup stands for which hour, day, week, month and year.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use backup_core::{
    BackupId, BackupKind, BackupSummary, Decision, Gfs, KeepLast, KeepWithin, PrunePlan, RetentionPolicy,
    SetName, Tz,
};
use chrono::{DateTime, TimeDelta, Utc};

fn utc(text: &str) -> DateTime<Utc> {
    let full = if text.len() == 10 { format!("{text}T02:00:00Z") } else { format!("{text}:00Z") };
    DateTime::parse_from_rfc3339(&full).unwrap().to_utc()
}

fn full(start: DateTime<Utc>) -> BackupSummary {
    let set = SetName::parse("calendar/set").unwrap();
    BackupSummary::new(BackupId::new(start, 1), set, BackupKind::Full)
}

/// What a policy keeps of fulls made at `times`, judged an hour after the last: `time → reasons`, oldest first.
fn decided(policy: &dyn RetentionPolicy, times: &[DateTime<Utc>]) -> Vec<(String, String)> {
    let mut backups: Vec<_> = times.iter().map(|time| full(*time)).collect();
    backups.sort_by_key(|b| std::cmp::Reverse(b.id));
    let now = backups[0].id.time() + TimeDelta::hours(1);
    let decisions: BTreeMap<_, _> = policy.decide(&backups, now);
    let kept = decisions.into_iter().filter_map(|(id, decision)| match decision {
        Decision::Keep { reasons } => {
            Some((id.time().format("%Y-%m-%dT%H:%M").to_string(), reasons.join(", ")))
        }
        Decision::Forget => None,
    });
    kept.collect()
}

#[track_caller]
fn table(policy: &Gfs, times: &[&str], expected: &[(&str, &str)]) {
    let times: Vec<_> = times.iter().map(|time| utc(time)).collect();
    let expected: Vec<_> = expected.iter().map(|(t, r)| ((*t).to_owned(), (*r).to_owned())).collect();
    assert_eq!(decided(policy, &times), expected);
}

/// A full every day at 02:00 UTC from `first` to `last`.
fn daily(first: &str, last: &str) -> Vec<DateTime<Utc>> {
    let (mut time, last) = (utc(first), utc(last));
    let mut times = Vec::new();
    while time <= last {
        times.push(time);
        time += TimeDelta::days(1);
    }
    times
}

#[test]
fn a_month_is_kept_by_its_last_day_however_long_it_is() {
    let days = daily("2023-10-15", "2024-04-10");
    let days: Vec<_> = decided(&Gfs::new().monthly(7), &days).into_iter().map(|(time, _)| time).collect();
    assert_eq!(
        days,
        [
            "2023-10-31T02:00",
            "2023-11-30T02:00",
            "2023-12-31T02:00",
            "2024-01-31T02:00",
            "2024-02-29T02:00",
            "2024-03-31T02:00",
            "2024-04-10T02:00",
        ]
    );
}

#[test]
fn a_leap_day_is_a_day_and_ends_its_month() {
    table(
        &Gfs::new().daily(3).monthly(2),
        &["2024-02-27", "2024-02-28", "2024-02-29", "2024-03-01"],
        &[
            ("2024-02-28T02:00", "daily 2024-02-28"),
            ("2024-02-29T02:00", "daily 2024-02-29, monthly 2024-02"),
            ("2024-03-01T02:00", "daily 2024-03-01, monthly 2024-03"),
        ],
    );
    table(
        &Gfs::new().yearly(4),
        &["2000-02-29", "2004-02-29", "2100-02-28", "2100-03-01"],
        &[
            ("2000-02-29T02:00", "yearly 2000"),
            ("2004-02-29T02:00", "yearly 2004"),
            ("2100-03-01T02:00", "yearly 2100"),
        ],
    );
}

#[test]
fn the_day_begins_at_midnight_of_the_zone() {
    // 23:30Z and 00:30Z are one day in Berlin and two in UTC.
    let times = ["2026-07-01T22:30", "2026-07-01T23:30", "2026-07-02T00:30"];
    table(
        &Gfs::new().daily(9),
        &times,
        &[("2026-07-01T23:30", "daily 2026-07-01"), ("2026-07-02T00:30", "daily 2026-07-02")],
    );
    table(
        &Gfs::new().daily(9).time_zone(Tz::Europe__Berlin),
        &times,
        &[("2026-07-02T00:30", "daily 2026-07-02")],
    );
    table(
        &Gfs::new().daily(9).time_zone(Tz::America__New_York),
        &times,
        &[("2026-07-02T00:30", "daily 2026-07-01")],
    );
}

#[test]
fn in_berlin_the_short_day_has_23_hours_and_the_long_day_25() {
    let hours =
        |first: &str, n: i64| -> Vec<_> { (0..n).map(|hour| utc(first) + TimeDelta::hours(hour)).collect() };
    let berlin = Gfs::new().hourly(999).daily(999).time_zone(Tz::Europe__Berlin);
    // From midnight to the hour before midnight, local time.
    let short = decided(&berlin, &hours("2026-03-28T23:00", 23));
    assert_eq!(short.len(), 23);
    assert_eq!(short[1].1, "hourly 2026-03-29 01:00+01:00");
    assert_eq!(short[2].1, "hourly 2026-03-29 03:00+02:00");
    assert_eq!(short[22].1, "hourly 2026-03-29 23:00+02:00, daily 2026-03-29");
    let long = decided(&berlin, &hours("2026-10-24T22:00", 25));
    assert_eq!(long.len(), 25);
    assert_eq!(long[2].1, "hourly 2026-10-25 02:00+02:00");
    assert_eq!(long[3].1, "hourly 2026-10-25 02:00+01:00");
    assert_eq!(long[24].1, "hourly 2026-10-25 23:00+01:00, daily 2026-10-25");
    // One more hour is the next day.
    assert_eq!(
        decided(&berlin, &hours("2026-10-24T22:00", 26))[25].1,
        "hourly 2026-10-26 00:00+01:00, daily 2026-10-26"
    );
}

#[test]
fn in_new_york_the_clock_change_neither_loses_nor_doubles_a_day() {
    let zone = Tz::America__New_York;
    table(
        &Gfs::new().daily(9).time_zone(zone),
        // 23:30 on the 7th, 00:30, 03:30 (just after the change) and 23:30 on the 8th.
        &["2026-03-08T04:30", "2026-03-08T05:30", "2026-03-08T07:30", "2026-03-09T03:30"],
        &[("2026-03-08T04:30", "daily 2026-03-07"), ("2026-03-09T03:30", "daily 2026-03-08")],
    );
    table(
        &Gfs::new().hourly(9).time_zone(zone),
        // 01:10 twice, then 02:10.
        &["2026-11-01T05:10", "2026-11-01T06:10", "2026-11-01T07:10"],
        &[
            ("2026-11-01T05:10", "hourly 2026-11-01 01:00-04:00"),
            ("2026-11-01T06:10", "hourly 2026-11-01 01:00-05:00"),
            ("2026-11-01T07:10", "hourly 2026-11-01 02:00-05:00"),
        ],
    );
}

#[test]
fn a_day_without_a_midnight_and_a_midnight_that_comes_twice_are_one_day_each() {
    // São Paulo, 4 November 2018: 23:59:59 is followed by 01:00.
    table(
        &Gfs::new().daily(9).time_zone(Tz::America__Sao_Paulo),
        &["2018-11-04T02:59", "2018-11-04T03:00", "2018-11-05T01:59"],
        &[("2018-11-04T02:59", "daily 2018-11-03"), ("2018-11-05T01:59", "daily 2018-11-04")],
    );
    // 16 February 2019 has the hour from 23:00 twice.
    table(
        &Gfs::new().daily(9).time_zone(Tz::America__Sao_Paulo),
        &["2019-02-17T01:59", "2019-02-17T02:59", "2019-02-17T03:00"],
        &[("2019-02-17T02:59", "daily 2019-02-16"), ("2019-02-17T03:00", "daily 2019-02-17")],
    );
    // Cairo, 26 April 2024: 23:59:59 is followed by 01:00.
    table(
        &Gfs::new().daily(9).hourly(2).time_zone(Tz::Africa__Cairo),
        &["2024-04-25T21:59", "2024-04-25T22:00"],
        &[
            ("2024-04-25T21:59", "hourly 2024-04-25 23:00+02:00, daily 2024-04-25"),
            ("2024-04-25T22:00", "hourly 2024-04-26 01:00+03:00, daily 2024-04-26"),
        ],
    );
    // Samoa left out 30 December 2011.
    table(
        &Gfs::new().daily(9).time_zone(Tz::Pacific__Apia),
        &["2011-12-30T09:59", "2011-12-30T10:00"],
        &[("2011-12-30T09:59", "daily 2011-12-29"), ("2011-12-30T10:00", "daily 2011-12-31")],
    );
}

#[test]
fn iso_weeks_cross_the_end_of_the_year_and_week_53_exists() {
    table(
        &Gfs::new().weekly(9).yearly(9),
        &["2020-12-27", "2020-12-28", "2020-12-31", "2021-01-03", "2021-01-04"],
        &[
            ("2020-12-27T02:00", "weekly 2020-W52"),
            ("2020-12-31T02:00", "yearly 2020"),
            ("2021-01-03T02:00", "weekly 2020-W53"),
            ("2021-01-04T02:00", "weekly 2021-W01, yearly 2021"),
        ],
    );
    // Monday 30 December 2024 is in the first week of 2025.
    table(
        &Gfs::new().weekly(9),
        &["2024-12-29", "2024-12-30", "2025-01-05"],
        &[("2024-12-29T02:00", "weekly 2024-W52"), ("2025-01-05T02:00", "weekly 2025-W01")],
    );
}

#[test]
fn days_without_a_backup_take_no_place() {
    table(
        &Gfs::new().daily(4).weekly(3),
        &["2026-01-05", "2026-03-02", "2026-03-03", "2026-06-10", "2026-06-11"],
        &[
            ("2026-01-05T02:00", "weekly 2026-W02"),
            ("2026-03-02T02:00", "daily 2026-03-02"),
            ("2026-03-03T02:00", "daily 2026-03-03, weekly 2026-W10"),
            ("2026-06-10T02:00", "daily 2026-06-10"),
            ("2026-06-11T02:00", "daily 2026-06-11, weekly 2026-W24"),
        ],
    );
}

#[test]
fn of_many_in_one_slot_the_newest_stays() {
    let burst: Vec<_> = (0..500).map(|n| utc("2026-11-20T10:00") + TimeDelta::seconds(7 * n)).collect();
    assert_eq!(decided(&Gfs::new().hourly(24).daily(30), &burst).len(), 1);
    let last = decided(&KeepLast::new(3), &burst);
    assert_eq!(
        last.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>(),
        ["last 3 of 3", "last 2 of 3", "last 1 of 3"]
    );
    // Two in the same second differ by their random digits and are still one slot.
    let mut twins = vec![full(utc("2026-11-20")), full(utc("2026-11-20"))];
    twins[1].id = BackupId::new(utc("2026-11-20"), 2);
    let plan = PrunePlan::new(&twins, &Gfs::new().daily(30), utc("2026-11-21"));
    assert_eq!(plan.deletions(), [twins[0].id]);
}

#[test]
fn a_clock_that_went_back_costs_no_finished_day() {
    let mut times = daily("2026-11-10", "2026-11-20");
    // The clock falls back to the 15th and the machine goes on from there for three days.
    times.extend(["2026-11-15T09:00", "2026-11-16T09:00", "2026-11-17T09:00"].map(utc));
    let kept: Vec<_> = decided(&Gfs::new().daily(7), &times).into_iter().map(|(time, _)| time).collect();
    assert_eq!(
        kept,
        [
            "2026-11-14T02:00",
            "2026-11-15T09:00",
            "2026-11-16T09:00",
            "2026-11-17T09:00",
            "2026-11-18T02:00",
            "2026-11-19T02:00",
            "2026-11-20T02:00",
        ]
    );
}

#[test]
fn a_clock_that_jumps_ahead_deletes_nothing() {
    let backups: Vec<_> = daily("2026-11-01", "2026-11-20").into_iter().map(full).collect();
    let ahead = utc("2036-11-20");
    for policy in [&KeepWithin::days(30) as &dyn RetentionPolicy, &Gfs::new().daily(30)] {
        assert!(PrunePlan::new(&backups, policy, ahead).deletions().is_empty(), "{policy:?}");
    }
}

#[test]
fn time_is_measured_from_the_newest_backup_when_backups_have_stopped() {
    let times = daily("2026-01-01", "2026-02-28");
    let kept = decided(&KeepWithin::days(30), &times);
    assert_eq!(kept.first().unwrap().0, "2026-01-29T02:00");
    assert_eq!(kept.len(), 31);
}

/// How many of three years of daily fulls a policy keeps.
fn of_three_years(policy: &dyn RetentionPolicy) -> Vec<String> {
    let times = daily("2023-11-21", "2026-11-20");
    decided(policy, &times).into_iter().map(|(time, _)| time[..10].to_owned()).collect()
}

#[test]
fn thirty_daily_and_twelve_monthly() {
    let kept = of_three_years(&Gfs::new().daily(30).monthly(12));
    // The daily ones reach back to 22 October, so the ends of October and November are among them.
    assert_eq!(kept.len(), 30 + 10);
    assert_eq!((kept[0].as_str(), kept[9].as_str()), ("2025-12-31", "2026-09-30"));
    assert_eq!(kept[10], "2026-10-22");
}

#[test]
fn fulls_for_thirty_days_monthly_for_ninety_and_annual_for_a_year() {
    let policy = KeepWithin::days(30)
        .or(KeepWithin::days(90).and(Gfs::new().monthly(4)))
        .or(KeepWithin::days(365).and(Gfs::new().yearly(2)));
    let kept = of_three_years(&policy);
    assert_eq!(kept[..4], ["2025-12-31", "2026-08-31", "2026-09-30", "2026-10-21"]);
    assert_eq!(kept.len(), 3 + 31);
}

#[test]
fn thirty_daily_twelve_weekly_twelve_monthly_and_seven_yearly() {
    let kept = of_three_years(&Gfs::new().daily(30).weekly(12).monthly(12).yearly(7));
    let before_the_days = [
        "2023-12-31",
        "2024-12-31",
        "2025-12-31",
        "2026-01-31",
        "2026-02-28",
        "2026-03-31",
        "2026-04-30",
        "2026-05-31",
        "2026-06-30",
        "2026-07-31",
        "2026-08-31",
        "2026-09-06",
        "2026-09-13",
        "2026-09-20",
        "2026-09-27",
        "2026-09-30",
        "2026-10-04",
        "2026-10-11",
        "2026-10-18",
    ];
    assert_eq!(kept[..19], before_the_days);
    assert_eq!(kept.len(), 19 + 30);
}
