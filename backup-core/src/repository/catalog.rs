//! Finding the backups of a set and opening their manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};

use super::Inner;
use crate::digest::Digest;
use crate::engine::index::{BlockIndex, INDEX_ABOVE, INDEX_LIMIT};
use crate::engine::progress::Watch;
use crate::engine::read::StoredReader;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::keys::BackupKey;
use crate::layout::{self, BackupDir};
use crate::manifest::{self, MANIFEST_LIMIT, Manifest, StoredObject};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Event;
use crate::retention::BackupSummary;
use crate::sink::{ObjectInfo, Sink, read_bytes};

/// Largest key wrap a reader accepts, in bytes.
pub(super) const WRAP_LIMIT: u64 = 64 * 1024;
/// Key wraps considered per backup; more is not something this library writes.
pub(super) const MAX_WRAPS: usize = 256;
/// Manifests read at once while listing.
pub(super) const READ_AT_ONCE: usize = 8;

/// The backups of a set, newest first. Dereferences to a slice of [`BackupSummary`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct BackupList {
    backups: Vec<BackupSummary>,
    /// Backups whose manifest is there but cannot be read or trusted, newest first.
    pub unreadable: Vec<Unreadable>,
    /// Sinks that could not be listed.
    pub unreachable: Vec<(SinkId, Error)>,
}

/// A backup whose manifest cannot be read or trusted.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unreadable {
    /// Its id, from its place.
    pub id: BackupId,
    /// The sinks that hold it.
    pub copies: Vec<SinkId>,
    /// Why.
    pub error: Error,
}

impl Deref for BackupList {
    type Target = [BackupSummary];
    fn deref(&self) -> &[BackupSummary] {
        &self.backups
    }
}

impl IntoIterator for BackupList {
    type Item = BackupSummary;
    type IntoIter = std::vec::IntoIter<BackupSummary>;
    fn into_iter(self) -> Self::IntoIter {
        self.backups.into_iter()
    }
}

/// The backups of one set.
pub(super) struct Catalog<'a> {
    pub(super) inner: &'a Inner,
    pub(super) set: SetName,
    pub(super) watch: Watch,
    /// Where the log slices seen so far lie: their directories cannot be told from their ids.
    slices: Mutex<BTreeMap<BackupId, BackupDir>>,
}

/// What listing the sinks shows of a set.
#[derive(Default)]
pub(super) struct Found {
    /// The backups and log slices that have a manifest.
    pub(super) backups: BTreeMap<BackupId, Copies>,
    /// Those pinned on any sink.
    pub(super) pinned: BTreeSet<BackupId>,
    /// What runs left that are not over, or died: for each sink the notes on finished artifacts.
    pub(super) unfinished: BTreeMap<BackupId, Vec<(SinkId, Vec<Key>)>>,
    /// The sinks that could not be listed.
    pub(super) unreachable: Vec<(SinkId, Error)>,
}

/// Where a backup lies, and the sinks that list its manifest.
pub(super) struct Copies {
    pub(super) dir: BackupDir,
    pub(super) sinks: Vec<Arc<dyn Sink>>,
}

impl Found {
    /// Fulls and incrementals, newest first.
    pub(super) fn bases(&self) -> impl Iterator<Item = (&BackupId, &Copies)> {
        self.backups.iter().rev().filter(|(_, copies)| !copies.dir.is_slice())
    }

    /// The newest full or incremental, and the newest log slice.
    pub(super) fn newest(&self) -> Vec<(BackupId, BackupDir)> {
        let slice = self.backups.iter().rev().find(|(_, copies)| copies.dir.is_slice());
        self.bases().next().into_iter().chain(slice).map(|(id, c)| (*id, c.dir.clone())).collect()
    }
}

/// A backup whose manifest was opened.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) manifest: Arc<Manifest>,
    /// Digest of the manifest object.
    pub(super) digest: Digest,
    pub(super) key: Option<BackupKey>,
    /// The sinks whose manifest is this one, in the repository's order.
    pub(super) copies: Vec<Arc<dyn Sink>>,
    /// Sinks whose manifest is another or cannot be opened.
    pub(super) bad: Vec<(SinkId, String)>,
    pub(super) dir: BackupDir,
}

impl Inner {
    pub(super) fn catalog(&self, set: SetName) -> Catalog<'_> {
        self.catalog_watched(set, self.watch(Vec::new()))
    }

    pub(super) fn catalog_watched(&self, set: SetName, watch: Watch) -> Catalog<'_> {
        Catalog { inner: self, set, watch, slices: Mutex::default() }
    }
}

impl Catalog<'_> {
    /// Which backups have a manifest, on which sinks, and which are pinned, without opening any. Fails when no sink
    /// can be listed.
    pub(super) async fn ids(&self) -> Result<Found> {
        let mut found = Found::default();
        for sink in &self.inner.sinks {
            match self.inner.places(sink, &self.set, &self.watch).await {
                Ok(places) => {
                    for (id, place) in places {
                        if place.dir.is_slice() {
                            self.slices().insert(id, place.dir.clone());
                        }
                        if place.manifest.is_some() {
                            let new = || Copies { dir: place.dir.clone(), sinks: Vec::new() };
                            let copies = found.backups.entry(id).or_insert_with(new);
                            if copies.dir == place.dir {
                                copies.sinks.push(Arc::clone(sink));
                            }
                        }
                        if place.manifest.is_none()
                            && place.condemned.is_empty()
                            && !place.finished.is_empty()
                        {
                            let left = (sink.id().clone(), place.finished);
                            found.unfinished.entry(id).or_default().push(left);
                        }
                        if place.pinned {
                            found.pinned.insert(id);
                        }
                    }
                }
                Err(error) => {
                    self.watch.event(&Event::SinkFailed { sink: sink.id(), error: &error });
                    found.unreachable.push((sink.id().clone(), error));
                }
            }
        }
        if found.unreachable.len() == self.inner.sinks.len()
            && let Some((_, error)) = found.unreachable.pop()
        {
            return Err(error);
        }
        Ok(found)
    }

    /// All backups of the set.
    pub(super) async fn list(&self) -> Result<BackupList> {
        let Found { backups, pinned, unreachable, .. } = self.ids().await?;
        let mut list = BackupList { unreachable, ..BackupList::default() };
        let opening: Vec<BoxFuture<'_, _>> = backups
            .into_iter()
            .rev()
            .map(|(id, Copies { dir, sinks })| {
                async move { (id, self.open_on(dir, id, &sinks).await, sinks) }.boxed()
            })
            .collect();
        let opened: Vec<_> = futures::stream::iter(opening).buffered(READ_AT_ONCE).collect().await;
        for (id, result, sinks) in opened {
            match result {
                Ok(opened) => {
                    let mut summary = opened.summary(pinned.contains(&id));
                    summary.shortfalls = self.inner.shortfalls(summary.copies.iter());
                    summary.degraded |= !summary.shortfalls.is_empty();
                    list.backups.push(summary);
                }
                Err(error) => list.unreadable.push(Unreadable {
                    id,
                    copies: sinks.iter().map(|s| s.id().clone()).collect(),
                    error,
                }),
            }
        }
        // Ids tell seconds apart; two backups of one second are told apart by their manifests.
        list.backups.sort_by_key(|backup| std::cmp::Reverse((backup.started, backup.id)));
        Ok(list)
    }

    /// Opens the manifest of one backup or log slice.
    pub(super) async fn open(&self, id: BackupId) -> Result<Opened> {
        let known = self.slices().get(&id).cloned();
        if let Some(dir) = known {
            return self.open_on(dir, id, &self.inner.sinks).await;
        }
        let missing = match self.open_on(BackupDir::new(&self.set, id)?, id, &self.inner.sinks).await {
            Err(error) if error.kind() == ErrorKind::NotFound => error,
            result => return result,
        };
        match self.find_slice(id).await? {
            Some(dir) => self.open_on(dir, id, &self.inner.sinks).await,
            None => Err(missing),
        }
    }

    /// The directory of a backup or log slice, whether it is there or not.
    pub(super) async fn dir(&self, id: BackupId) -> Result<BackupDir> {
        match self.find_slice(id).await? {
            Some(dir) => Ok(dir),
            None => BackupDir::new(&self.set, id),
        }
    }

    /// Where a slice of this id lies, if any sink that can be listed has one.
    async fn find_slice(&self, id: BackupId) -> Result<Option<BackupDir>> {
        let known = self.slices().get(&id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let (set, slices) = (self.set.key()?, layout::slices(&self.set)?);
        for sink in &self.inner.sinks {
            let take = |found: &mut Option<BackupDir>, object: ObjectInfo| {
                match BackupDir::of(&set, &object.key) {
                    Some((of, dir, _)) if of == id => *found = Some(dir),
                    _ => {}
                }
                Ok(())
            };
            let found = self.inner.patience.list(sink.as_ref(), &slices, &self.watch, take).await;
            // Another sink may know it; that it is nowhere is said by whoever looks for it.
            if let Some(dir) = found.unwrap_or_default() {
                self.slices().insert(id, dir.clone());
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }

    fn slices(&self) -> std::sync::MutexGuard<'_, BTreeMap<BackupId, BackupDir>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn open_on(
        &self,
        dir: BackupDir,
        id: BackupId,
        sinks: &[Arc<dyn Sink>],
    ) -> Result<Opened> {
        let mut good: Option<Opened> = None;
        let mut bad: Vec<(SinkId, Error)> = Vec::new();
        for sink in sinks {
            match self.open_copy(&dir, id, sink).await {
                Ok((manifest, digest, key)) => match &mut good {
                    None => {
                        good = Some(Opened {
                            manifest: Arc::new(manifest),
                            digest,
                            key,
                            copies: vec![Arc::clone(sink)],
                            bad: Vec::new(),
                            dir: dir.clone(),
                        });
                    }
                    Some(opened) if opened.digest == digest => opened.copies.push(Arc::clone(sink)),
                    Some(_) => bad.push((
                        sink.id().clone(),
                        Error::corrupt("read manifest", "the manifest differs from the one on another sink"),
                    )),
                },
                Err(error) => bad.push((sink.id().clone(), error)),
            }
        }
        match good {
            Some(mut opened) => {
                opened.bad = bad.into_iter().map(|(sink, error)| (sink, error.chain())).collect();
                Ok(opened)
            }
            None => Err(worst(bad).with("backup", format_args!("{}/{id}", self.set))),
        }
    }

    pub(super) async fn open_copy(
        &self,
        dir: &BackupDir,
        id: BackupId,
        sink: &Arc<dyn Sink>,
    ) -> Result<(Manifest, Digest, Option<BackupKey>)> {
        let bytes = self.read(sink, &dir.manifest()?, MANIFEST_LIMIT).await?;
        let signatures = self.inner.signatures.as_ref();
        let signed = signatures.is_some() && manifest::is_signed(&bytes);
        let key = if signed { None } else { self.key(sink, dir, id).await? };
        let manifest = manifest::open(&bytes, key.as_ref(), signatures, &self.set, id)?;
        if !dir.fits(&manifest.kind) {
            return Err(Error::corrupt(
                "read manifest",
                "the manifest is of another kind, or of another stretch of the log, than its place says; it was moved \
                 or copied here",
            ));
        }
        Ok((manifest, Digest::of(&bytes), key))
    }

    /// The key of a backup, from the wraps of one copy; `None` in a repository without a keyring.
    pub(super) async fn key(
        &self,
        sink: &Arc<dyn Sink>,
        dir: &BackupDir,
        id: BackupId,
    ) -> Result<Option<BackupKey>> {
        let Some(keyring) = self.inner.keyring.clone() else { return Ok(None) };
        let wraps = self.wraps(sink, &dir.keys()?).await?;
        if wraps.is_empty() {
            return Err(Error::new(ErrorKind::Unencrypted, "read manifest").message(
                "this repository has keys, but the backup has none and its manifest is not sealed; \
                 open it with a repository without keys if you know where it comes from",
            ));
        }
        let set = self.set.clone();
        // A passphrase takes a good part of a second to turn into a key.
        let opened = tokio::task::spawn_blocking(move || keyring.unwrap(&set, id, &wraps)).await;
        opened.map_err(|e| Error::new(ErrorKind::Internal, "open backup key").caused_by(e))?.map(Some)
    }

    /// Whether an object is certainly not there.
    pub(super) async fn is_gone(&self, sink: &Arc<dyn Sink>, key: &Key) -> bool {
        let head = self.inner.patience.retry(sink.id(), &self.watch, || sink.head(key)).await;
        head.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    pub(super) async fn wraps(&self, sink: &Arc<dyn Sink>, prefix: &Key) -> Result<Vec<(String, Bytes)>> {
        if self.inner.keyring.is_none() {
            return Ok(Vec::new());
        }
        let take = |keys: &mut Vec<Key>, object: ObjectInfo| {
            if keys.len() >= MAX_WRAPS {
                return Err(Error::new(ErrorKind::LimitExceeded, "read key wraps").with("directory", prefix));
            }
            keys.push(object.key);
            Ok(())
        };
        let mut wraps = Vec::new();
        for key in self.inner.patience.list(sink.as_ref(), prefix, &self.watch, take).await? {
            let bytes = self.read(sink, &key, WRAP_LIMIT).await?;
            wraps.push((key.file_name().to_owned(), bytes));
        }
        Ok(wraps)
    }

    pub(super) async fn read(&self, sink: &Arc<dyn Sink>, key: &Key, limit: u64) -> Result<Bytes> {
        self.inner.patience.retry(sink.id(), &self.watch, || read_bytes(sink.as_ref(), key, limit)).await
    }
}

/// The most telling of several errors: a missing manifest says less than a damaged one.
fn worst(mut errors: Vec<(SinkId, Error)>) -> Error {
    let position = errors.iter().position(|(_, e)| e.kind() != ErrorKind::NotFound).unwrap_or(0);
    if errors.is_empty() {
        return Error::new(ErrorKind::NotFound, "read manifest").message("no sink was asked");
    }
    let (sink, error) = errors.swap_remove(position);
    if error.kind() == ErrorKind::NotFound {
        return Error::new(ErrorKind::NotFound, "read manifest")
            .message("there is no such backup")
            .caused_by(error);
    }
    error.with("sink", sink)
}

impl Opened {
    pub(super) fn summary(&self, pinned: bool) -> BackupSummary {
        let mut summary = summarize(&self.manifest, self.copies.iter().map(|s| s.id().clone()).collect());
        summary.pinned = pinned;
        // Manifests never change: a copy that was replicated later counts.
        summary.degraded = self.copies.len() < self.manifest.required_copies as usize;
        summary
    }

    /// Where its objects may be read: first the sinks whose manifest is this one, then all others. Their manifest is
    /// damaged, missing or out of reach, but what they hold beside it may be whole, and every block is checked.
    pub(super) fn readable(&self, inner: &Inner) -> Vec<Arc<dyn Sink>> {
        let mut sinks = self.copies.clone();
        let good = |sink: &&Arc<dyn Sink>| self.copies.iter().all(|copy| copy.id() != sink.id());
        sinks.extend(inner.sinks.iter().filter(good).cloned());
        sinks
    }

    /// A reader of the stored bytes of an object, from `copies` in their order.
    pub(super) async fn stored_reader(
        &self,
        inner: &Inner,
        object: &StoredObject,
        copies: &[Arc<dyn Sink>],
        watch: &Watch,
    ) -> Result<StoredReader> {
        let copies: Arc<[Arc<dyn Sink>]> = copies.into();
        let reader = |name: &str, size, index| -> Result<StoredReader> {
            let key = self.dir.object(name)?;
            Ok(StoredReader::new(
                Arc::clone(&copies),
                key,
                size,
                Arc::new(index),
                inner.patience,
                watch.clone(),
            ))
        };
        let index = match &object.index {
            // An index has none itself, however long it is.
            None if object.size > INDEX_ABOVE && object.plain_size.is_some() => {
                return Err(Error::corrupt("read manifest", "an object this large has no block index")
                    .with("object", &object.object));
            }
            None => BlockIndex::single(object.size, object.sha256),
            Some(at) if at.size > INDEX_LIMIT => {
                return Err(Error::new(ErrorKind::LimitExceeded, "read index").with("object", &at.object));
            }
            Some(at) => {
                let stored = reader(&at.object, at.size, BlockIndex::single(at.size, at.sha256))?;
                let bytes = collect(stored.whole()).await?;
                BlockIndex::parse(&bytes, object.size)?
            }
        };
        reader(&object.object, object.size, index)
    }
}

/// A manifest as lists show it. Pins are not in it, and degraded is what its writer knew.
pub(super) fn summarize(manifest: &Manifest, copies: Vec<SinkId>) -> BackupSummary {
    BackupSummary {
        id: manifest.id,
        set: manifest.set.clone(),
        kind: manifest.kind.clone(),
        started: manifest.started,
        finished: manifest.finished,
        consistent_at: manifest.consistent_at,
        log_position: manifest.log_position.clone(),
        pinned: false,
        keep_until: manifest.keep_until,
        references: manifest.references.clone(),
        labels: manifest.labels.clone(),
        source_kind: manifest.source.kind.clone(),
        plain_size: manifest.totals.plain,
        stored_size: manifest.totals.stored,
        encrypted: manifest.encrypted(),
        sealed: true,
        shortfalls: Vec::new(),
        degraded: manifest.degraded(),
        copies,
    }
}

/// Everything a reader sends, in one piece.
pub(super) async fn collect(mut from: tokio::sync::mpsc::Receiver<Result<Bytes>>) -> Result<Bytes> {
    let mut all = bytes::BytesMut::new();
    while let Some(block) = from.recv().await {
        all.extend_from_slice(&block?);
    }
    Ok(all.freeze())
}
