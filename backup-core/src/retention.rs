//! Which backups stay: [`RetentionPolicy`], the policies that come with the library, and the pure planner
//! [`PrunePlan`].
//!
//! Everything here is a function of a list of backups and a moment: no clock is read and nothing is deleted.
//!
//! # Which backups count
//!
//! A policy that counts ("the last 7", "30 daily") counts only backups of [`Standing::Good`]: fulls and
//! incrementals that are sealed, have all the copies their repository required, do not date from more than
//! [`CLOCK_TOLERANCE`] in the future, and whose references are all present. Whatever else lies in the set can
//! therefore never push a good backup out.
//!
//! # Continuous logs
//!
//! Policies decide fulls and incrementals. Log slices follow them: without a [`pitr_window`] every slice that a
//! kept backup can use stays; with one, slices stay back to the newest backup before the window.
//!
//! # Examples
//!
//! Thirty daily and twelve monthly backups, and every moment of the last week:
//!
//! ```
//! use backup_core::{Gfs, RetentionPolicy, Tz, pitr_window};
//! use std::time::Duration;
//!
//! let policy = Gfs::new().daily(30).monthly(12).time_zone(Tz::Europe__Berlin)
//!     .or(pitr_window(Duration::from_secs(7 * 86_400)));
//! assert_eq!(policy.minimum_keep(), Some(Duration::from_secs(7 * 86_400)));
//! ```
//!
//! All fulls for 30 days, one a month for 90 days, one a year for a year:
//!
//! ```
//! use backup_core::{Gfs, KeepWithin, RetentionPolicy};
//!
//! let policy = KeepWithin::days(30)
//!     .or(KeepWithin::days(90).and(Gfs::new().monthly(4)))
//!     .or(KeepWithin::days(365).and(Gfs::new().yearly(2)));
//! assert_eq!(policy.minimum_keep(), Some(std::time::Duration::from_secs(30 * 86_400)));
//! ```
//!
//! Thirty daily, twelve weekly, twelve monthly and seven yearly backups, planned and printed:
//!
//! ```
//! use backup_core::{BackupId, BackupKind, BackupSummary, Gfs, PrunePlan, SetName};
//! use chrono::{TimeDelta, TimeZone, Utc};
//!
//! let policy = Gfs::new().daily(30).weekly(12).monthly(12).yearly(7);
//! let now = Utc.with_ymd_and_hms(2026, 11, 20, 3, 0, 0).unwrap();
//! let set = SetName::parse("hub/wallet")?;
//! let backups: Vec<_> = (0..400)
//!     .map(|days| BackupId::new(now - TimeDelta::days(days), 7))
//!     .map(|id| BackupSummary::new(id, set.clone(), BackupKind::Full))
//!     .collect();
//!
//! let plan = PrunePlan::new(&backups, &policy, now);
//! assert!(plan.mass_delete(), "of 400 backups most would go: somebody has to say that this is meant");
//! assert!(plan.permit(false).is_err());
//! println!("{plan}");
//! # Ok::<(), backup_core::Error>(())
//! ```

mod chain;
mod combine;
mod gfs;
mod keep;
mod log;
mod order;
mod pitr;
mod plan;
mod standing;
mod summary;
mod table;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

pub use chain::{LogGap, Until};
pub(crate) use chain::{Resume, choose, resume};
pub use combine::{And, Or};
pub use gfs::{Gfs, Slot};
pub use keep::{KeepLabelled, KeepLast, KeepWithin};
pub use log::LogPosition;
pub use pitr::{PitrRange, PitrWindow, pitr_gaps, pitr_ranges, pitr_window};
pub use plan::{PlanEntry, PrunePlan};
pub use standing::{CLOCK_TOLERANCE, Standing, countable, standings};
pub use summary::{BackupKind, BackupSummary};

use crate::name::BackupId;

/// Decides which backups of a set stay. Pure: no clock, no input or output.
///
/// # Contract
///
/// * The same arguments give the same decisions.
/// * An id without a decision is kept. An id that was not given is ignored.
/// * A newer backup never brings a forgotten one back: what is forgotten stays forgotten when another backup is
///   added at the newer end, or when `now` advances.
/// * Forgetting what was decided changes no other decision: among the kept, everything is kept.
///
/// [`countable`] gives the backups that may take a place. The planner protects the newest good backup, pinned
/// ones and everything kept ones refer to, whatever a policy decides.
/// `backup_testkit::retention` checks an implementation against this contract.
pub trait RetentionPolicy: Debug + Send + Sync {
    /// A decision for each backup, given newest first. A backup without a decision is kept.
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision>;

    /// The time, from its start, for which this policy keeps every new full and incremental at least, if there is
    /// such a time. Feeds object locks. Policies that count keep no backup for any fixed time, because newer
    /// ones can take every place at once.
    fn minimum_keep(&self) -> Option<Duration> {
        None
    }

    /// How far back from now this policy keeps log slices, if it decides on them. Where it is `None`, every
    /// slice that a kept backup can use stays.
    fn log_window(&self) -> Option<Duration> {
        None
    }

    /// Keeps what this policy or `other` keeps.
    fn or<P: RetentionPolicy>(self, other: P) -> Or<Self, P>
    where
        Self: Sized,
    {
        Or::new(self, other)
    }

    /// Keeps only what both this policy and `other` keep.
    fn and<P: RetentionPolicy>(self, other: P) -> And<Self, P>
    where
        Self: Sized,
    {
        And::new(self, other)
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

impl Decision {
    /// Keeps for one reason.
    pub fn keep(reason: impl Into<String>) -> Self {
        Self::Keep { reasons: vec![reason.into()] }
    }

    /// Whether the backup stays.
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep { .. })
    }
}

/// The moment `by` before `moment`, or the beginning of time.
fn before(moment: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by)
        .ok()
        .and_then(|delta| moment.checked_sub_signed(delta))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// The moment `by` after `moment`, or the end of time.
fn after(moment: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by)
        .ok()
        .and_then(|delta| moment.checked_add_signed(delta))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// A length of time as people say it: `7 d`, `36 h`, `90 s`.
fn spoken(time: Duration) -> String {
    match time.as_secs() {
        s if s >= 86_400 && s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s >= 3_600 && s % 3_600 == 0 => format!("{} h", s / 3_600),
        s => format!("{s} s"),
    }
}
