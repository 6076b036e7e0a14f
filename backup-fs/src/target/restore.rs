//! A restore in progress.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use backup_core::{
    ArtifactFormat, ArtifactMeta, ArtifactReader, Bytes, Error, ErrorKind, Item, Proofs, Restore,
    RestorePlan, RestoreReport, Result, Undo,
};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::budget::{Budget, check_space};
use super::dirs::Dirs;
use super::entry::Entry;
use super::existing::Existing;
use super::extract::extract;
use super::layout::Layout;
use super::metadata::Observed;
use super::notes::Notes;
use super::owners::Resolver;
use super::prove::prove;
use super::record::Spool;
use super::stage::{Destination, Found, Stage};
use super::stop::{Stop, StopOnDrop};
use super::swap::swap;
use super::times::Times;
use super::{OPERATION, Options, blocking};

/// Chunks on the way from the engine to the extracting thread.
const CHUNKS_AHEAD: usize = 4;

/// What is known of a directory of the staged tree. It gets its metadata when all else is done.
#[derive(Debug)]
pub(crate) enum Directory {
    /// Made because something lies below it.
    Implied,
    Recorded(Box<Entry>),
    /// Has an equal in the old tree and keeps its metadata.
    Kept(Box<Observed>),
}

/// The staged tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) dirs: Dirs,
    pub(crate) directories: BTreeMap<Vec<u8>, Directory>,
    pub(crate) spool: Spool,
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    /// Hard links that came before their content: the places of both.
    pub(crate) late_links: Vec<(Vec<u8>, Vec<u8>)>,
    /// The mode the tree's root gets after it was moved, because its owner could not move it otherwise.
    pub(crate) late_root_mode: Option<u32>,
    /// Whether directories have their metadata, after which nothing can be added.
    pub(crate) finished: bool,
}

impl Tree {
    /// The directory `place`, made if it is missing.
    pub(crate) fn parent(&mut self, place: &[u8]) -> Result<Arc<OwnedFd>> {
        let directories = &mut self.directories;
        self.dirs.make(place, |made| {
            directories.insert(made.to_vec(), Directory::Implied);
        })
    }
}

/// What the threads of a restore share. When the last of them ends, an unfinished stage is removed.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) layout: Layout,
    pub(crate) owners: Resolver,
    pub(crate) notes: Notes,
    pub(crate) budget: Budget,
    pub(crate) times: Times,
    pub(crate) stop: Stop,
    existing: Option<Mutex<Existing>>,
    tree: Mutex<Tree>,
    pub(crate) stage: Stage,
}

impl Shared {
    /// Checks everything that can be checked, then creates the staging directory.
    pub(crate) fn begin(
        path: &Path,
        options: &Options,
        plan: &RestorePlan,
        layout: Layout,
        stop: Stop,
    ) -> Result<Self> {
        let owners = Resolver::new(options.owners.as_ref())?;
        let destination = Destination::find(path, plan.replace)?;
        if options.check_space {
            check_space(&destination.parent, plan.logical_bytes)
                .map_err(|e| e.with("directory", destination.parent_path.display()))?;
        }
        let budget = Budget::of(plan, layout.aliases());
        let stage = Stage::create(destination, plan.id)?;
        let records = stage.file("records")?;
        let times = Times::of(&records);
        let mut tree = Tree {
            dirs: Dirs::new(Arc::clone(&stage.tree)),
            directories: BTreeMap::new(),
            spool: Spool::new(records),
            items: 0,
            bytes: 0,
            late_links: Vec::new(),
            late_root_mode: None,
            finished: false,
        };
        let root = match &stage.destination.found {
            Found::Nothing => Directory::Implied,
            Found::Empty(meta) | Found::Tree { meta, .. } => Directory::Kept(Box::new(meta.clone())),
        };
        tree.directories.insert(Vec::new(), root);
        let existing = match &stage.destination.found {
            Found::Tree { root, .. } => {
                let mut existing = Existing::new(Arc::clone(root), &stop);
                if layout.is_partial() {
                    existing.keep_the_rest(&layout, &mut tree)?;
                }
                Some(Mutex::new(existing))
            }
            _ => None,
        };
        let (notes, tree) = (Notes::default(), Mutex::new(tree));
        Ok(Self { layout, owners, notes, budget, times, stop, existing, tree, stage })
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extract(&self, receive: mpsc::Receiver<Message>) -> Result<()> {
        let mut tree = self.tree();
        if tree.finished {
            return Err(Error::invalid(OPERATION, "an artifact came after the restore was proved"));
        }
        let mut receive = Some(receive);
        let chunks = || -> Result<Option<Bytes>> {
            match receive.as_mut().map(mpsc::Receiver::blocking_recv) {
                None => Ok(None),
                Some(Some(Message::Chunk(chunk))) => chunk.map(Some),
                Some(Some(Message::End)) => {
                    receive = None;
                    Ok(None)
                }
                // Nobody sends any more, and nobody said that this was all.
                Some(None) => Err(Error::cancelled(OPERATION)),
            }
        };
        extract(self, &mut tree, chunks)
    }

    fn needs(&self, item: &Item) -> Result<bool> {
        let Some(existing) = &self.existing else { return Ok(true) };
        let mut tree = self.tree();
        let mut existing = existing.lock().unwrap_or_else(PoisonError::into_inner);
        existing.take_unchanged(item, &self.layout, &mut tree).map(|taken| !taken)
    }

    fn commit(&self) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let mut tree = self.tree();
        if !tree.finished {
            return Err(Error::new(ErrorKind::Internal, OPERATION)
                .message("a restore is committed after it was proved, and not before"));
        }
        // All of it is on disk before any of it can be seen.
        rustix::fs::syncfs(&self.stage.tree).map_err(|e| Error::io("sync restored files", e.into()))?;
        // From here on it is not stopped: the journal is for processes that die.
        self.stop.check()?;
        let kept = swap(&self.stage, true, |_| Ok(()))?;
        let mut report = RestoreReport {
            items: tree.items,
            bytes: tree.bytes,
            old_kept_at: kept.as_ref().map(super::swap::Kept::path),
            warnings: self.notes.warnings(),
            ..RestoreReport::default()
        };
        // The restore is done; what fails from here on is worth a warning and not an error.
        if let Some(mode) = tree.late_root_mode.take()
            && let Err(e) = rustix::fs::fchmod(&self.stage.tree, rustix::fs::Mode::from_raw_mode(mode))
        {
            let message = format!("the destination itself did not get its mode {mode:o}: {e}");
            report.warnings.push(backup_core::Warning::new("root-mode-not-set", message));
        }
        if let Err(e) = self.stage.remove() {
            let message = format!("the staging directory is left behind: {}", e.chain());
            report.warnings.push(backup_core::Warning::new("staging-left-behind", message));
        }
        Ok((report, kept.map(|kept| Box::new(kept) as Box<dyn Undo>)))
    }
}

enum Message {
    Chunk(Result<Bytes>),
    End,
}

/// The [`Restore`] of a [`DirectoryTarget`](super::DirectoryTarget).
#[derive(Debug)]
pub(crate) struct DirectoryRestore {
    shared: Arc<Shared>,
    /// Ends the threads that still work for it.
    stop: StopOnDrop,
}

impl DirectoryRestore {
    pub(crate) fn new(shared: Arc<Shared>, stop: StopOnDrop) -> Self {
        Self { shared, stop }
    }
}

#[async_trait]
impl Restore for DirectoryRestore {
    fn wants(&self, meta: &ArtifactMeta) -> bool {
        meta.format.name == ArtifactFormat::TAR.name
    }

    async fn needs(&self, item: &Item) -> Result<bool> {
        if self.shared.existing.is_none() {
            return Ok(true);
        }
        let (shared, item) = (Arc::clone(&self.shared), item.clone());
        blocking(move || shared.needs(&item)).await
    }

    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let mut stream = reader.selected().await?;
        let (send, receive) = mpsc::channel(CHUNKS_AHEAD);
        let shared = Arc::clone(&self.shared);
        let extracting = blocking(move || shared.extract(receive));
        let feeding = async move {
            while let Some(chunk) = stream.next().await {
                let last = chunk.is_err();
                // The receiver ends early only with an error of its own, which is the one to report.
                if send.send(Message::Chunk(chunk)).await.is_err() || last {
                    return;
                }
            }
            let _ = send.send(Message::End).await;
        };
        let ((), extracted) = futures::join!(feeding, extracting);
        extracted.map_err(|e| e.with("artifact", &reader.meta().name))
    }

    async fn prove(&self) -> Result<Proofs> {
        let shared = Arc::clone(&self.shared);
        blocking(move || prove(&shared, &mut shared.tree())).await
    }

    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let Self { shared, stop } = *self;
        let done = blocking(move || shared.commit()).await;
        drop(stop);
        done
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        let Self { shared, stop } = *self;
        stop.now();
        blocking(move || {
            drop(shared.tree());
            shared.stage.remove()
        })
        .await
    }
}
