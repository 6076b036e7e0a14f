//! The restore verb.

mod losses;
mod plan;
mod replay;
mod run;

use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;

pub use losses::Loss;

use super::shutdown::Shutdown;
use super::{BackupList, Repository};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Observer;
use crate::proof::Proofs;
use crate::retention::{BackupSummary, LogPosition, Until, choose};
use crate::selection::Selection;
use crate::source::{Source, Warning};
use crate::target::{RestoreReport, RestoreTarget, Undo};

/// Which backup to restore; [`into`](RestoreBuilder::into) says where to.
#[derive(Debug)]
pub struct RestoreBuilder<'a> {
    repository: &'a Repository,
    set: String,
    which: Which,
    max_age: Option<TimeDelta>,
    until: Option<Until>,
}

/// What was chosen: a base, and the slices to replay on it.
struct Chosen {
    id: BackupId,
    slices: Vec<BackupSummary>,
    passed_over: Option<Warning>,
}

#[derive(Clone, Debug)]
enum Which {
    Latest,
    Id(BackupId),
    At(DateTime<Utc>),
    Labelled(String, String),
}

impl<'a> RestoreBuilder<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str) -> Self {
        Self { repository, set: set.to_owned(), which: Which::Latest, max_age: None, until: None }
    }

    /// The newest backup whose manifest can be trusted. The default.
    pub fn latest(mut self) -> Self {
        self.which = Which::Latest;
        self
    }

    /// This backup.
    pub fn id(mut self, id: BackupId) -> Self {
        self.which = Which::Id(id);
        self
    }

    /// The newest backup started at or before `time`.
    pub fn at(mut self, time: DateTime<Utc>) -> Self {
        self.which = Which::At(time);
        self
    }

    /// The newest backup with this label.
    pub fn labelled(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.which = Which::Labelled(name.into(), value.into());
        self
    }

    /// Fails when the chosen backup is older than `age`: someone who can delete from a sink can hide the newest
    /// backups, and an older one would be restored without a sign.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX));
        self
    }

    /// Replays the continuous log of the set on the backup: up to a moment, a position, or its [end](Until::End).
    ///
    /// Of the backups that the other options allow, the newest from which the log leads there without a gap is taken.
    /// [`Repository::pitr_ranges`] lists what can be restored. Where the log does not lead there, the restore fails
    /// with [`ErrorKind::LogGap`] before anything is touched.
    ///
    /// ```
    /// # use backup_core::{Repository, RestoreTarget, Result};
    /// # use chrono::{TimeZone as _, Utc};
    /// async fn before_the_mistake(repo: &Repository, target: &dyn RestoreTarget) -> Result<()> {
    ///     let mistake = Utc.with_ymd_and_hms(2026, 11, 20, 14, 31, 59).unwrap();
    ///     repo.restore("shop/orders").until(mistake).into(target).await?;
    ///     Ok(())
    /// }
    /// ```
    pub fn until(mut self, until: impl Into<Until>) -> Self {
        self.until = Some(until.into());
        self
    }

    /// Where to restore into.
    pub fn into(self, target: &'a dyn RestoreTarget) -> RestoreTo<'a> {
        RestoreTo {
            which: self,
            target,
            options: Options::default(),
            observers: Vec::new(),
            shutdown: None,
            safety: None,
        }
    }

    /// Whether the options allow a backup.
    fn allows(&self, b: &BackupSummary) -> bool {
        let wanted = match &self.which {
            Which::Latest => true,
            Which::Id(id) => b.id == *id,
            Which::At(time) => b.started <= *time,
            Which::Labelled(name, value) => b.labels.get(name) == Some(value),
        };
        wanted && !b.is_log()
    }

    async fn choose(&self) -> Result<Chosen> {
        if let (Which::Id(id), None, None) = (&self.which, self.max_age, &self.until) {
            return Ok(Chosen { id: *id, slices: Vec::new(), passed_over: None });
        }
        let list = self.repository.backups(&self.set).await?;
        if let Some(until) = &self.until {
            let (base, slices) =
                choose(&list, until, |b| self.allows(b)).map_err(|e| e.with("set", &self.set))?;
            self.insist_on_age(base.id, slices.last().map_or(base.started, |slice| slice.started))?;
            let slices = slices.into_iter().cloned().collect();
            return Ok(Chosen { id: base.id, slices, passed_over: None });
        }
        let chosen = list.iter().find(|b| self.allows(b));
        let chosen = chosen.ok_or_else(|| match list.unreadable.first() {
            Some(bad) => Error::new(bad.error.kind(), "choose backup")
                .message("no backup of this set can be opened")
                .with("set", &self.set)
                .with("newest", format_args!("{}: {}", bad.id, bad.error.chain())),
            None => Error::new(ErrorKind::NotFound, "choose backup")
                .message("the set has no such backup")
                .with("set", &self.set),
        })?;
        self.insist_on_age(chosen.id, chosen.started)?;
        let passed_over = self.passed_over(&list, chosen.id);
        Ok(Chosen { id: chosen.id, slices: Vec::new(), passed_over })
    }

    /// A warning when newer backups were passed over because they cannot be opened.
    fn passed_over(&self, list: &BackupList, chosen: BackupId) -> Option<Warning> {
        let newer: Vec<_> = match &self.which {
            Which::Id(_) => Vec::new(),
            Which::At(time) => list.unreadable.iter().filter(|b| b.id.time() <= *time).collect(),
            Which::Latest | Which::Labelled(..) => list.unreadable.iter().collect(),
        };
        newer.into_iter().find(|bad| bad.id > chosen).map(|bad| {
            let message = format!(
                "{} is newer and cannot be opened, so {chosen} is restored instead: {}",
                bad.id,
                bad.error.chain()
            );
            Warning::new("newer-backup-unreadable", message)
        })
    }

    fn insist_on_age(&self, id: BackupId, started: DateTime<Utc>) -> Result<()> {
        let age = self.repository.0.clock.now() - started;
        match self.max_age {
            Some(limit) if age > limit => Err(Error::new(ErrorKind::NotFound, "choose backup")
                .message("the newest fitting backup is older than allowed; look at the other sinks before using it")
                .with("id", id)
                .with("age_hours", age.num_hours())),
            _ => Ok(()),
        }
    }
}

/// How to restore.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own, named by a method")]
struct Options {
    selection: Selection,
    only: Option<Vec<String>>,
    replace: bool,
    allow_partial: bool,
    allow_losses: bool,
    rehearse: bool,
    from: Option<SinkId>,
    thaw: bool,
}

/// A restore to be made: set options, then await.
#[must_use = "a restore runs when it is awaited"]
pub struct RestoreTo<'a> {
    which: RestoreBuilder<'a>,
    target: &'a dyn RestoreTarget,
    options: Options,
    observers: Vec<Arc<dyn Observer>>,
    shutdown: Option<Shutdown<'a>>,
    safety: Option<(String, &'a dyn Source)>,
}

/// What a restore did.
#[derive(Debug)]
#[non_exhaustive]
pub struct RestoreOutcome {
    /// The backup.
    pub id: BackupId,
    /// Its set.
    pub set: SetName,
    /// What the target did.
    pub report: RestoreReport,
    /// What the restored copy proved; equal to what the backup's manifest proves.
    pub proofs: Proofs,
    /// How far the log was replayed, where that was asked for.
    pub replayed: Option<Replayed>,
    /// The way back, where something was replaced.
    pub undo: Option<Box<dyn Undo>>,
    /// The backup made of the target before it was touched, where one was asked for.
    pub safety_backup: Option<BackupId>,
    /// What could not be restored; empty without [`allow_losses`](RestoreTo::allow_losses).
    pub losses: Vec<Loss>,
    /// Plain bytes read.
    pub plain_read: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// How far the log was replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// The slices that were read.
    pub slices: usize,
    /// Where the last entry ends that was applied.
    pub position: LogPosition,
}

impl<'a> RestoreTo<'a> {
    /// Restores only items matching one of these patterns (see [`Selection::globs`]).
    pub fn only<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.options.only = Some(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// Restores only what is selected.
    pub fn selection(mut self, selection: Selection) -> Self {
        self.options.selection = selection;
        self
    }

    /// Replaces what the target holds. What that means the target declares as its [`Atomicity`](crate::Atomicity).
    pub fn replace(mut self) -> Self {
        self.options.replace = true;
        self
    }

    /// Accepts that a target that cannot swap is left half-restored if the restore fails. Needs
    /// [`safety_backup`](Self::safety_backup).
    pub fn allow_partial(mut self) -> Self {
        self.options.allow_partial = true;
        self
    }

    /// Where no copy of something is undamaged, restores the rest, after reading everything once to find out. Awaiting
    /// the restore fails then all the same, with a list of what is lost; [`report`](Self::report) gives the outcome. Not
    /// together with [`replace`](Self::replace).
    pub fn allow_losses(mut self) -> Self {
        self.options.allow_losses = true;
        self
    }

    /// Runs, and gives the outcome even if some items are lost: see [`RestoreOutcome::losses`].
    ///
    /// # Errors
    ///
    /// Those that leave the target as it was.
    pub async fn report(self) -> Result<RestoreOutcome> {
        self.run().await
    }

    /// Backs `source`, the present state of the target, up as a backup of `set` before anything is touched.
    pub fn safety_backup(mut self, set: &str, source: &'a dyn Source) -> Self {
        self.safety = Some((set.to_owned(), source));
        self
    }

    /// Restores beside the target, proves, and throws the result away.
    pub fn rehearse(mut self) -> Self {
        self.options.rehearse = true;
        self
    }

    /// Reads from this sink first; the others only where it fails.
    pub fn from(mut self, sink: &SinkId) -> Self {
        self.options.from = Some(sink.clone());
        self
    }

    /// Asks the sinks for objects of the backup that lie in an archive class. The restore then ends with
    /// [`ErrorKind::Unavailable`]: run it again when they are ready, which takes minutes to days. Without this it
    /// ends with the same error, and nothing was asked for.
    pub fn thaw(mut self) -> Self {
        self.options.thaw = true;
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Stops the run, cleanly and with [`ErrorKind::Cancelled`], when `shutdown` completes. Once the restored copy is
    /// proved and being put in place, it is too late: that is finished, and the result says how it went.
    pub fn run_until(mut self, shutdown: impl Future<Output = ()> + Send + 'a) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }
}

impl<'a> IntoFuture for RestoreTo<'a> {
    type Output = Result<RestoreOutcome>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        async { self.report().await?.into_result() }.boxed()
    }
}

impl std::fmt::Debug for RestoreTo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreTo")
            .field("which", &self.which)
            .field("target", &self.target)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
