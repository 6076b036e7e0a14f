//! Policies made of policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::summary::BackupSummary;
use super::{Decision, RetentionPolicy};
use crate::name::BackupId;

/// Keeps what either policy keeps. Made by [`RetentionPolicy::or`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Or<A, B>(A, B);

impl<A, B> Or<A, B> {
    pub(super) fn new(a: A, b: B) -> Self {
        Self(a, b)
    }
}

impl<A: RetentionPolicy, B: RetentionPolicy> RetentionPolicy for Or<A, B> {
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        combine(self.0.decide(newest_first, now), self.1.decide(newest_first, now), |a, b| match (a, b) {
            (Some(a), Some(b)) if !a.is_keep() && !b.is_keep() => Some(Decision::Forget),
            (a, b) => merge_reasons(a, b),
        })
    }

    fn minimum_keep(&self) -> Option<Duration> {
        self.0.minimum_keep().max(self.1.minimum_keep())
    }

    fn log_window(&self) -> Option<Duration> {
        self.0.log_window().max(self.1.log_window())
    }
}

/// Keeps what both policies keep. Made by [`RetentionPolicy::and`].
///
/// Together with a [`pitr_window`](super::pitr_window) this narrows the window's fulls and incrementals too:
/// a window is meant for [`RetentionPolicy::or`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct And<A, B>(A, B);

impl<A, B> And<A, B> {
    pub(super) fn new(a: A, b: B) -> Self {
        Self(a, b)
    }
}

impl<A: RetentionPolicy, B: RetentionPolicy> RetentionPolicy for And<A, B> {
    fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
        combine(self.0.decide(newest_first, now), self.1.decide(newest_first, now), |a, b| match (a, b) {
            (Some(Decision::Forget), _) | (_, Some(Decision::Forget)) => Some(Decision::Forget),
            (a, b) => merge_reasons(a, b),
        })
    }

    fn minimum_keep(&self) -> Option<Duration> {
        Some(self.0.minimum_keep()?.min(self.1.minimum_keep()?))
    }

    fn log_window(&self) -> Option<Duration> {
        Some(self.0.log_window()?.min(self.1.log_window()?))
    }
}

/// `rule` for each id that either side decided on.
fn combine(
    mut a: BTreeMap<BackupId, Decision>,
    mut b: BTreeMap<BackupId, Decision>,
    rule: impl Fn(Option<Decision>, Option<Decision>) -> Option<Decision>,
) -> BTreeMap<BackupId, Decision> {
    let ids: BTreeSet<_> = a.keys().chain(b.keys()).copied().collect();
    ids.into_iter().filter_map(|id| Some((id, rule(a.remove(&id), b.remove(&id))?))).collect()
}

/// The reasons of both sides; no decision where only the absence of one keeps.
fn merge_reasons(a: Option<Decision>, b: Option<Decision>) -> Option<Decision> {
    let mut merged = Vec::new();
    let mut explicit = false;
    for decision in [a, b].into_iter().flatten() {
        if let Decision::Keep { reasons } = decision {
            explicit = true;
            for reason in reasons {
                if !merged.contains(&reason) {
                    merged.push(reason);
                }
            }
        }
    }
    explicit.then_some(Decision::Keep { reasons: merged })
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<P: RetentionPolicy + ?Sized> RetentionPolicy for $pointer {
            fn decide(&self, newest_first: &[BackupSummary], now: DateTime<Utc>) -> BTreeMap<BackupId, Decision> {
                (**self).decide(newest_first, now)
            }
            fn minimum_keep(&self) -> Option<Duration> {
                (**self).minimum_keep()
            }
            fn log_window(&self) -> Option<Duration> {
                (**self).log_window()
            }
        }
    )*};
}

forward!(&P, Box<P>, Arc<P>);
