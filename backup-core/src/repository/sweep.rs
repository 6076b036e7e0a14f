//! The sweep verb: removing what runs that died left behind.

mod report;

use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;

pub use report::{SweepReport, Swept};

use super::Repository;
use super::access::{Access, Place, is_refusal};
use super::clear::{Cleared, clear, condemn};
use super::commit::{PENDING_LIMIT, Pending};
use super::shutdown::{Shutdown, or_drop};
use crate::error::{ErrorKind, Result};
use crate::name::{BackupId, SetName};
use crate::observer::{Event, Observer};

/// How long ago a run must have begun for its remains to be swept, unless told otherwise.
const DEFAULT_GRACE: Duration = Duration::from_secs(3 * 86_400);

/// A sweep to be made: set options, then await.
///
/// Removes the directories of backups that have no manifest, no pending marker that may belong to a living run, and
/// an id older than the grace; then what unfinished uploads older than the grace left in the sink. The time in the id
/// decides, never the modification time of an object alone.
///
/// A run that was silent for so long that a sweep may have taken its objects notices before it writes its manifest, and
/// fails.
#[must_use = "a sweep runs when it is awaited"]
pub struct Sweep<'a> {
    repository: &'a Repository,
    set: String,
    grace: Duration,
    now: Option<DateTime<Utc>>,
    observers: Vec<Arc<dyn Observer>>,
    shutdown: Option<Shutdown<'a>>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str) -> Self {
        Self {
            repository,
            set: set.to_owned(),
            grace: DEFAULT_GRACE,
            now: None,
            observers: Vec::new(),
            shutdown: None,
        }
    }

    /// How long ago a run must have begun for its remains to be swept. Default three days.
    pub fn grace(mut self, time: Duration) -> Self {
        self.grace = time;
        self
    }

    /// Takes `time` for now instead of the clock, for tests.
    pub fn now(mut self, time: DateTime<Utc>) -> Self {
        self.now = Some(time);
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Stops the run with [`ErrorKind::Cancelled`] when `shutdown` completes.
    pub fn run_until(mut self, shutdown: impl Future<Output = ()> + Send + 'a) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    async fn run(mut self) -> Result<SweepReport> {
        let inner = &self.repository.0;
        let set = SetName::parse(std::mem::take(&mut self.set))?;
        let watch = inner.watch(std::mem::take(&mut self.observers));
        let shutdown = self.shutdown.take();
        let mut report = SweepReport::new(set.clone());
        let sweeping = Sweeping { grace: self.grace, now: self.now.unwrap_or_else(|| inner.clock.now()) };
        let work = async {
            for sink in &inner.sinks {
                let access = inner.access(sink, &watch);
                if let Err(error) = sweeping.on_sink(&access, &set, &mut report).await {
                    watch.event(&Event::SinkFailed { sink: sink.id(), error: &error });
                    report.failed.push((sink.id().clone(), error));
                }
            }
            Ok(())
        };
        // A sweep that ends anywhere is continued by the next: it needs no cleaning up.
        or_drop(shutdown, "sweep", work).await.map_err(|e| e.with("set", &set))?;
        Ok(report)
    }
}

/// A sweep under way.
#[derive(Clone, Copy)]
struct Sweeping {
    grace: Duration,
    now: DateTime<Utc>,
}

impl Sweeping {
    async fn on_sink(self, access: &Access<'_>, set: &SetName, report: &mut SweepReport) -> Result<()> {
        let mut refused = None;
        for (id, place) in access.places(set).await? {
            match self.judge(access, id, &place).await? {
                Remains::None => continue,
                Remains::Keep(why) => {
                    report.kept.push((access.id().clone(), id, why.to_owned()));
                    continue;
                }
                Remains::Sweep => {}
            }
            let dir = &place.dir;
            let mut cleared = Cleared::default();
            let marker = condemn(access, set, id, dir).await?;
            // Whoever begins to copy this backup here from now on sees the marker; whoever began before is seen here.
            if let kept @ (Remains::None | Remains::Keep(_)) = self.judge(access, id, &place).await? {
                if let Some(marker) = &marker {
                    access.release(marker).await?;
                }
                if let Remains::Keep(why) = kept {
                    report.kept.push((access.id().clone(), id, why.to_owned()));
                }
                continue;
            }
            match clear(access, dir, &mut cleared).await {
                Ok(()) => {
                    let (sink, Cleared { objects, bytes: freed }) = (access.id().clone(), cleared);
                    access.watch.event(&Event::Deleted { sink: &sink, set, id, freed });
                    report.removed.push(Swept { sink, id, objects, freed });
                }
                Err(error) if is_refusal(&error) || error.kind() == ErrorKind::AlreadyExists => {
                    refused = refused.or(Some(error.with("backup", id)));
                }
                Err(error) => return Err(error),
            }
        }
        let sweep = access.inner.patience.retry(access.id(), access.watch, || access.sink.sweep(self.grace));
        report.uploads.push((access.id().clone(), sweep.await?));
        refused.map_or(Ok(()), Err)
    }

    async fn judge(self, access: &Access<'_>, id: BackupId, place: &Place) -> Result<Remains> {
        if place.manifest.is_some() {
            return Ok(Remains::None);
        }
        let limit = TimeDelta::from_std(self.grace).ok().and_then(|by| self.now.checked_sub_signed(by));
        if limit.is_none_or(|limit| id.time() > limit) {
            return Ok(Remains::Keep("begun not long ago"));
        }
        let dir = &place.dir;
        // By name, whatever the list showed: a list is not one moment.
        if let Some(bytes) = access.read(&dir.pending()?, PENDING_LIMIT).await? {
            match Pending::parse(&bytes) {
                Err(_) => return Ok(Remains::Keep("its pending marker cannot be read")),
                Ok(pending) if pending.may_be_alive(self.now) => {
                    return Ok(Remains::Keep("its run may be at work"));
                }
                Ok(_) => {}
            }
        }
        // After the marker: a run writes its manifest before it removes its marker.
        Ok(if access.exists(&dir.manifest()?).await? { Remains::None } else { Remains::Sweep })
    }
}

/// What a directory is to a sweep.
enum Remains {
    /// A backup.
    None,
    /// Left by a run, and to stay.
    Keep(&'static str),
    /// Left by a run that is over.
    Sweep,
}

impl<'a> IntoFuture for Sweep<'a> {
    type Output = Result<SweepReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        self.run().boxed()
    }
}

impl fmt::Debug for Sweep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweep").field("set", &self.set).field("grace", &self.grace).finish_non_exhaustive()
    }
}
