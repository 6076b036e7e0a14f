//! The backup verb.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, IntoFuture};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::catalog::{Catalog, Found};
use super::clear::clear_failed_copy;
use super::commit::{Cleanup, Pending};
use super::contents::{ArtifactDetails, DetailsHead};
use super::ids::new_id;
use super::notes::{Notes, borrowed};
use super::origin::Origin;
use super::parent::{Parent, References};
use super::shutdown::{Shutdown, or_drop};
use super::state::Kept;
use super::{Inner, Repository};
use crate::digest::Digest;
use crate::engine::encode::{Encoded, Scope};
use crate::engine::fanout::{Numbered, all_failed};
use crate::engine::feed::RateLimit;
use crate::engine::index::INDEX_ABOVE;
use crate::engine::progress::Watch;
use crate::engine::store::{Failures, Pipeline};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{BackupKey, Signatures};
use crate::layout::{BackupDir, DETAILS, ObjectNames, details_object, index_object};
use crate::manifest::{
    FORMAT, IndexRef, Manifest, Previous, Sealer, SourceInfo, StoredArtifact, StoredObject, Totals, seal,
};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::{Event, Observer};
use crate::proof::Proofs;
use crate::retention::{BackupKind, RetentionPolicy};
use crate::selection::Selection;
use crate::sink::{CREATE_NEW_LIMIT, ObjectKind, PutOptions};
use crate::source::{
    Artifact, ArtifactMeta, Outcome, ParentReader, SnapshotRequest, Source, SourceReport, Warning,
};

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

    /// Stops the run, cleanly and with [`ErrorKind::Cancelled`], when `shutdown` completes.
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
            };
            let result = or_drop(shutdown, "back up", run.prepare(&mut cleanup, &options)).await;
            cancelled.cancel();
            result.map(|prepared| (prepared, run.alive, run.failed))
        };
        match prepared {
            Ok((prepared, alive, failed)) => {
                // A manifest may become visible from here on: nothing that it refers to may be removed.
                let snapshot = cleanup.disarm();
                commit(inner, &dir, prepared, alive, failed, snapshot, watch).await
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

/// A run until just before its manifest.
struct Run<'a> {
    repository: &'a Repository,
    inner: &'a Inner,
    origin: Origin<'a>,
    pipeline: Pipeline,
    set: SetName,
    id: BackupId,
    dir: BackupDir,
    started: DateTime<Utc>,
    keep_until: Option<DateTime<Utc>>,
    key: Option<BackupKey>,
    /// The sinks that have everything so far.
    alive: Vec<Numbered>,
    failed: Failures,
    objects: ObjectNames,
    cancelled: CancellationToken,
}

/// A backup that is whole but for its manifest.
struct Prepared {
    manifest: Manifest,
    key: Option<BackupKey>,
    /// The details as this host keeps them, where it cannot read them back.
    kept: Option<Arc<Mutex<Kept>>>,
    proofs: Proofs,
    warnings: Vec<Warning>,
}

impl Run<'_> {
    async fn prepare(&mut self, cleanup: &mut Cleanup, options: &Options) -> Result<Prepared> {
        self.refuse_unsealed()?;
        let found = match self.origin.slice() {
            Some(_) => Found::default(),
            None => self.look(cleanup).await?,
        };
        let previous = match self.origin.slice() {
            Some(slice) => slice.previous.clone(),
            None => self.previous(&found).await?,
        };
        let mut parent = if options.incremental { self.parent(&found).await? } else { None };
        let parent_id = parent.as_ref().map(ParentReader::id);
        let pending = Pending::new(&self.set, self.id, parent_id, self.inner.clock.now());
        let (failures, renewing) =
            self.inner.announce(&self.alive, &self.dir, pending, &self.pipeline.watch).await?;
        cleanup.renewing(renewing);
        for (number, error) in &failures {
            if error.kind() == ErrorKind::AlreadyExists {
                cleanup.spare(*number);
            }
        }
        self.lose(failures)?;
        let full_instead = self.give_up_unusable(&mut parent).await?;
        self.wrap_key().await?;

        let request = SnapshotRequest {
            parent: parent.as_ref().map(|parent| parent as &dyn ParentReader),
            selection: options.selection.clone(),
            cancelled: self.cancelled.clone(),
        };
        let patience = self.inner.patience;
        cleanup.hold(patience.bound_source(self.origin.snapshot(request)).await?);
        let (artifacts, details) = self.artifacts(cleanup).await?;
        let mut report = patience.bound_source(cleanup.snapshot()?.finish()).await?;
        self.origin.confirm(&mut report)?;
        for warning in &report.warnings {
            self.pipeline.watch.event(&Event::Warning(warning));
        }
        let items = report.items.len();
        let (proofs, mut warnings) = (report.proofs.clone(), report.warnings.clone());
        warnings.extend(full_instead);
        let references = self.references(&report, parent.as_ref()).await?;
        let head = DetailsHead::new(&mut report, details);
        // No incremental builds on a slice.
        let kept = self.origin.slice().is_none().then(|| self.inner.keep(&self.set, self.id)).flatten();
        let kept = kept.map(|kept| Arc::new(Mutex::new(kept)));
        let mut manifest = Manifest {
            format: FORMAT,
            set: self.set.clone(),
            id: self.id,
            kind: match (&parent, self.origin.slice()) {
                (_, Some(slice)) => slice.kind(),
                // A source that could not build on the parent made a full.
                (Some(parent), _) if !references.ids.is_empty() => {
                    BackupKind::Incremental { parent: parent.id() }
                }
                _ => BackupKind::Full,
            },
            source: SourceInfo {
                kind: self.origin.kind().to_owned(),
                server_version: report.server_version.clone(),
            },
            started: self.started,
            finished: self.started,
            consistent_at: report.consistent_at,
            log_position: report.log_position.take(),
            keep_until: self.keep_until,
            software: concat!("backup-core ", env!("CARGO_PKG_VERSION")).to_owned(),
            chain: self.pipeline.chain.specs(),
            artifacts,
            details: self.details(head, &mut report, kept.as_ref()).await?,
            notes: Vec::new(),
            references: references.ids.clone(),
            labels: options.labels.clone(),
            previous,
            totals: Totals::default(),
            required_copies: u32::try_from(self.inner.required_copies).unwrap_or(u32::MAX),
            good_copies: 0,
            other: serde_json::Map::new(),
        };
        manifest.notes = self.notes(&manifest, &report, references).await?;
        manifest.totals = Totals {
            plain: manifest.artifacts.iter().filter_map(|a| a.stored.plain_size).sum(),
            stored: manifest.objects().map(|(_, size, _)| size).sum(),
            items,
        };
        Ok(Prepared { manifest, key: self.key.clone(), kept, proofs, warnings })
    }

    /// A repository with keys refuses backups without; it must not make any.
    fn refuse_unsealed(&self) -> Result<()> {
        let chain = &self.inner.chain;
        let sealed =
            chain.keyring().is_some() || chain.signatures().is_some_and(|s| s.signing_key().is_some());
        if sealed || (self.inner.keyring.is_none() && self.inner.signatures.is_none()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unencrypted, "back up").message(
            "this repository holds keys to read with and none to seal a new backup with; add an encryption that writes",
        ))
    }

    fn catalog(&self) -> Catalog<'_> {
        self.inner.catalog_watched(self.set.clone(), self.pipeline.watch.clone())
    }

    /// What the set has so far. Fails where this run's id is taken.
    async fn look(&self, cleanup: &mut Cleanup) -> Result<Found> {
        let found = self.catalog().ids().await?;
        if found.backups.contains_key(&self.id) {
            (0..self.inner.sinks.len()).for_each(|number| cleanup.spare(number));
            return Err(Error::new(ErrorKind::AlreadyExists, "back up")
                .message("another backup of the same second has the same id; back up again"));
        }
        Ok(found)
    }

    /// The newest backup of the set before this one.
    async fn previous(&self, found: &Found) -> Result<Option<Previous>> {
        for id in found.bases().map(|(id, _)| *id).filter(|id| *id < self.id) {
            // One that cannot be opened is reported by lists and verify; it must not stop new backups.
            if let Ok(opened) = self.catalog().open(id).await {
                return Ok(Some(Previous { id, sha256: opened.digest }));
            }
        }
        Ok(None)
    }

    /// The backup to build upon, if there is one.
    async fn parent(&self, found: &Found) -> Result<Option<Parent>> {
        self.repository.parent(&self.catalog(), found, self.id, self.origin.kind(), &self.alive).await
    }

    /// Makes a full backup instead when the parent is not, or not for long, on every sink. This run's pending marker
    /// names it by now: a prune that begins later leaves it.
    async fn give_up_unusable(&self, parent: &mut Option<Parent>) -> Result<Option<Warning>> {
        let Some(id) = parent.as_ref().map(ParentReader::id) else { return Ok(None) };
        let watch = &self.pipeline.watch;
        let mut failures = self.inner.ensure_parent(&self.alive, &self.set, id, watch).await?;
        let Some((_, why)) = failures.pop() else { return Ok(None) };
        *parent = None;
        let warning = Warning::new("full-instead-of-incremental", why.chain());
        watch.event(&Event::Warning(&warning));
        Ok(Some(warning))
    }

    /// The backups that the new one refers to. A sink that lost one of them does not count any more.
    async fn references(&mut self, report: &SourceReport, parent: Option<&Parent>) -> Result<References> {
        let (references, failures) =
            self.inner.references(&self.catalog(), report, parent, &self.alive).await?;
        self.lose(failures)?;
        Ok(references)
    }

    /// Makes the backup's key and stores its wraps.
    async fn wrap_key(&mut self) -> Result<()> {
        let Some(keyring) = self.inner.chain.keyring() else { return Ok(()) };
        let key = BackupKey::generate()?;
        let (wraps, failures) =
            self.inner.wrap(keyring, &self.set, self.id, &key, &self.alive, &self.pipeline.watch).await?;
        self.lose(failures)?;
        let directory = self.dir.keys()?;
        for (name, bytes) in wraps {
            self.put(&directory.join(name)?, bytes, ObjectKind::Note).await?;
        }
        self.key = Some(key);
        Ok(())
    }

    /// Pulls every artifact out of the source and stores it.
    async fn artifacts(
        &mut self,
        cleanup: &mut Cleanup,
    ) -> Result<(Vec<StoredArtifact>, BTreeMap<String, ArtifactDetails>)> {
        let snapshot = cleanup.snapshot()?;
        self.pipeline.watch.expect(snapshot.estimate());
        let at_once = snapshot.max_open().clamp(1, self.inner.artifacts_in_budget());
        let mut open = FuturesUnordered::new();
        let mut stored = BTreeMap::new();
        let mut details = BTreeMap::new();
        let (mut offered, mut exhausted) = (0_usize, false);
        loop {
            while !exhausted && open.len() < at_once {
                match self.inner.patience.bound_source(snapshot.next()).await? {
                    Some(artifact) => {
                        open.push(self.start(artifact, offered)?);
                        offered += 1;
                    }
                    None => exhausted = true,
                }
            }
            let Some(done) = open.next().await else { break };
            let (number, meta, object, result) = done.map_err(|e| {
                Error::new(ErrorKind::Internal, "store artifact").message("a task failed").caused_by(e)
            })?;
            let meta: ArtifactMeta = meta;
            let (encoded, failures) = result.map_err(|e: Error| e.with("artifact", &meta.name))?;
            self.lose(failures)?;
            self.pipeline.watch.event(&Event::ArtifactFinished {
                artifact: &meta.name,
                plain: encoded.plain_size,
                stored: encoded.stored_size,
            });
            details.insert(meta.name.to_string(), ArtifactDetails::new(encoded.plain_sha256));
            let object = self.index(object, encoded).await?;
            stored.insert(number, StoredArtifact { meta, stored: object });
        }
        Ok((stored.into_values().collect(), details))
    }

    /// Starts storing an artifact in a task of its own.
    #[expect(clippy::type_complexity, reason = "named where it is taken apart")]
    fn start(
        &mut self,
        artifact: Artifact,
        number: usize,
    ) -> Result<AbortOnDropHandle<(usize, ArtifactMeta, String, Result<(Encoded, Failures)>)>> {
        let Artifact { meta, data } = artifact;
        let object = format!("{}.{}{}", meta.name, meta.format.extension, self.pipeline.chain.extension());
        self.objects.take(&meta.name, &object)?;
        let key = self.dir.object(&object)?;
        let scope = self.scope(&meta.name);
        let options = self.options(ObjectKind::Data).size_hint(meta.size_hint);
        let (pipeline, sinks) = (self.pipeline.clone(), self.alive.clone());
        pipeline.watch.event(&Event::ArtifactStarted { artifact: &meta.name });
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            let result = pipeline.store(&sinks, &key, &options, scope, data).await;
            (number, meta, object, result)
        })))
    }

    /// Stores the details object.
    async fn details(
        &mut self,
        head: DetailsHead,
        report: &mut SourceReport,
        kept: Option<&Arc<Mutex<Kept>>>,
    ) -> Result<StoredObject> {
        let object = details_object(&self.pipeline.chain);
        let items = std::mem::take(&mut report.items);
        let mut first = serde_json::to_vec(&head)
            .map_err(|e| Error::new(ErrorKind::Internal, "write details").caused_by(e))?;
        first.push(b'\n');
        let kept = kept.map(Arc::clone);
        let lines = std::iter::once(Ok(Bytes::from(first))).chain(items.into_json_lines());
        let lines = lines.inspect(move |line| {
            if let (Some(kept), Ok(bytes)) = (&kept, line) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
            }
        });
        let options = self.options(ObjectKind::Index);
        let (encoded, failures) = self
            .pipeline
            .store(
                &self.alive,
                &self.dir.object(&object)?,
                &options,
                self.scope(DETAILS),
                futures::stream::iter(lines).boxed(),
            )
            .await?;
        self.lose(failures)?;
        self.index(object, encoded).await
    }

    /// Stores the block index of a large object, and returns how the manifest records both.
    async fn index(&mut self, object: String, encoded: Encoded) -> Result<StoredObject> {
        let mut stored = StoredObject {
            size: encoded.stored_size,
            sha256: encoded.stored_sha256,
            plain_size: Some(encoded.plain_size),
            index: None,
            object,
        };
        if encoded.stored_size > INDEX_ABOVE {
            let bytes = encoded.index.to_bytes()?;
            let name = index_object(&stored.object);
            stored.index =
                Some(IndexRef { size: bytes.len() as u64, sha256: Digest::of(&bytes), object: name.clone() });
            self.put(&self.dir.object(&name)?, bytes, ObjectKind::Index).await?;
        }
        Ok(stored)
    }

    /// Stores `RESTORE.txt` and what belongs to it.
    async fn notes(
        &mut self,
        manifest: &Manifest,
        report: &SourceReport,
        references: References,
    ) -> Result<Vec<StoredObject>> {
        let notes = Notes {
            set: &self.set,
            id: self.id,
            kind: &manifest.kind,
            chain: &manifest.chain,
            artifacts: &manifest.artifacts,
            details: &manifest.details,
            recipe: &report.recipe,
            borrowed: borrowed(references.pieces, &references.backups)?,
        };
        let mut texts: Vec<_> =
            [Some(notes.restore()), notes.decoder(), notes.ranges()].into_iter().flatten().collect();
        let described: Vec<_> = texts.iter().map(|(name, bytes)| note(name, bytes)).collect();
        texts.push(notes.sums(&described));
        for (name, bytes) in &texts {
            self.put(&self.dir.object(name)?, bytes.clone(), ObjectKind::Note).await?;
        }
        Ok(texts.iter().map(|(name, bytes)| note(name, bytes)).collect())
    }

    /// Puts a small object on every working sink.
    async fn put(&mut self, key: &crate::key::Key, bytes: Bytes, kind: ObjectKind) -> Result<()> {
        let options = self.options(kind);
        let failures = self.inner.put_each(&self.alive, key, &bytes, &options, &self.pipeline.watch).await;
        for (number, error) in &failures {
            if let Some(sink) = self.inner.sinks.get(*number) {
                self.pipeline.watch.event(&Event::SinkFailed { sink: sink.id(), error });
            }
        }
        self.lose(failures)
    }

    /// Takes sinks that failed out of the run; fails when none is left.
    fn lose(&mut self, failures: Failures) -> Result<()> {
        for (number, error) in failures {
            let before = self.alive.len();
            self.alive.retain(|(n, _)| *n != number);
            if self.alive.len() < before {
                self.failed.push((number, error));
            }
        }
        if self.alive.is_empty() { Err(all_failed(std::mem::take(&mut self.failed))) } else { Ok(()) }
    }

    /// How the objects of this backup are put; its markers are not, and can be removed at any time.
    fn options(&self, kind: ObjectKind) -> PutOptions {
        PutOptions::overwrite(kind).retain_until(self.inner.lock_until(self.keep_until))
    }

    fn scope(&self, name: &str) -> Scope {
        Scope {
            set: self.set.clone(),
            id: self.id,
            name: name.to_owned(),
            key: self.key.clone(),
            workers: self.inner.workers.clone(),
        }
    }
}

/// A plain object as the manifest records it.
fn note(name: &str, bytes: &Bytes) -> StoredObject {
    StoredObject {
        object: name.to_owned(),
        size: bytes.len() as u64,
        sha256: Digest::of(bytes),
        plain_size: None,
        index: None,
    }
}

/// Writes the manifest to each sink that has everything, and tells the source how it went.
async fn commit(
    inner: &Inner,
    dir: &BackupDir,
    prepared: Prepared,
    mut alive: Vec<Numbered>,
    mut failed: Failures,
    snapshot: Option<Box<dyn crate::source::Snapshot>>,
    watch: &Watch,
) -> Result<BackupReport> {
    let Prepared { mut manifest, key, kept, proofs, mut warnings } = prepared;
    match inner.still_ours(&alive, dir, &manifest, watch).await {
        Ok(lost) => {
            alive.retain(|(n, _)| lost.iter().all(|(failed, _)| failed != n));
            failed.extend(lost);
        }
        Err(error) => failed.extend(alive.drain(..).map(|(n, _)| n).zip(std::iter::once(error))),
    }
    manifest.finished = manifest.started + TimeDelta::from_std(watch.elapsed()).unwrap_or_default();
    manifest.good_copies = u32::try_from(alive.len()).unwrap_or(u32::MAX);
    let written = async {
        let bytes = seal(&manifest, inner.sealer(key.as_ref()))?;
        if bytes.len() as u64 > CREATE_NEW_LIMIT {
            return Err(Error::new(ErrorKind::LimitExceeded, "write manifest")
                .message("the backup has too many artifacts for one manifest; make its artifacts larger"));
        }
        let options =
            PutOptions::create_new(ObjectKind::Manifest).retain_until(inner.lock_until(manifest.keep_until));
        Ok((Digest::of(&bytes), inner.put_each(&alive, &dir.manifest()?, &bytes, &options, watch).await))
    };
    let mut digest = None;
    let mut unsure = BTreeSet::new();
    match written.await {
        Ok((sealed, failures)) => {
            digest = Some(sealed);
            unsure = failures.iter().filter(|(_, e)| e.is_retryable()).map(|(n, _)| *n).collect();
            alive.retain(|(n, _)| failures.iter().all(|(failed, _)| failed != n));
            failed.extend(failures);
        }
        Err(error) => {
            failed.extend(alive.drain(..).map(|(n, _)| n).zip(std::iter::once(error)));
        }
    }
    let short = inner.shortfalls(alive.iter().map(|(_, sink)| sink.id()));
    let outcome = match alive.len() {
        0 => Outcome::Aborted,
        n if n < inner.required_copies || !short.is_empty() => Outcome::Degraded,
        _ => Outcome::Committed,
    };
    // Before the source is closed, which may take long: replicators wait for this only some minutes.
    tidy(inner, &manifest, dir, &alive, &unsure, watch).await;
    let closed = match snapshot {
        Some(snapshot) => inner.patience.bound_source(snapshot.close(outcome)).await,
        None => Ok(()),
    };
    if outcome == Outcome::Aborted {
        return Err(all_failed(failed));
    }
    if let (Some(kept), Some(digest)) = (kept, digest)
        && let Err(error) = keep(kept, digest).await
    {
        let warning = Warning::new("state-not-kept", error.chain());
        watch.event(&Event::Warning(&warning));
        warnings.push(warning);
    }
    let failed: Vec<(SinkId, Error)> = failed
        .into_iter()
        .filter_map(|(n, error)| inner.sinks.get(n).map(|sink| (sink.id().clone(), error)))
        .collect();
    if outcome == Outcome::Degraded {
        let mut error = Error::new(ErrorKind::TooFewCopies, "back up")
            .message(
                "the backup exists, but on fewer sinks than required, or too close together; repair the sinks named here and \
                 replicate it, or back up again",
            )
            .with("id", manifest.id)
            .with("copies", alive.len())
            .with("required", inner.required_copies);
        for short in &short {
            error = error.with("short_of", short);
        }
        for (sink, why) in &failed {
            error = error.with("failed", format_args!("{sink}: {}", why.chain()));
        }
        return Err(error);
    }
    for warning in &inner.warnings {
        watch.event(&Event::Warning(warning));
        warnings.push(warning.clone());
    }
    if let Err(error) = closed {
        // The backup is safe; what the source could not release must still be said.
        let warning = Warning::new("source-not-released", error.chain());
        watch.event(&Event::Warning(&warning));
        warnings.push(warning);
    }
    Ok(BackupReport {
        id: manifest.id,
        copies: alive.iter().map(|(_, sink)| sink.id().clone()).collect(),
        failed,
        plain_size: manifest.totals.plain,
        stored_size: manifest.totals.stored,
        items: manifest.totals.items,
        proofs,
        warnings,
        elapsed: watch.elapsed(),
        set: manifest.set,
    })
}

impl Inner {
    /// What seals a new manifest.
    fn sealer<'a>(&'a self, key: Option<&'a BackupKey>) -> Sealer<'a> {
        match (key, self.chain.signatures().and_then(Signatures::signing_key)) {
            (Some(key), _) => Sealer::Key(key),
            (None, Some(signing)) => Sealer::Signature(signing),
            (None, None) => Sealer::Nothing,
        }
    }
}

/// Keeps what the next incremental needs on this host.
async fn keep(kept: Arc<Mutex<Kept>>, manifest: Digest) -> Result<()> {
    let commit = move || kept.lock().unwrap_or_else(PoisonError::into_inner).commit(manifest);
    let done = tokio::task::spawn_blocking(commit).await;
    done.map_err(|e| Error::new(ErrorKind::Internal, "keep state").caused_by(e))?
}

/// After the commit: nothing at all where the backup is not, then no pending marker where it is. In this order, so that
/// a replicator that finds no marker beside a manifest can be sure that nothing is removed from the other sinks any more.
///
/// Where it is not known whether the manifest was written (`unsure`: no answer came, and one may still be on its way)
/// everything is left to the orphan sweep: a manifest that appears late must find its objects.
async fn tidy(
    inner: &Inner,
    manifest: &Manifest,
    dir: &BackupDir,
    alive: &[Numbered],
    unsure: &BTreeSet<usize>,
    watch: &Watch,
) {
    let keep = |number: &usize| unsure.contains(number) || alive.iter().any(|(n, _)| n == number);
    let failed = inner.sinks.iter().enumerate().filter(|(n, _)| !keep(n)).map(|(_, sink)| async move {
        // Failing here costs only some space until the orphan sweep; the backup itself is decided.
        let access = inner.access(sink, watch);
        let _ = inner.patience.bound(clear_failed_copy(&access, &manifest.set, manifest.id, dir)).await;
    });
    futures::future::join_all(failed).await;
    let good = alive.iter().map(|(_, sink)| async move {
        let _ = inner.patience.bound(async { sink.delete(&dir.pending()?).await }).await;
    });
    futures::future::join_all(good).await;
}
