//! A run up to just before its manifest.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Options;
use super::resume::Taken;
use crate::digest::Digest;
use crate::engine::encode::{Encoded, Scope};
use crate::engine::fanout::{Numbered, all_failed};
use crate::engine::index::INDEX_ABOVE;
use crate::engine::store::{Failures, Pipeline};
use crate::error::{Error, ErrorKind, Result};
use crate::item::ItemSpool;
use crate::key::Key;
use crate::keys::BackupKey;
use crate::layout::{BackupDir, DETAILS, ObjectNames, details_object, index_object};
use crate::manifest::{
    FORMAT, IndexRef, Manifest, Previous, SourceInfo, StoredArtifact, StoredObject, Totals,
};
use crate::name::{BackupId, SetName};
use crate::observer::Event;
use crate::proof::Proofs;
use crate::repository::catalog::{Catalog, Found};
use crate::repository::commit::{Cleanup, Pending};
use crate::repository::contents::{ArtifactDetails, DetailsHead};
use crate::repository::notes::{Notes, borrowed};
use crate::repository::origin::Origin;
use crate::repository::parent::{Parent, References};
use crate::repository::state::Kept;
use crate::repository::{Inner, Repository};
use crate::retention::BackupKind;
use crate::sink::{ObjectKind, PutOptions};
use crate::source::{Artifact, ArtifactMeta, ParentReader, SnapshotRequest, SourceReport, Warning};

/// A run until just before its manifest.
pub(super) struct Run<'a> {
    pub(super) repository: &'a Repository,
    pub(super) inner: &'a Inner,
    pub(super) origin: Origin<'a>,
    pub(super) pipeline: Pipeline,
    pub(super) set: SetName,
    pub(super) id: BackupId,
    pub(super) dir: BackupDir,
    pub(super) started: DateTime<Utc>,
    pub(super) keep_until: Option<DateTime<Utc>>,
    pub(super) key: Option<BackupKey>,
    /// The sinks that have everything so far.
    pub(super) alive: Vec<Numbered>,
    pub(super) failed: Failures,
    pub(super) objects: ObjectNames,
    pub(super) cancelled: CancellationToken,
    pub(super) taken: Taken,
}

/// A backup that is whole but for its manifest.
pub(super) struct Prepared {
    pub(super) manifest: Manifest,
    pub(super) key: Option<BackupKey>,
    /// The details as this host keeps them, where it cannot read them back.
    pub(super) kept: Option<Arc<Mutex<Kept>>>,
    pub(super) proofs: Proofs,
    pub(super) warnings: Vec<Warning>,
    pub(super) taken: Taken,
}

impl Run<'_> {
    pub(super) async fn prepare(&mut self, cleanup: &mut Cleanup, options: &Options) -> Result<Prepared> {
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
        // What is taken over lies there before it is read back: a replication must not rely on it unread.
        let pending = Pending {
            unverified: options.resume,
            ..Pending::new(&self.set, self.id, parent_id, self.inner.clock.now())
        };
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
        let earlier = if self.resumable(options, parent.is_some()) {
            cleanup.keep_if(Arc::clone(&self.taken.keep));
            self.take_over(&found, &options.selection).await?
        } else {
            Vec::new()
        };
        self.wrap_key().await?;

        let request = SnapshotRequest {
            parent: parent.as_ref().map(|parent| parent as &dyn ParentReader),
            selection: options.selection.clone(),
            cancelled: self.cancelled.clone(),
            earlier,
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
        let (key, taken) = (self.key.clone(), std::mem::take(&mut self.taken));
        Ok(Prepared { manifest, key, kept, proofs, warnings, taken })
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

    pub(super) fn catalog(&self) -> Catalog<'_> {
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
        // What was taken over stays as it is encrypted: its key becomes that of the backup.
        let key = self.key.take().map_or_else(BackupKey::generate, Ok)?;
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
                        match self.adopted(&artifact.meta)? {
                            Some((adopted, sha256)) => {
                                details.insert(adopted.meta.name.to_string(), ArtifactDetails::new(sha256));
                                stored.insert(offered, adopted);
                            }
                            None => open.push(self.start(artifact, offered)?),
                        }
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
            let sha256 = encoded.plain_sha256;
            details.insert(meta.name.to_string(), ArtifactDetails::new(sha256));
            let options = self.options(ObjectKind::Index);
            let artifact = StoredArtifact { stored: self.index(object, encoded, options).await?, meta };
            if self.taken.noting
                && artifact.meta.independent
                && let Some(finished) = snapshot.finished(&artifact.meta.name)
            {
                self.note_finished(&artifact, sha256, finished).await?;
                self.taken.keep.store(true, Relaxed);
            }
            stored.insert(number, artifact);
        }
        self.all_adopted()?;
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
        self.list(object, head, items, kept, self.options(ObjectKind::Index)).await
    }

    /// Stores details under the name `object`.
    pub(super) async fn list(
        &mut self,
        object: String,
        head: DetailsHead,
        items: ItemSpool,
        kept: Option<&Arc<Mutex<Kept>>>,
        options: PutOptions,
    ) -> Result<StoredObject> {
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
        self.index(object, encoded, options).await
    }

    /// Stores the block index of a large object, and returns how the manifest records both.
    async fn index(&mut self, object: String, encoded: Encoded, options: PutOptions) -> Result<StoredObject> {
        let mut stored = StoredObject {
            size: encoded.stored_size,
            sha256: encoded.stored_sha256,
            plain_size: Some(encoded.plain_size),
            index: None,
            written_as: None,
            object,
        };
        if encoded.stored_size > INDEX_ABOVE {
            let bytes = encoded.index.to_bytes()?;
            let name = index_object(&stored.object);
            stored.index =
                Some(IndexRef { size: bytes.len() as u64, sha256: Digest::of(&bytes), object: name.clone() });
            self.put_with(&self.dir.object(&name)?, bytes, &options).await?;
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
    async fn put(&mut self, key: &Key, bytes: Bytes, kind: ObjectKind) -> Result<()> {
        self.put_with(key, bytes, &self.options(kind)).await
    }

    pub(super) async fn put_with(&mut self, key: &Key, bytes: Bytes, options: &PutOptions) -> Result<()> {
        let failures = self.inner.put_each(&self.alive, key, &bytes, options, &self.pipeline.watch).await;
        for (number, error) in &failures {
            if let Some(sink) = self.inner.sinks.get(*number) {
                self.pipeline.watch.event(&Event::SinkFailed { sink: sink.id(), error });
            }
        }
        self.lose(failures)
    }

    /// Takes sinks that failed out of the run; fails when none is left.
    pub(super) fn lose(&mut self, failures: Failures) -> Result<()> {
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
    pub(super) fn options(&self, kind: ObjectKind) -> PutOptions {
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
        written_as: None,
    }
}
