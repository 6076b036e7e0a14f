//! A plan for each sink, and carrying it out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::super::Repository;
use super::super::access::Access;
use super::super::shutdown::{Shutdown, or_wind_down};
use super::archive::{Moved, archive};
use super::delete::{Deleting, Done};
use super::report::PruneReport;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Event;
use crate::retention::{BackupSummary, PrunePlan};
use crate::sink::Sink;

/// What a prune would delete on each sink, and why. Print it, then [`execute`](Self::execute) it.
#[must_use = "a plan deletes nothing until it is executed"]
pub struct PlannedPrune {
    pub(super) repository: Repository,
    pub(super) set: SetName,
    pub(super) sinks: Vec<SinkPlan>,
    pub(super) unreachable: Vec<(SinkId, Error)>,
    pub(super) allow_mass_delete: bool,
    pub(super) now: Option<DateTime<Utc>>,
    pub(super) watch: Watch,
    pub(super) shutdown: Option<Shutdown<'static>>,
}

/// What a prune would delete on one sink.
#[derive(Clone)]
pub struct SinkPlan {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) plan: PrunePlan,
    /// Everything the plan is about.
    pub(super) summaries: BTreeMap<BackupId, BackupSummary>,
    pub(super) unfinished: BTreeSet<BackupId>,
    /// Backups to be moved to a storage class.
    pub(super) archive: Vec<(BackupId, String)>,
    /// Where everything that was listed lies.
    pub(super) dirs: BTreeMap<BackupId, BackupDir>,
    /// Markers of pruners on backups that stay.
    pub(super) old_markers: Vec<Key>,
}

impl SinkPlan {
    /// The sink.
    pub fn sink(&self) -> &SinkId {
        self.sink.id()
    }

    /// Which of its backups stay and go, with reasons.
    pub fn plan(&self) -> &PrunePlan {
        &self.plan
    }

    /// Backups that an earlier prune has half deleted. They are not listed any more, and the rest of them goes.
    pub fn unfinished(&self) -> impl Iterator<Item = BackupId> + '_ {
        self.unfinished.iter().copied()
    }

    /// Backups whose artifacts are to lie in another storage class, and which, newest first. Many may lie there already.
    pub fn archive(&self) -> impl Iterator<Item = (BackupId, &str)> {
        self.archive.iter().map(|(id, class)| (*id, class.as_str()))
    }
}

impl fmt::Debug for SinkPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkPlan")
            .field("sink", self.sink())
            .field("plan", &self.plan)
            .field("unfinished", &self.unfinished)
            .finish_non_exhaustive()
    }
}

impl PlannedPrune {
    /// The set.
    pub fn set(&self) -> &SetName {
        &self.set
    }

    /// The plan of each sink that could be listed.
    pub fn sinks(&self) -> &[SinkPlan] {
        &self.sinks
    }

    /// The sinks that could not be listed, and why. Nothing is deleted there.
    pub fn unreachable(&self) -> &[(SinkId, Error)] {
        &self.unreachable
    }

    /// Whether there is nothing to delete on any sink that could be listed. Storage classes may still change.
    pub fn is_empty(&self) -> bool {
        self.sinks.iter().all(|sink| sink.plan.deletions().is_empty() && sink.unfinished.is_empty())
    }

    /// Lets more than half of the set go.
    pub fn allow_mass_delete(mut self) -> Self {
        self.allow_mass_delete = true;
        self
    }

    /// Deletes what the plan forgets, on all sinks at once, and finishes what an earlier prune left half deleted.
    ///
    /// What is pinned, built upon or needed by a newer backup since the plan was made is spared.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PruneRefused`] before anything is deleted when more than half of a sink's backups would go and that
    /// was not allowed; or, possibly after some deletions, when a manifest or marker that cannot be read has appeared or
    /// a kept backup has vanished. [`ErrorKind::Cancelled`] when it was stopped. The error of a sink when every
    /// sink failed. What goes wrong on one of several sinks is in the report.
    pub async fn execute(mut self) -> Result<PruneReport> {
        for sink in &self.sinks {
            let permitted = sink.plan.permit(self.allow_mass_delete);
            permitted.map_err(|e| e.with("sink", sink.sink()).with("set", &self.set))?;
        }
        let stop = CancellationToken::new();
        let shutdown = self.shutdown.take();
        let inner = &self.repository.0;
        let (set, watch, now) = (&self.set, &self.watch, self.now);
        let work = join_all(self.sinks.iter().map(|plan| {
            let access = Access { inner, sink: Arc::clone(&plan.sink), watch, stop: stop.clone() };
            on_sink(access, set, plan, now)
        }));
        let results = or_wind_down(shutdown, &stop, work).await;
        let mut report = PruneReport::new(self.set.clone());
        report.failed = std::mem::take(&mut self.unreachable);
        let mut refused = None;
        for (sink, (done, moved, result)) in self.sinks.iter().zip(results) {
            report.add(done, moved);
            match result {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::PruneRefused | ErrorKind::Cancelled) => {
                    refused = refused.or(Some(error));
                }
                Err(error) => {
                    self.watch.event(&Event::SinkFailed { sink: sink.sink(), error: &error });
                    report.failed.push((sink.sink().clone(), error));
                }
            }
        }
        report.elapsed = self.watch.elapsed();
        if refused.is_none() && report.failed.len() == inner.sinks.len() {
            refused = report.failed.pop().map(|(_, error)| error);
        }
        match refused {
            None => Ok(report),
            Some(error) => Err(error.with("set", &self.set).with("deleted", report.deleted.len())),
        }
    }
}

async fn on_sink(
    access: Access<'_>,
    set: &SetName,
    plan: &SinkPlan,
    now: Option<DateTime<Utc>>,
) -> (Done, Moved, Result<()>) {
    let mut deleting = match Deleting::new(&access, set, plan, now) {
        Ok(deleting) => deleting,
        Err(error) => return (Done::default(), Moved::default(), Err(error)),
    };
    let result = deleting.run().await;
    // Not on a sink that is in trouble.
    let moved = match &result {
        Ok(()) => archive(&access, set, plan).await,
        Err(_) => Moved::default(),
    };
    (deleting.done, moved, result)
}

impl fmt::Display for PlannedPrune {
    /// The table of each sink's plan; sinks with the same plan share one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prune of {}", self.set)?;
        let mut shown: BTreeSet<&SinkId> = BTreeSet::new();
        for sink in &self.sinks {
            if shown.contains(sink.sink()) {
                continue;
            }
            let alike = self.sinks.iter().filter(|other| other.plan == sink.plan);
            let names: Vec<&SinkId> = alike.map(SinkPlan::sink).collect();
            let title: Vec<String> = names.iter().map(ToString::to_string).collect();
            shown.extend(names);
            write!(f, "\n\non {}:\n{}", title.join(", "), sink.plan)?;
        }
        for sink in self.sinks.iter().filter(|sink| !sink.unfinished.is_empty()) {
            write!(f, "\n\non {}, half deleted by an earlier prune, to be finished:", sink.sink())?;
            for id in &sink.unfinished {
                write!(f, "\n{id}")?;
            }
        }
        for sink in self.sinks.iter().filter(|sink| !sink.archive.is_empty()) {
            write!(f, "\n\non {}, to lie in another storage class:", sink.sink())?;
            for (id, class) in &sink.archive {
                write!(f, "\n{id}  {class}")?;
            }
        }
        for (sink, error) in &self.unreachable {
            write!(f, "\n\n{sink} cannot be listed, nothing is deleted there: {error}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PlannedPrune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedPrune")
            .field("set", &self.set)
            .field("sinks", &self.sinks)
            .field("unreachable", &self.unreachable)
            .finish_non_exhaustive()
    }
}
