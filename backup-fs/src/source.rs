//! Backing up directories and files: [`DirectorySource`].

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::{CheckReport, Finding, Result, Snapshot, SnapshotRequest, Source, async_trait};

use crate::config::{Config, DirectorySourceBuilder, Root};

mod assemble;
mod attributes;
mod cursor;
mod earlier;
mod entry;
pub(crate) mod filter;
mod notes;
mod output;
mod owners;
pub(crate) mod parent;
mod readahead;
mod snapshot;
mod stream;
mod walk;

/// Directories and files, as tar archives.
///
/// ```no_run
/// use backup_fs::DirectorySource;
///
/// // One tree: names in the archive are relative to it.
/// let site = DirectorySource::new("/srv/site");
///
/// // Several trees and files, each under a name of its own.
/// let site = DirectorySource::builder()
///     .root("content", "/srv/site/docs")
///     .file("config/.env", "/srv/site/.env")
///     .exclude(["**/*.tmp"])
///     .build()?;
/// # Ok::<(), backup_core::Error>(())
/// ```
///
/// The archives, `files-00001`, `files-00002` and so on, are complete POSIX (pax) archives of bounded size, and
/// hold the entries in byte order of their names. Extracted as one stream (`cat files-*.tar | tar --extract
/// --ignore-zeros`), or one after the other, they give the tree, though one after the other the directories that go
/// on in a later archive lose their mtime: regular files, sparse ones with their holes, directories, symbolic and hard links, named pipes; with owners,
/// modes, times in nanoseconds, extended attributes and POSIX ACLs. The same tree gives the same bytes. Sockets and
/// device nodes are left out and counted in the details; device nodes also give a warning.
///
/// # Consistency
///
/// A file system has no snapshot that an ordinary process could take, so each file is taken at its own moment;
/// the details say so (`"consistency": "per-file"`). For one moment for all, take a snapshot of the volume (LVM,
/// btrfs, ZFS) and name its mount point as root. A file that changes while it is read is noticed by its size, mtime and
/// ctime, which are compared before and after. Two changes within one tick of the kernel's clock can have the same times, so
/// a file that changed in the last 20 ms (2 s where times have no fraction of a second) is read only when that time has passed.
///
/// * A file up to 256 KiB is read again, up to twice. A larger one goes into the archive as it is read, cut or
///   filled with zeros to the size it was announced with.
/// * If it was still not quiet, the backup has the warning `file-changed-while-read`, and the item the attribute
///   `"changed": true`.
/// * A file that vanishes between being listed and being read gives the warning `file-vanished`.
/// * A file or directory that cannot be read fails the backup at its end, with the first of them named, unless
///   [`allow_unreadable`](DirectorySourceBuilder::allow_unreadable) is set; then each gives the warning
///   `file-unreadable`.
///
/// **Limits.** Not every write shows in the times: not one through a memory map that had made its page dirty before, nor what a
/// single long call of `write` still brings after it stamped the file. A database that is running is therefore backed
/// up by its own tools, and a program that maps its files from a snapshot of the volume. On a network file system, a server whose
/// clock is behind this machine's by more than the tick hides changes of the last tick.
///
/// # Incremental backups
///
/// With a parent, regular files of the same size, mtime, ctime and inode are not read: their items point to where the
/// parent has them. Files that had changed within two seconds before they were read last time are read again, as
/// their times cannot tell. Everything else takes no room worth saving and is always archived.
///
/// # Resuming
///
/// Archives of full backups are independent: a run that [resumes](backup_core::Backup::resume) takes over each that holds
/// exactly the entries between its first and its last that are there now, with the same size, mtime, ctime, inode, owner
/// and mode. The tree is walked for that once more before the backup; entries that are taken over are taken as they were at
/// that moment. An archive is not taken over if it holds hard links or what had changed within two seconds
/// before it was read.
///
/// # Items
///
/// One per entry, in archive order. `attributes`: `mode` (permission bits), `uid`, `gid`, `user`, `group` (where
/// known), `mtime` and `ctime` (nanoseconds since 1970 UTC), `inode`, `xattrs` (their number, if any), `sparse`
/// (if it is stored with holes), `changed`, `racy`. All add to the proof `files`.
#[derive(Clone, Debug)]
pub struct DirectorySource {
    pub(crate) config: Arc<Config>,
}

impl DirectorySource {
    /// The tree below `path`, with default options. The directory itself is archived as `.`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let root = Root { name: b".".to_vec(), path: path.into(), is_file: false };
        Self { config: Arc::new(Config::new(vec![root])) }
    }

    /// Several trees and files, and options.
    pub fn builder() -> DirectorySourceBuilder {
        DirectorySourceBuilder::default()
    }
}

#[async_trait]
impl Source for DirectorySource {
    fn kind(&self) -> &'static str {
        "directory"
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        for root in &self.config.roots {
            if let Err(error) = walk::open_root_in_background(root).await {
                report.findings.push(Finding {
                    fatal: true,
                    code: "root-unreadable".into(),
                    message: error.chain(),
                });
            }
        }
        Ok(report)
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        snapshot::begin(Arc::clone(&self.config), request)
    }

    async fn unchanged(&self, request: SnapshotRequest<'_>) -> Result<Vec<usize>> {
        snapshot::unchanged(Arc::clone(&self.config), request).await
    }
}
