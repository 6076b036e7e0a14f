//! The backup verb.

mod commit;
mod finished;
mod resume;
mod run;

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::Repository;
use super::commit::Cleanup;
use super::ids::new_id;
use super::origin::Origin;
use super::shutdown::{Shutdown, or_drop};
use crate::engine::feed::RateLimit;
use crate::engine::progress::Watch;
use crate::engine::store::Pipeline;
use crate::error::{Error, Result};
use crate::layout::{BackupDir, ObjectNames};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::{Event, Observer};
use crate::proof::Proofs;
use crate::retention::RetentionPolicy;
use crate::selection::Selection;
use crate::source::{Source, Warning};

use run::Run;

/// A backup to be made: set options, then await.
#[must_use = "a backup runs when it is awaited"]
pub struct Backup<'a> {
    repository: &'a Repository,
    set: String,
    source: &'a dyn Source,
    options: Options,
    only: Option<Vec<String>>,
    rate_limit: Option<u64>,
    observers: Vec<Arc<dyn Observer>>,
    shutdown: Option<Shutdown<'a>>,
    started: Option<DateTime<Utc>>,
}

/// What to back up, and what to say about it.
#[derive(Debug, Default)]
pub(super) struct Options {
    selection: Selection,
    labels: BTreeMap<String, String>,
    keep_for: Option<TimeDelta>,
    incremental: bool,
    resume: bool,
}

/// What a backup did.
#[derive(Debug)]
#[non_exhaustive]
pub struct BackupReport {
    /// The id of the new backup.
    pub id: BackupId,
    /// Its set.
    pub set: SetName,
    /// The sinks that hold a good copy.
    pub copies: Vec<SinkId>,
    /// The sinks that failed, and why. The backup has enough copies without them.
    pub failed: Vec<(SinkId, Error)>,
    /// Plain bytes of all artifacts.
    pub plain_size: u64,
    /// Bytes of all objects but the manifest, on one sink.
    pub stored_size: u64,
    /// Items it contains.
    pub items: u64,
    /// What its content proves.
    pub proofs: Proofs,
    /// What a person should know although it succeeded.
    pub warnings: Vec<Warning>,
    /// Artifacts taken over from a run that died, which were not read from the source; see [`Backup::resume`].
    pub adopted: usize,
    /// How long it took.
    pub elapsed: Duration,
}

impl<'a> Backup<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str, source: &'a dyn Source) -> Self {
        Self {
            repository,
            set: set.to_owned(),
            source,
            options: Options::default(),
            only: None,
            rate_limit: None,
            observers: Vec::new(),
            shutdown: None,
            started: None,
        }
    }

    /// Backs up only items matching one of these patterns (see [`Selection::globs`]).
    pub fn only<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.only = Some(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// Backs up only what is selected.
    pub fn selection(mut self, selection: Selection) -> Self {
        self.options.selection = selection;
        self
    }

    /// Stores only what changed since the newest backup of the set that is whole on every sink; the rest is referred to,
    /// wherever it was stored first. If a sink lacks something of the newest backup, it is copied there first (as
    /// [`Repository::replicate`] does). Becomes a full backup where there is no such parent, or where the source
    /// cannot build on it.
    pub fn incremental(mut self) -> Self {
        self.options.incremental = true;
        self
    }

    /// Takes over what an earlier run of the set, made with this option, had finished when it died or failed, where the source
    /// declares that independent of the moment and says that it would store the same again. What is taken
    /// over is checked on every sink, by a digest that its store computed or by reading it back; the rest is read from the source. Set it on each run of a job
    /// whose backups take long.
    ///
    /// A run leaves a note beside each independent artifact that it finished. A run that fails or is stopped leaves its
    /// finished artifacts in place, for three days (the default grace of [`Repository::sweep`]). Nobody has to know whether
    /// the other run is really dead: what is taken over is copied, inside each sink where it can (`LocalSink` makes a hard
    /// link: two names of one file), and the other directory is left alone. Nothing older than the newest backup is taken over.
    ///
    /// Only full backups are resumed. A host that cannot read its own backups begins afresh.
    pub fn resume(mut self) -> Self {
        self.options.resume = true;
        self
    }

    /// Adds a label. Labels are readable by anyone who may read the sinks.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.labels.insert(name.into(), value.into());
        self
    }

    /// Keeps this backup for at least `time` from its start, whatever the retention policy says. Sinks that can are asked
    /// to lock its objects until then: nobody deletes it earlier, whatever keys they have stolen.
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.options.keep_for = Some(TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX));
        self
    }

    /// Keeps and locks this backup as [`keep_for`](Self::keep_for) does, for the time that `policy` keeps every new
    /// backup: its [`minimum_keep`](RetentionPolicy::minimum_keep). Nothing where it has none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> backup_core::Result<()> {
    /// use backup_core::{Gfs, KeepWithin, MemorySink, MemorySource, Repository, RetentionPolicy};
    ///
    /// let policy = KeepWithin::days(30).or(Gfs::new().monthly(12));
    /// let repo = Repository::builder().sink(MemorySink::new()).build()?;
    /// let source = MemorySource::new().artifact("page", "good evening");
    /// let done = repo.backup("books", &source).keep_by(&policy).await?;
    /// let kept = repo.backups("books").await?[0].keep_until.expect("thirty days from now");
    /// assert_eq!((kept - done.id.time()).num_days(), 30);
    /// # Ok(()) }
    /// ```
    pub fn keep_by(self, policy: &dyn RetentionPolicy) -> Self {
        match policy.minimum_keep() {
            Some(time) => self.keep_for(time),
            None => self,
        }
    }

    /// Reads at most this many plain bytes a second.
    pub fn rate_limit(mut self, bytes_per_second: u64) -> Self {
        self.rate_limit = Some(bytes_per_second);
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Watches this run with an observer that watches others, too.
    #[cfg(feature = "import")]
    pub(super) fn shared_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Stops the run, cleanly and with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), when `shutdown` completes.
    pub fn run_until(mut self, shutdown: impl Future<Output = ()> + Send + 'a) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    /// Takes `time` for the start of the backup instead of the clock: for imports of older backups and for tests.
    pub fn started_at(mut self, time: DateTime<Utc>) -> Self {
        self.started = Some(time);
        self
    }

    async fn run(mut self) -> Result<BackupReport> {
        let inner = &self.repository.0;
        let set = SetName::parse(std::mem::take(&mut self.set))?;
        if let Some(only) = &self.only {
            self.options.selection = Selection::globs(only)?;
        }
        let started = self.started.unwrap_or_else(|| inner.clock.now());
        let id = new_id(started)?;
        let watch = inner.watch(std::mem::take(&mut self.observers));
        watch.event(&Event::Started { verb: "backup", set: &set, id });

        let job = Job {
            origin: Origin::Source(self.source),
            dir: BackupDir::new(&set, id)?,
            set: set.clone(),
            id,
            started,
            options: self.options,
            limit: self.rate_limit.map(|rate| Arc::new(RateLimit::new(rate))),
        };
        let result = self.repository.store(job, self.shutdown.take(), &watch).await;
        let error = result.as_ref().err();
        watch.event(&Event::Finished { verb: "backup", set: &set, id, error, elapsed: watch.elapsed() });
        result.map_err(|e| e.with("set", &set))
    }
}

/// A backup or a log slice that is to be stored.
pub(super) struct Job<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) set: SetName,
    pub(super) id: BackupId,
    pub(super) dir: BackupDir,
    pub(super) started: DateTime<Utc>,
    pub(super) options: Options,
    pub(super) limit: Option<Arc<RateLimit>>,
}

impl Job<'_> {
    /// Everything, without labels.
    pub(super) fn no_options() -> Options {
        Options::default()
    }
}

impl Repository {
    /// Runs a job from its marker to its manifest, or stops it cleanly when `shutdown` completes.
    pub(super) async fn store(
        &self,
        job: Job<'_>,
        shutdown: Option<impl Future<Output = ()>>,
        watch: &Watch,
    ) -> Result<BackupReport> {
        let inner = &*self.0;
        let Job { origin, set, id, dir, started, options, limit } = job;
        let cancelled = CancellationToken::new();
        let mut cleanup = Cleanup::new(inner.patience, &inner.sinks, dir.clone());
        let prepared = {
            let mut run = Run {
                repository: self,
                inner,
                origin,
                pipeline: Pipeline {
                    chain: Arc::clone(&inner.chain),
                    patience: inner.patience,
                    limit,
                    watch: watch.clone(),
                },
                set,
                id,
                dir: dir.clone(),
                started,
                keep_until: options.keep_for.and_then(|time| started.checked_add_signed(time)),
                key: None,
                alive: inner.sinks.iter().cloned().enumerate().collect(),
                failed: Vec::new(),
                objects: ObjectNames::new(&inner.chain),
                cancelled: cancelled.clone(),
                taken: resume::Taken::default(),
            };
            let result = or_drop(shutdown, "back up", run.prepare(&mut cleanup, &options)).await;
            cancelled.cancel();
            result.map(|prepared| (prepared, run.alive, run.failed))
        };
        match prepared {
            Ok((prepared, alive, failed)) => {
                // A manifest may become visible from here on: nothing that it refers to may be removed.
                let snapshot = cleanup.disarm();
                commit::commit(inner, &dir, prepared, alive, failed, snapshot, watch).await
            }
            Err(error) => {
                cleanup.abort().await;
                Err(error)
            }
        }
    }
}

impl<'a> IntoFuture for Backup<'a> {
    type Output = Result<BackupReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        self.run().boxed()
    }
}

impl std::fmt::Debug for Backup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("set", &self.set).field("source", &self.source).finish_non_exhaustive()
    }
}
