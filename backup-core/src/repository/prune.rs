//! The prune verb: which backups go, said first and done then.
//!
//! # Several sinks
//!
//! Every sink is planned for itself, over the backups that it holds, by its own policy ([`Prune::on`]) or the common one.
//! Deleting a copy on one sink takes nothing from what another holds, with one exception that is kept watch over: **a copy
//! stays while another sink's policy wants that backup, that sink is not seen to hold it, and no third sink keeps
//! it.** The copy about to go may then be the last one of something that is to be kept: because the other sink was away
//! when the backup was made, lost it, or cannot be listed now.
//!
//! So a sink that cannot be listed does not stop the others where all have one policy: what goes there is wanted
//! nowhere. It stops exactly those deletions that count on a copy nobody can see.
//!
//! # Without locks
//!
//! For each victim a pruner puts a marker of its own, `<set>/<id>/condemned/<run>.json`, lists the set again, and leaves
//! every victim that is pinned by now, whose own writer may be at work, or that a pending marker or a backup the plan does
//! not know needs. It then deletes the manifest, the objects, and the markers last. Every pruner has its own marker
//! because the first of two that gives way must not take away what the second relies on. A pruner killed on the way
//! leaves a marker: without a manifest beside it the rest is deleted by the next prune, with one it has no effect
//! but to keep writers from building on that backup, until the next prune deletes the backup or, three days later, the
//! marker.

mod archive;
pub(super) mod condemned;
mod decide;
mod delete;
mod planned;
mod recheck;
mod report;
mod survey;

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;

pub use planned::{PlannedPrune, SinkPlan};
pub use report::{Archived, DeletedBackup, NotArchived, NotDeleted, PruneReport, Spared};

use super::Repository;
use super::shutdown::{Shutdown, or_drop};
use crate::error::Result;
use crate::name::{SetName, SinkId};
use crate::observer::Observer;
use crate::retention::{RetentionPolicy, Slot};

/// A prune to be planned: set options, then call [`plan`](Self::plan), or await it to plan and execute at once.
#[must_use = "a prune does nothing until it is planned or awaited"]
pub struct Prune<'a> {
    repository: &'a Repository,
    set: String,
    policy: &'a dyn RetentionPolicy,
    own: BTreeMap<SinkId, &'a dyn RetentionPolicy>,
    allow_mass_delete: bool,
    classes: archive::Classes,
    now: Option<DateTime<Utc>>,
    observers: Vec<Arc<dyn Observer>>,
    shutdown: Option<Shutdown<'static>>,
}

impl<'a> Prune<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str, policy: &'a dyn RetentionPolicy) -> Self {
        Self {
            repository,
            set: set.to_owned(),
            policy,
            own: BTreeMap::new(),
            allow_mass_delete: false,
            classes: archive::Classes::new(),
            now: None,
            observers: Vec::new(),
            shutdown: None,
        }
    }

    /// Prunes one sink by a policy of its own.
    pub fn on(mut self, sink: &SinkId, policy: &'a dyn RetentionPolicy) -> Self {
        self.own.insert(sink.clone(), policy);
        self
    }

    /// Lets more than half of the set go.
    pub fn allow_mass_delete(mut self) -> Self {
        self.allow_mass_delete = true;
        self
    }

    /// Moves the artifacts of backups that nothing but `slot` keeps to this storage class of their store, in its own
    /// spelling: `storage_class(Slot::Yearly, "GLACIER")`. Where several slots keep a backup the finest decides.
    ///
    /// Manifests, details and indexes stay where they are, so that the backup is listed as before. What lies in an
    /// archive class must be thawed before it is restored ([`RestoreTo::thaw`](crate::RestoreTo::thaw)) or verified. Sinks
    /// without storage classes are left alone, and objects below 128 KiB, for which archives charge more.
    pub fn storage_class(mut self, slot: Slot, class: impl Into<String>) -> Self {
        self.classes.insert(slot, class.into());
        self
    }

    /// Takes `time` for now instead of the clock: for tests, and to see what a later prune would do.
    pub fn now(mut self, time: DateTime<Utc>) -> Self {
        self.now = Some(time);
        self
    }

    /// Watches planning and execution, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Stops planning or execution, with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), when `shutdown`
    /// completes. A deletion under way is finished by the next prune.
    pub fn run_until(mut self, shutdown: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    /// Reads every manifest of the set and decides. Deletes nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PruneRefused`](crate::ErrorKind::PruneRefused) when a manifest cannot be read or trusted: the
    /// error's context has the `backup` and the `sink`. The error of the sink when none can be listed.
    pub async fn plan(mut self) -> Result<PlannedPrune> {
        let inner = &self.repository.0;
        let set = SetName::parse(std::mem::take(&mut self.set))?;
        for sink in self.own.keys() {
            inner.sink_number(sink)?;
        }
        let watch = inner.watch(std::mem::take(&mut self.observers));
        let now = self.now.unwrap_or_else(|| inner.clock.now());
        let survey = {
            let work = survey::survey(inner, &set, now, &watch);
            or_drop(self.shutdown.as_mut(), "plan prune", work).await
        };
        let survey = survey.map_err(|e| e.with("set", &set))?;
        let policy = |sink: &SinkId| self.own.get(sink).copied().unwrap_or(self.policy);
        let sinks = decide::decide(inner, &survey, policy, &self.classes, now);
        Ok(PlannedPrune {
            repository: self.repository.clone(),
            set,
            sinks,
            unreachable: survey.unreachable,
            allow_mass_delete: self.allow_mass_delete,
            now: self.now,
            watch,
            shutdown: self.shutdown,
        })
    }
}

impl<'a> IntoFuture for Prune<'a> {
    type Output = Result<PruneReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        async move { self.plan().await?.execute().await }.boxed()
    }
}

impl std::fmt::Debug for Prune<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prune")
            .field("set", &self.set)
            .field("policy", &self.policy)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}
