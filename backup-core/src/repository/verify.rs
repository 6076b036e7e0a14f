//! The verify verb.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryStreamExt as _};

use super::contents::Contents;
use super::{Inner, Repository};
use crate::engine::index::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::DETAILS;
use crate::manifest::{IndexRef, StoredObject};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::{Event, Observer};
use crate::sink::Sink;
use crate::transform::Chain;

use super::catalog::{Catalog, Opened};

/// A verification to be made: set options, then await.
#[must_use = "a verification runs when it is awaited"]
pub struct Verify<'a> {
    repository: &'a Repository,
    set: String,
    id: BackupId,
    only: Option<SinkId>,
    stored_only: bool,
    observers: Vec<Arc<dyn Observer>>,
}

/// What a verification found.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a report may hold problems: look at `problems` or call `into_result`"]
pub struct VerifyReport {
    /// The backup.
    pub id: BackupId,
    /// The sinks whose copy is whole and undamaged.
    pub intact: Vec<SinkId>,
    /// What is wrong, and where.
    pub problems: Vec<CopyProblem>,
    /// Stored bytes read.
    pub stored_read: u64,
    /// Plain bytes decoded and hashed.
    pub plain_read: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Something wrong with a copy.
#[derive(Debug)]
#[non_exhaustive]
pub struct CopyProblem {
    /// The sink.
    pub sink: SinkId,
    /// The object.
    pub object: Key,
    /// What is wrong with it.
    pub error: Error,
}

impl VerifyReport {
    /// Whether every copy is whole and undamaged.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty() && !self.intact.is_empty()
    }

    /// The report, or an error that names the first problem.
    pub fn into_result(mut self) -> Result<Self> {
        if self.is_intact() {
            return Ok(self);
        }
        let count = self.problems.len();
        let error = Error::corrupt("verify", "copies of the backup are damaged or incomplete")
            .with("problems", count)
            .with("intact_copies", self.intact.len());
        Err(match (count > 0).then(|| self.problems.swap_remove(0)) {
            Some(first) => error.with("sink", first.sink).with("object", first.object).caused_by(first.error),
            None => error,
        })
    }
}

impl<'a> Verify<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str, id: BackupId) -> Self {
        Self { repository, set: set.to_owned(), id, only: None, stored_only: false, observers: Vec::new() }
    }

    /// Verifies only the copy on this sink.
    pub fn on(mut self, sink: &SinkId) -> Self {
        self.only = Some(sink.clone());
        self
    }

    /// Reads and hashes the stored bytes of everything, and decrypts and decodes nothing: for a host that holds no key to
    /// read with. Damage is noticed; whether a key still opens the backup is not.
    pub fn stored_only(mut self) -> Self {
        self.stored_only = true;
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    async fn run(mut self) -> Result<VerifyReport> {
        let inner = &self.repository.0;
        let set = SetName::parse(std::mem::take(&mut self.set))?;
        let watch = inner.watch(std::mem::take(&mut self.observers));
        watch.event(&Event::Started { verb: "verify", set: &set, id: self.id });
        let catalog = inner.catalog_watched(set.clone(), watch.clone());
        let result = self.copies(inner, &catalog).await;
        let error = result.as_ref().err();
        watch.event(&Event::Finished {
            verb: "verify",
            set: &set,
            id: self.id,
            error,
            elapsed: watch.elapsed(),
        });
        result
    }

    async fn copies(&self, inner: &Inner, catalog: &Catalog<'_>) -> Result<VerifyReport> {
        let opened = catalog.open(self.id).await?;
        if inner.require_encryption && !opened.manifest.encrypted() {
            return Err(Error::new(ErrorKind::Unencrypted, "verify")
                .message("encryption is required and this backup is readable by anyone; make a new one and remove it")
                .with("id", self.id));
        }
        let decode = !self.stored_only;
        if decode && !Chain::from_specs(&opened.manifest.chain, &inner.known)?.can_decode() {
            return Err(Error::new(ErrorKind::WrongKey, "verify")
                .message(
                    "this host holds no key that reads the backup; verify where its identity is, or only the stored bytes \
                     with `stored_only`",
                )
                .with("id", self.id));
        }
        let report = Self::empty(self.id);
        let mut work = Work { inner, catalog, opened: &opened, report, decode, decoded: Vec::new() };
        for sink in &inner.sinks {
            if self.only.as_ref().is_none_or(|only| sink.id() == only) {
                work.copy(sink).await?;
            }
        }
        let mut report = work.report;
        report.elapsed = catalog.watch.elapsed();
        Ok(report)
    }

    fn empty(id: BackupId) -> VerifyReport {
        VerifyReport {
            id,
            intact: Vec::new(),
            problems: Vec::new(),
            stored_read: 0,
            plain_read: 0,
            elapsed: Duration::ZERO,
        }
    }
}

struct Work<'a> {
    inner: &'a Inner,
    catalog: &'a Catalog<'a>,
    opened: &'a Opened,
    report: VerifyReport,
    /// Whether plain bytes are looked at.
    decode: bool,
    /// Objects whose stored bytes were decoded and found good. The same stored digest on another sink means the
    /// same bytes, which need no second decoding.
    decoded: Vec<String>,
}

impl Work<'_> {
    async fn copy(&mut self, sink: &Arc<dyn Sink>) -> Result<()> {
        let before = self.report.problems.len();
        let manifest = Arc::clone(&self.opened.manifest);
        if !self.opened.copies.iter().any(|s| s.id() == sink.id()) {
            let why = self.opened.bad.iter().find(|(id, _)| id == sink.id());
            let error = match why {
                Some((_, why)) => {
                    Error::corrupt("read manifest", "the manifest of this copy cannot be trusted")
                        .with("because", why)
                }
                None => Error::new(ErrorKind::NotFound, "read manifest"),
            };
            self.problem(sink, self.opened.dir.manifest()?, error);
        }
        let contents = if self.decode { self.contents(sink).await? } else { None };
        for artifact in &manifest.artifacts {
            let sha256 = contents
                .as_ref()
                .and_then(|c| c.head.artifacts.get(artifact.meta.name.as_ref()))
                .map(|a| a.sha256);
            self.object(sink, &artifact.meta.name, &artifact.stored, sha256).await?;
        }
        self.object(sink, DETAILS, &manifest.details, None).await?;
        for note in &manifest.notes {
            self.raw(sink, &note.object, note.size, BlockIndex::single(note.size, note.sha256)).await?;
        }
        if self.report.problems.len() == before {
            self.report.intact.push(sink.id().clone());
        }
        Ok(())
    }

    /// The contents as this copy tells them.
    async fn contents(&mut self, sink: &Arc<dyn Sink>) -> Result<Option<Contents>> {
        let copies = [Arc::clone(sink)];
        let (opened, watch) = (self.opened.clone(), &self.catalog.watch);
        match Contents::from_copies(self.inner, opened, &copies, watch).await {
            Ok(contents) => Ok(Some(contents)),
            Err(error) => {
                let details = self.opened.dir.object(&self.opened.manifest.details.object)?;
                self.problem(sink, details, error);
                // The digests of plain bytes may still be known from another copy.
                Ok(Contents::of(self.inner, self.opened.clone(), &self.catalog.watch).await.ok())
            }
        }
    }

    /// Reads one encoded object: every block, the whole digest, and, once, its decoded bytes.
    async fn object(
        &mut self,
        sink: &Arc<dyn Sink>,
        name: &str,
        object: &StoredObject,
        sha256: Option<crate::digest::Digest>,
    ) -> Result<()> {
        if let Some(IndexRef { object: index, size, sha256 }) = &object.index
            && !self.raw(sink, index, *size, BlockIndex::single(*size, *sha256)).await?
        {
            // Without its index the object can still be checked as one block, in bounded memory it cannot be.
            return self.unindexed(sink, object).await;
        }
        let copies = [Arc::clone(sink)];
        let reader =
            self.inner.plain_reader(self.opened, name, object, sha256, &copies, &self.catalog.watch).await;
        let key = self.opened.dir.object(&object.object)?;
        let reader = match reader {
            Ok(reader) => reader,
            Err(error) => {
                self.problem(sink, key, error);
                return Ok(());
            }
        };
        self.report.stored_read += object.size;
        if !self.decode || self.decoded.contains(&object.object) {
            let mut blocks = reader.stored.whole();
            let mut hasher = crate::digest::Hasher::new();
            let mut failed = None;
            while let Some(block) = blocks.recv().await {
                match block {
                    Ok(block) => hasher.update(&block),
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                Some(error) => self.problem(sink, key, error),
                None if hasher.finish() != object.sha256 => {
                    self.problem(sink, key, Error::corrupt("verify", "the index is wrong about this object"));
                }
                None => {}
            }
            return Ok(());
        }
        let mut plain = reader.stream(None);
        loop {
            match plain.try_next().await {
                Ok(Some(bytes)) => self.report.plain_read += bytes.len() as u64,
                Ok(None) => {
                    self.decoded.push(object.object.clone());
                    return Ok(());
                }
                Err(error) => {
                    self.problem(sink, key, error);
                    return Ok(());
                }
            }
        }
    }

    /// Reads one small plain object; says whether it is good.
    async fn raw(&mut self, sink: &Arc<dyn Sink>, name: &str, size: u64, index: BlockIndex) -> Result<bool> {
        let key = self.opened.dir.object(name)?;
        let reader = crate::engine::read::StoredReader::new(
            Arc::from([Arc::clone(sink)]),
            key.clone(),
            size,
            Arc::new(index),
            self.inner.patience,
            self.catalog.watch.clone(),
        );
        self.report.stored_read += size;
        let mut blocks = reader.whole();
        while let Some(block) = blocks.recv().await {
            if let Err(error) = block {
                self.problem(sink, key, error);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Checks an object whose index is lost by its whole digest, in one pass.
    async fn unindexed(&mut self, sink: &Arc<dyn Sink>, object: &StoredObject) -> Result<()> {
        let key = self.opened.dir.object(&object.object)?;
        let read = async {
            let mut hasher = crate::digest::Hasher::new();
            let patience = self.inner.patience;
            let mut stream = patience.bound(sink.open(&key, None)).await?;
            while let Some(bytes) = patience.bound(async { stream.try_next().await }).await? {
                hasher.update(&bytes);
            }
            if hasher.finish() == object.sha256 {
                Ok(())
            } else {
                Err(Error::corrupt("verify", "the bytes differ from what was written"))
            }
        };
        if let Err(error) = read.await {
            self.problem(sink, key, error);
        }
        Ok(())
    }

    fn problem(&mut self, sink: &Arc<dyn Sink>, object: Key, error: Error) {
        self.catalog.watch.event(&Event::CopyDamaged { sink: sink.id(), key: &object, error: &error });
        self.report.problems.push(CopyProblem { sink: sink.id().clone(), object, error });
    }
}

impl<'a> IntoFuture for Verify<'a> {
    type Output = Result<VerifyReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        self.run().boxed()
    }
}

impl std::fmt::Debug for Verify<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verify").field("set", &self.set).field("id", &self.id).finish_non_exhaustive()
    }
}
