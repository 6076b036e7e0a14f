//! The staging directory beside the destination.
//!
//! ```text
//! parent/
//!   books                                  the destination
//!   .books.restore-<backup id>-<random>/   mode 0700, locked (flock) while its process lives
//!     tree/                                becomes the destination
//!     records                              what was staged, for the proof
//!     swap.json                            written right before the exchange
//!   .books.before-<time>-<random>/         the old tree after a replacing restore
//!   .books.discard-<random>/               a tree that is being removed
//! ```

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::{BackupId, Error, ErrorKind, Result};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags, fchmod, flock, fremovexattr, fstat,
    mkdirat, openat, statx,
};
use rustix::io::Errno;

use super::OPERATION;
use super::metadata::{Handle, Observed, observe};
use super::mounts::refuse_below;
use super::remove::{is_empty, remove_tree};
use crate::canonical::{ACL_ACCESS, ACL_DEFAULT};

/// Longest part of the destination's name that is repeated in the names beside it; a name may have 255 bytes.
const MAX_REPEATED: usize = 160;

pub(super) const TREE: &str = "tree";

/// Where the destination is: its parent, open, and its name.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) parent: Arc<OwnedFd>,
    pub(crate) parent_path: PathBuf,
    pub(crate) name: Vec<u8>,
    pub(crate) found: Found,
}

/// What is at the destination before the restore.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// An empty directory.
    Empty(Observed),
    /// A directory with something in it, that is to be replaced.
    Tree {
        root: Arc<OwnedFd>,
        meta: Observed,
    },
}

impl Destination {
    /// Finds the destination. A symbolic link to a directory stands for that directory.
    pub(crate) fn find(path: &Path, replace: bool) -> Result<Self> {
        let about = |e| Error::io(OPERATION, e).with("destination", path.display());
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let name = path.file_name().ok_or_else(|| {
                    Error::invalid(OPERATION, "the destination needs a name").with("path", path.display())
                })?;
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let parent = parent.canonicalize().map_err(|e| {
                    about(e).message("the directory the destination is to be created in cannot be found")
                })?;
                parent.join(name)
            }
            Err(e) => return Err(about(e)),
        };
        let (Some(parent_path), Some(name)) = (real.parent(), real.file_name()) else {
            return Err(Error::invalid(
                OPERATION,
                "the root of the file system cannot be replaced as a whole",
            ));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent_path, flags, Mode::empty()).map_err(|e| about(e.into()))?;
        let name = name.as_bytes().to_vec();
        super::swap::recover(&parent, &name)?;
        let found = Self::look(&parent, &name, replace).map_err(|e| e.with("destination", real.display()))?;
        if let Found::Tree { .. } = found {
            refuse_below(&real, OPERATION)?;
        }
        Ok(Self { parent: Arc::new(parent), parent_path: parent_path.to_owned(), name, found })
    }

    fn look(parent: &OwnedFd, name: &[u8], replace: bool) -> Result<Found> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match openat(parent, name, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(Error::new(ErrorKind::TargetNotEmpty, OPERATION)
                    .message("the destination is not a directory; choose another one"));
            }
            Err(e) => return Err(Error::io("open destination", e.into())),
        };
        let io = |e: Errno| Error::io("look at destination", e.into());
        let stat = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(io)?;
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            || fstat(&root).map_err(io)?.st_dev != fstat(parent).map_err(io)?.st_dev
        {
            return Err(Error::invalid(
                OPERATION,
                "the destination is a mount point, which cannot be exchanged; restore into a directory in it",
            ));
        }
        let meta = observe(&Handle::Open(std::os::fd::AsFd::as_fd(&root))).map_err(io)?;
        if is_empty(&root).map_err(io)? {
            return Ok(Found::Empty(meta));
        }
        if !replace {
            return Err(Error::new(ErrorKind::TargetNotEmpty, OPERATION)
                .message("the destination is not empty; allow replacing it, or choose another one"));
        }
        Ok(Found::Tree { root: Arc::new(root), meta })
    }

    /// A name beside the destination: `.books.restore-…`.
    pub(crate) fn sibling(&self, what: &str) -> Vec<u8> {
        [prefix(&self.name).as_slice(), what.as_bytes()].concat()
    }
}

/// How all names beside the destination `name` begin: `.books.`.
pub(crate) fn prefix(name: &[u8]) -> Vec<u8> {
    [b".", name.get(..MAX_REPEATED).unwrap_or(name), b"."].concat()
}

/// Eight random hexadecimal digits.
pub(crate) fn random() -> Result<String> {
    let mut bytes = [0; 4];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Io, OPERATION).message("the system gives no random numbers"))?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

/// A locked staging directory. Dropping it removes it, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) destination: Destination,
    pub(crate) name: Vec<u8>,
    pub(crate) wrapper: OwnedFd,
    pub(crate) tree: Arc<OwnedFd>,
    /// Mode of directories nobody recorded: 0777 without the bits of the process's umask.
    pub(crate) default_mode: u32,
    kept: AtomicBool,
}

impl Stage {
    pub(crate) fn create(destination: Destination, id: BackupId) -> Result<Self> {
        let about = |e: Errno| {
            let error = Error::io("create staging directory", e.into());
            let error = match error.kind() {
                ErrorKind::PermissionDenied => {
                    error.message("files are staged beside the destination, where this user may not write")
                }
                _ => error,
            };
            error.with("directory", destination.parent_path.display())
        };
        let name = destination.sibling(&format!("restore-{id}-{}", random()?));
        mkdirat(&destination.parent, name.as_slice(), Mode::RWXU).map_err(about)?;
        let made = (|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let wrapper = openat(&destination.parent, name.as_slice(), flags, Mode::empty())?;
            match flock(&wrapper, FlockOperation::NonBlockingLockExclusive) {
                // A file system without locks; leftovers are then not cleaned up by themselves.
                Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL) => {}
                Err(e) => return Err(e),
            }
            // Nothing may be inherited: neither the group, nor access lists.
            fchmod(&wrapper, Mode::RWXU)?;
            for acl in [ACL_DEFAULT, ACL_ACCESS] {
                match fremovexattr(&wrapper, acl) {
                    Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                    Err(e) => return Err(e),
                }
            }
            mkdirat(&wrapper, "umask", Mode::RWXU | Mode::RWXG | Mode::RWXO)?;
            let default_mode =
                rustix::fs::statat(&wrapper, "umask", AtFlags::SYMLINK_NOFOLLOW)?.st_mode & 0o777;
            rustix::fs::unlinkat(&wrapper, "umask", AtFlags::REMOVEDIR)?;
            mkdirat(&wrapper, TREE, Mode::RWXU)?;
            let tree = Arc::new(openat(&wrapper, TREE, flags, Mode::empty())?);
            Ok((wrapper, tree, default_mode))
        })();
        match made {
            Ok((wrapper, tree, default_mode)) => {
                Ok(Self { destination, name, wrapper, tree, default_mode, kept: AtomicBool::new(false) })
            }
            Err(e) => {
                let error = about(e);
                // The first error is the one to report; the leftover is removed by the next restore.
                let _ = remove_tree(&destination.parent, &name);
                Err(error)
            }
        }
    }

    /// A new file in the staging directory, outside the tree.
    pub(crate) fn file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.wrapper, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| Error::io("create staging file", e.into()))
    }

    /// From now on dropping the stage removes nothing.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// Removes the staging directory and what is left in it.
    pub(crate) fn remove(&self) -> Result<()> {
        self.keep();
        remove_tree(&self.destination.parent, &self.name)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire) {
            // Nobody is left to hear of an error; the next restore to the same place tries again.
            let _ = remove_tree(&self.destination.parent, &self.name);
        }
    }
}
