//! Taking over what a run that died left finished.
//!
//! Whether the other run is really dead cannot be known, and need not be: its directory is only read. What is taken over
//! is copied into this run's own directory, on each sink by itself, and read back there before it counts. So a run that
//! turns out to live, another that resumes at the same time, and a sweep in between cost an adoption at
//! most. Objects stay encrypted as they are: the backup takes over their key, and its manifest says for which id the keys of
//! these objects were derived ([`StoredObject::written_as`](crate::StoredObject)).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::Options;
use super::run::Run;
use crate::digest::Digest;
use crate::engine::fanout::{Fanout, Numbered};
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::item::Item;
use crate::key::Key;
use crate::keys::BackupKey;
use crate::layout::{BackupDir, finished_object};
use crate::manifest::{self, Manifest, StoredArtifact};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Event;
use crate::repository::Inner;
use crate::repository::catalog::{Found, Opened, READ_AT_ONCE};
use crate::repository::clear::clear_failed_copy;
use crate::repository::commit::PENDING_LIMIT;
use crate::repository::contents::Contents;
use crate::repository::origin::Origin;
use crate::repository::replicate::{Part, copy_by_store, parts};
use crate::selection::Selection;
use crate::sink::{ObjectKind, PutOptions, Sink, StoreCopy};
use crate::source::{ArtifactMeta, Earlier, SnapshotRequest, Warning};
use crate::target::ItemList;

/// Runs that are looked at, the newest first: one that died early may hide a better one before it.
const CANDIDATES: usize = 3;
/// Largest note that is read.
const NOTE_LIMIT: u64 = 1024 * 1024;
/// Deletions at once.
const AT_ONCE: usize = 8;

/// What a run took over, and what it leaves to be taken over.
#[derive(Default)]
pub(super) struct Taken {
    /// Whether notes are left beside finished artifacts.
    pub(super) noting: bool,
    /// Set when there is something to be taken over: then a run that fails leaves it.
    pub(super) keep: Arc<AtomicBool>,
    /// The notes and their details, to be removed when the backup exists.
    notes: Vec<Key>,
    /// What was taken over, by name.
    artifacts: BTreeMap<String, (StoredArtifact, Digest)>,
    /// How many of them the source has yielded.
    yielded: usize,
    /// The run it was taken over from.
    from: Option<(BackupId, BackupDir)>,
}

impl Taken {
    /// How many artifacts of the backup were taken over.
    pub(super) fn adopted(&self) -> usize {
        self.yielded
    }

    /// Remembers the objects of a note.
    pub(super) fn note(&mut self, dir: &BackupDir, note: &Manifest) -> Result<()> {
        for artifact in &note.artifacts {
            self.notes.push(dir.object(&finished_object(&artifact.meta.name))?);
        }
        self.notes.push(dir.object(&note.details.object)?);
        if let Some(index) = &note.details.index {
            self.notes.push(dir.object(&index.object)?);
        }
        Ok(())
    }

    /// When the backup exists: removes its notes, and what the run that died left, if it is over for certain. What cannot be
    /// removed costs some space, until the backup is pruned or a sweep comes by.
    pub(super) async fn forget(&self, inner: &Inner, set: &SetName, alive: &[Numbered], watch: &Watch) {
        let forgetting = alive.iter().map(|(_, sink)| async move {
            let _ = inner.patience.bound_finish(self.forget_on(inner, set, sink, watch)).await;
        });
        join_all(forgetting).await;
    }

    async fn forget_on(
        &self,
        inner: &Inner,
        set: &SetName,
        sink: &Arc<dyn Sink>,
        watch: &Watch,
    ) -> Result<()> {
        let notes: Vec<BoxFuture<'_, _>> =
            self.notes.iter().map(|key| inner.patience.bound(sink.delete(key)).boxed()).collect();
        futures::stream::iter(notes).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let Some((id, dir)) = &self.from else { return Ok(()) };
        let access = inner.access(sink, watch);
        // A marker says that it may be alive: then a sweep decides, later.
        match access.read(&dir.pending()?, PENDING_LIMIT).await? {
            Some(_) => Ok(()),
            None => clear_failed_copy(&access, set, *id, dir).await,
        }
    }
}

/// An artifact that a run left finished, as it is offered to the source.
struct Remains {
    earlier: Earlier,
    opened: Opened,
    sha256: Digest,
    /// The note itself.
    note: Bytes,
}

/// The items of a finished artifact, as those of the backup that takes it over.
struct Own(Contents);

impl ItemList for Own {
    fn stream(&self) -> BoxStream<'static, Result<Item>> {
        let id = self.0.manifest().id;
        self.0.items().map_ok(move |item| Item { origin: item.origin.filter(|of| *of != id), ..item }).boxed()
    }
}

impl Run<'_> {
    /// Whether this run leaves and takes over finished artifacts.
    pub(super) fn resumable(&mut self, options: &Options, has_parent: bool) -> bool {
        let full = !has_parent && self.origin.slice().is_none();
        self.taken.noting = options.resume && full && self.inner.chain.can_decode();
        self.taken.noting
    }

    /// Takes over what the newest run that left something useful had finished.
    pub(super) async fn take_over(&mut self, found: &Found, selection: &Selection) -> Result<Vec<Earlier>> {
        let Origin::Source(source) = self.origin else { return Ok(Vec::new()) };
        let mine = self.id;
        // What lies before the newest backup was taken over by it, or is older than that anyway.
        let newest = found.bases().next().map(|(id, _)| *id);
        let left = found.unfinished.iter().rev().filter(|(id, _)| **id != mine && Some(**id) > newest);
        for (id, sinks) in left.take(CANDIDATES) {
            // What cannot be opened, or no longer lies there, is read from the source.
            let Ok(remains) = self.remains(*id, sinks).await else { continue };
            if remains.is_empty() {
                continue;
            }
            let request = SnapshotRequest {
                selection: selection.clone(),
                cancelled: self.cancelled.clone(),
                earlier: remains.iter().map(|remains| remains.earlier.clone()).collect(),
                ..SnapshotRequest::full()
            };
            let unchanged: BTreeSet<usize> =
                match self.inner.patience.bound_source(source.unchanged(request)).await {
                    Ok(unchanged) => unchanged.into_iter().collect(),
                    Err(error) => {
                        let warning = Warning::new("not-resumed", error.chain());
                        self.pipeline.watch.event(&Event::Warning(&warning));
                        return Ok(Vec::new());
                    }
                };
            let mut taken = Vec::new();
            for (_, remains) in remains.into_iter().enumerate().filter(|(n, _)| unchanged.contains(n)) {
                let key = remains.opened.key.clone();
                if let Some(earlier) = self.adopt(remains).await? {
                    self.key = key;
                    taken.push(earlier);
                }
            }
            if !taken.is_empty() {
                self.taken.from = Some((*id, BackupDir::new(&self.set, *id)?));
                return Ok(taken);
            }
        }
        Ok(Vec::new())
    }

    /// The artifact of this name as it was taken over, if it was.
    pub(super) fn adopted(&mut self, meta: &ArtifactMeta) -> Result<Option<(StoredArtifact, Digest)>> {
        let Some((artifact, sha256)) = self.taken.artifacts.remove(meta.name.as_ref()) else {
            return Ok(None);
        };
        self.objects.take(&artifact.meta.name, &artifact.stored.object)?;
        self.taken.yielded += 1;
        self.pipeline.watch.event(&Event::ArtifactAdopted {
            artifact: &artifact.meta.name,
            from: artifact.stored.written_as.unwrap_or(self.id),
            plain: artifact.stored.plain_size.unwrap_or(0),
        });
        Ok(Some((artifact, sha256)))
    }

    /// Fails where the source did not yield something that was taken over: it lies in the snapshot's request, and the items
    /// may refer to it.
    pub(super) fn all_adopted(&self) -> Result<()> {
        match self.taken.artifacts.keys().next() {
            None => Ok(()),
            Some(missing) => Err(Error::new(ErrorKind::SourceFailed, "read source")
                .message("the source left out an artifact that it had said is unchanged")
                .with("artifact", missing)),
        }
    }

    /// The artifacts that the run `id` finished, as far as every working sink lists all their objects.
    async fn remains(&self, id: BackupId, left: &[(SinkId, Vec<Key>)]) -> Result<Vec<Remains>> {
        let dir = BackupDir::new(&self.set, id)?;
        let copies: Vec<Arc<dyn Sink>> = self.alive.iter().map(|(_, sink)| Arc::clone(sink)).collect();
        let of = |sink: &Arc<dyn Sink>| left.iter().find(|(id, _)| id == sink.id()).map(|(_, keys)| keys);
        let Some((first, all)) = copies.first().zip(copies.iter().map(of).collect::<Option<Vec<_>>>()) else {
            return Ok(Vec::new());
        };
        let everywhere = |key: &&Key| all.iter().all(|keys| keys.contains(key));
        let notes = all.first().into_iter().flat_map(|keys| keys.iter()).filter(everywhere);
        let key = self.catalog().key(first, &dir, id).await?;
        let mut held = Vec::new();
        for sink in &copies {
            let listed = self.inner.access(sink, &self.pipeline.watch).list(dir.prefix()).await?;
            held.push(listed.into_iter().map(|o| (o.key, o.size)).collect::<BTreeMap<_, _>>());
        }
        let open: Vec<BoxFuture<'_, _>> =
            notes.map(|note| self.finished(&dir, note, key.as_ref(), &copies, &held).boxed()).collect();
        let opened: Vec<_> = futures::stream::iter(open).buffered(READ_AT_ONCE).collect().await;
        Ok(opened.into_iter().filter_map(Result::ok).flatten().collect())
    }

    /// Opens one note. `None` for one that is of no use here.
    async fn finished(
        &self,
        dir: &BackupDir,
        at: &Key,
        key: Option<&BackupKey>,
        copies: &[Arc<dyn Sink>],
        held: &[BTreeMap<Key, u64>],
    ) -> Result<Option<Remains>> {
        let Some(first) = copies.first() else { return Ok(None) };
        let note = self.catalog().read(first, at, NOTE_LIMIT).await?;
        let manifest = manifest::open_finished(&note, key, self.inner.signatures.as_ref(), &self.set)?;
        let [artifact] = manifest.artifacts.as_slice() else { return Ok(None) };
        let mut sizes = Vec::new();
        for (object, size, _) in manifest.objects() {
            sizes.push((dir.object(&object)?, size));
        }
        let fits = manifest.source.kind == self.origin.kind()
            && manifest.chain == self.pipeline.chain.specs()
            && dir.object(&finished_object(&artifact.meta.name))? == *at
            && held.iter().all(|held| sizes.iter().all(|(key, size)| held.get(key) == Some(size)));
        if !fits {
            return Ok(None);
        }
        let opened = Opened {
            manifest: Arc::new(manifest.clone()),
            digest: Digest::of(&note),
            key: key.cloned(),
            copies: copies.to_vec(),
            bad: Vec::new(),
            dir: dir.clone(),
        };
        let contents =
            Contents::from_copies(self.inner, opened.clone(), copies, &self.pipeline.watch).await?;
        let Some(details) = contents.head.artifacts.get(artifact.meta.name.as_ref()) else { return Ok(None) };
        let sha256 = details.sha256;
        let earlier = Earlier {
            meta: artifact.meta.clone(),
            plain_size: artifact.stored.plain_size.unwrap_or(0),
            state: contents.head.state.clone(),
            proofs: contents.head.proofs.clone(),
            items: Arc::new(Own(contents)),
        };
        Ok(Some(Remains { earlier, opened, sha256, note }))
    }

    /// Copies a finished artifact, and the note on it, to this run's directory on every working sink. `None` where it
    /// did not arrive whole on each: then it is read from the source.
    async fn adopt(&mut self, remains: Remains) -> Result<Option<Earlier>> {
        let Remains { mut earlier, opened, sha256, note } = remains;
        let Some(mut artifact) = opened.manifest.artifacts.first().cloned() else { return Ok(None) };
        let mine = Opened { dir: self.dir.clone(), ..opened.clone() };
        let copied = {
            let (run, opened, mine) = (&*self, &opened, &mine);
            let copy = |(number, sink)| async move { (number, run.copy_over(&sink, opened, mine).await) };
            join_all(self.alive.iter().cloned().map(copy)).await
        };
        let mut whole = true;
        let mut failures = Vec::new();
        for (number, result) in copied {
            match result {
                Ok(arrived) => whole &= arrived,
                Err(error) => failures.push((number, error)),
            }
        }
        self.lose(failures)?;
        if !whole {
            self.discard(&mine.manifest).await;
            return Ok(None);
        }
        let contents =
            Contents::from_copies(self.inner, mine.clone(), &mine.copies, &self.pipeline.watch).await;
        let Ok(contents) = contents else {
            self.discard(&mine.manifest).await;
            return Ok(None);
        };
        let name = artifact.meta.name.to_string();
        let options = PutOptions::overwrite(ObjectKind::Note);
        self.taken.note(&self.dir, &mine.manifest)?;
        self.put_with(&self.dir.object(&finished_object(&name))?, note, &options).await?;
        earlier.items = Arc::new(Own(contents));
        artifact.stored.written_as = artifact.stored.written_as.or(Some(mine.manifest.id));
        self.taken.artifacts.insert(name, (artifact, sha256));
        Ok(Some(earlier))
    }

    /// Copies the objects of a note from the directory of `from` to that of `to` on one sink, and says whether what arrived
    /// is whole. Fails only where the sink cannot be written to, or may be copying still: what cannot be read or copied here
    /// must not keep it from getting a backup.
    async fn copy_over(&self, sink: &Arc<dyn Sink>, from: &Opened, to: &Opened) -> Result<bool> {
        let (copies, watch) = ([Arc::clone(sink)], &self.pipeline.watch);
        // Indexes first: what they are for is checked by them.
        let (indexes, objects): (Vec<_>, Vec<_>) =
            parts(&from.manifest).into_iter().partition(|part| part.object.plain_size.is_none());
        for Part { object, kind } in indexes.into_iter().chain(objects) {
            let details = from.manifest.details.index.as_ref().is_some_and(|i| i.object == object.object)
                || from.manifest.details.object == object.object;
            // Notes are not locked: they go when the backup is there.
            let options = if details { PutOptions::overwrite(kind) } else { self.options(kind) };
            let options = options.size_hint(Some(object.size));
            let (source, target) = (from.dir.object(&object.object)?, to.dir.object(&object.object)?);
            let (address, patience) = (sink.address(&source), self.inner.patience);
            let copying = copy_by_store(patience, address, object.size, sink, &target, options.clone());
            match copying.await {
                Ok(Some(StoreCopy { sha256: Some(sha256) })) if sha256 == object.sha256 => continue,
                Ok(Some(StoreCopy { sha256: Some(_) })) => return Ok(false),
                Ok(Some(StoreCopy { sha256: None })) => {
                    let reader = to.stored_reader(self.inner, &object, &copies, watch).await;
                    let Ok(reader) = reader else { return Ok(false) };
                    let mut blocks = reader.whole();
                    while let Some(block) = blocks.recv().await {
                        if block.is_err() {
                            return Ok(false);
                        }
                    }
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Timeout => return Err(error),
                Ok(None) | Err(_) => {}
            }
            let reader = from.stored_reader(self.inner, &object, &copies, watch).await;
            let Ok(reader) = reader else { return Ok(false) };
            let lane = [(0, Arc::clone(sink))];
            let mut fanout = Fanout::open(&lane, &target, &options, self.inner.patience, watch);
            let mut blocks = reader.whole();
            while let Some(block) = blocks.recv().await {
                let Ok(block) = block else { return Ok(false) };
                fanout.write(block).await?;
            }
            fanout.finish(object.size).await?;
        }
        Ok(true)
    }

    /// Removes what was copied of an artifact that is not taken over. What stays is swept with this run, or pruned with its
    /// backup.
    async fn discard(&self, note: &Manifest) {
        let keys: Vec<Key> = note.objects().filter_map(|(name, ..)| self.dir.object(&name).ok()).collect();
        for (_, sink) in &self.alive {
            for key in &keys {
                let _ = self.inner.patience.bound(sink.delete(key)).await;
            }
        }
    }
}
