//! Restoring into a directory: [`DirectoryTarget`].

mod budget;
mod dirs;
mod entry;
mod existing;
mod extract;
mod layout;
mod metadata;
mod mounts;
mod notes;
mod owners;
mod prove;
mod record;
mod remove;
mod restore;
mod stage;
mod stop;
mod swap;
mod times;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{ArtifactFormat, Atomicity, Error, ErrorKind, Restore, RestorePlan, RestoreTarget, Result};

pub use owners::{OwnerMap, Owners};
use restore::DirectoryRestore;

pub(crate) const OPERATION: &str = "restore directory";

/// Restores tar artifacts into a directory.
///
/// Everything is extracted into a staging directory beside the destination, read back and proved there, and
/// appears at the destination by one rename at [`commit`](Restore::commit). The staging directory is called
/// `.<name>.restore-<random>`, is readable by its owner alone, and needs the space of all that is restored.
///
/// * A destination that does not exist is created (its parent must exist); an empty one is replaced and keeps its
///   mode, owner and attributes, unless the backup recorded those of the root itself.
/// * A destination with something in it needs [`RestorePlan::replace`]. It is exchanged in one step
///   (`renameat2` with `RENAME_EXCHANGE`) and kept as `.<name>.before-<time>-<random>` until
///   [`Undo::drop_old`](backup_core::Undo::drop_old). On file systems without the exchange, two renames are made
///   under a journal; a crash between them is put right by the next restore to the same destination.
/// * When only some items are selected, the others stay as they are: the staged tree is the old one, linked file by
///   file, in which what is selected is replaced, down to what lies below a selected directory.
///   This takes time and directory entries for every file of the old tree, and keeps the exchange atomic.
/// * Unchanged files (same content, same metadata) are hard-linked from the old tree, not written again. The
///   old and the new tree then share them until one of both is removed: a program that writes into such a file
///   *in place* changes it in both.
///
/// Nothing should write into the destination while it is restored: such writes go to the old tree.
///
/// A destination in which another file system, or anything by a bind mount, is mounted is not replaced, because the mount would
/// move away with the old tree: unmount it first. Nothing that is mounted in a tree is ever removed with it.
///
/// Times that the destination's file system cannot keep (FAT has two seconds, ext3 one, and both end somewhere) are rounded
/// and kept in its range; the report has the warning `time-not-kept`.
///
/// Names that are absolute or contain `..`, members that lie below anything but a directory, links to what the
/// archive does not hold, device nodes, and archives that unpack to much more than was recorded are refused
/// with an error. Symbolic links are created, never followed.
///
/// ```
/// use backup_fs::{DirectoryTarget, Owners};
///
/// let target = DirectoryTarget::new("/srv/restored").strip_components(1).owners(Owners::Numeric);
/// ```
#[derive(Clone, Debug)]
pub struct DirectoryTarget {
    path: PathBuf,
    options: Options,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) strip: usize,
    pub(crate) owners: Option<Owners>,
    pub(crate) check_space: bool,
}

impl DirectoryTarget {
    /// Restores into `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), options: Options { strip: 0, owners: None, check_space: true } }
    }

    /// Removes this many leading components of every name. A directory of which nothing is left gives its
    /// metadata to the destination, or is left out if it lay above that.
    pub fn strip_components(mut self, components: usize) -> Self {
        self.options.strip = components;
        self
    }

    /// Who is to own what is restored. The default is [`Owners::ByName`] for root and [`Owners::Leave`] for others,
    /// who may not give files away.
    pub fn owners(mut self, owners: Owners) -> Self {
        self.options.owners = Some(owners);
        self
    }

    /// Whether to compare the free space with the logical size of what is restored before anything is written. On by
    /// default; to be turned off where sparse files, or files that did not change, make the logical size mislead.
    pub fn check_space(mut self, check: bool) -> Self {
        self.options.check_space = check;
        self
    }
}

#[async_trait]
impl RestoreTarget for DirectoryTarget {
    fn accepts(&self, format: &ArtifactFormat) -> bool {
        format.name == ArtifactFormat::TAR.name
    }

    fn atomicity(&self) -> Atomicity {
        Atomicity::Swap
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        if !plan.log.is_empty() || plan.until.is_some() {
            return Err(Error::invalid(
                OPERATION,
                "files have no log to replay; leave out the point in time",
            ));
        }
        if let Some(other) = plan.artifacts.iter().find(|a| !self.accepts(&a.meta.format)) {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("only tar artifacts can be restored into a directory")
                .with("artifact", &other.meta.name)
                .with("format", &other.meta.format.name));
        }
        let layout = layout::Layout::for_plan(plan, self.options.strip).await?;
        let (path, options, plan) = (self.path.clone(), self.options.clone(), plan.clone());
        let stop = stop::Stop::default();
        // If the caller gives up while this waits, the thread hears of it.
        let on_drop = stop.on_drop();
        let shared = blocking(move || restore::Shared::begin(&path, &options, &plan, layout, stop)).await?;
        Ok(Box::new(DirectoryRestore::new(Arc::new(shared), on_drop)))
    }
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        if e.is_cancelled() {
            Error::cancelled(OPERATION)
        } else {
            Error::new(ErrorKind::Internal, OPERATION).message("a thread ended unexpectedly").caused_by(e)
        }
    })?
}

/// An error of the operating system about one path.
pub(crate) fn failed(what: &'static str, path: &[u8], error: impl Into<std::io::Error>) -> Error {
    Error::io(what, error.into()).with("path", backup_core::ItemPath::new(path))
}
