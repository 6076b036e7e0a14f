//! Files on their way to becoming objects.

use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use backup_core::{Availability, Error, ErrorKind, Key, ObjectInfo, PutMode, Result};
use chrono::Utc;
use ring::rand::SecureRandom as _;
use rustix::fs::{Advice, AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::dirs::{self, Placed, Publish, Root, failed};

/// The staging directory. Not a valid key, so never listed.
pub(super) const STAGING: &str = "@staging";

/// After so many bytes the kernel is asked to begin writing them to disk, so that the sync at the end does not
/// find gigabytes of dirty pages. 8 MiB keeps a disk busy and costs one system call.
const FLUSH_EVERY: u64 = 8 * 1024 * 1024;

/// An object being written, under a random name. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Staged {
    root: Arc<Root>,
    dir: OwnedFd,
    name: String,
    file: File,
    key: Key,
    mode: PutMode,
    size: u64,
    flushed: u64,
    /// Whether the staging name still has to be removed.
    pending: bool,
}

impl Staged {
    pub(super) fn create(root: &Arc<Root>, key: Key, mode: PutMode) -> Result<Self> {
        let refuse = |e| failed("put object", e).with("key", &key);
        let dir = dirs::ensure_dir(root.dir(), STAGING).map_err(refuse)?;
        let name = random_name()?;
        let file = create_file(&dir, &name).map_err(refuse)?;
        Ok(Self { root: Arc::clone(root), dir, name, file, key, mode, size: 0, flushed: 0, pending: true })
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| self.explain(&e))?;
        self.size += bytes.len() as u64;
        let unflushed = self.size - self.flushed;
        if unflushed >= FLUSH_EVERY {
            // On dirty pages this only starts the writing; it drops none. Where it is not supported, the
            // final sync does everything.
            let _ =
                rustix::fs::fadvise(&self.file, self.flushed, NonZeroU64::new(unflushed), Advice::DontNeed);
            self.flushed = self.size;
        }
        Ok(())
    }

    /// Syncs the file and gives it its name, unless `given_up` was set before the name was given.
    pub(super) fn publish(mut self, given_up: &AtomicBool) -> Result<ObjectInfo> {
        self.file.sync_all().map_err(|e| self.explain(&e))?;
        if given_up.load(Ordering::SeqCst) {
            return Err(Error::cancelled("put object").with("key", &self.key));
        }
        let mut placed = false;
        let result = self.root.place(&self.key, |at, name| {
            let done = match (self.mode, self.root.publish) {
                (PutMode::Overwrite, _) => rustix::fs::renameat(&self.dir, &self.name, at, name),
                (PutMode::CreateNew, Publish::Link) => {
                    rustix::fs::linkat(&self.dir, &self.name, at, name, AtFlags::empty())
                }
                (PutMode::CreateNew, Publish::RenameNoReplace) => {
                    rustix::fs::renameat_with(&self.dir, &self.name, at, name, RenameFlags::NOREPLACE)
                }
            };
            match done {
                Ok(()) => {
                    placed = true;
                    Ok(Placed::Done)
                }
                Err(Errno::NOENT) if dirs::stat(&self.dir, &self.name).is_ok() => {
                    Ok(Placed::DirectoryVanished)
                }
                Err(e) => Err(self.cannot_place(e)),
            }
        });
        if let Err(error) = result {
            self.take_back(placed);
            return Err(error);
        }
        // After link(2) the staging name is left and is removed on drop; after a rename it is gone.
        self.pending = self.mode == PutMode::CreateNew && self.root.publish == Publish::Link;
        Ok(ObjectInfo {
            key: self.key.clone(),
            size: self.size,
            modified: self
                .file
                .metadata()
                .ok()
                .and_then(|m| m.modified().ok())
                .map(chrono::DateTime::<Utc>::from),
            availability: Availability::Ready,
        })
    }

    /// Leaves no debris of a failed publication: no directories made for it, and no name that may not be durable,
    /// unless something older was replaced by it.
    fn take_back(&self, placed: bool) {
        let Some((parents, name)) = dirs::split(&self.key) else { return };
        if placed
            && self.mode == PutMode::CreateNew
            && let Ok(dirs::Walk::Dir(dir)) = self.root.walk("put object", &parents)
        {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        }
        self.root.remove_empty(&parents);
    }

    fn cannot_place(&self, errno: Errno) -> Error {
        let error = match errno {
            Errno::EXIST if self.mode == PutMode::CreateNew => return dirs::already_exists(&self.key),
            Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => return dirs::directory_in_the_way(&self.key),
            Errno::XDEV => Error::new(ErrorKind::StoreInadequate, "put object").message(
                "another file system is mounted inside the repository; all of it must be on one file system",
            ),
            Errno::NOENT => Error::new(ErrorKind::Io, "put object")
                .message("the staged file was removed by someone else while it was written; start again"),
            e => return failed("put object", e).with("key", &self.key),
        };
        error.with("key", &self.key).caused_by(std::io::Error::from(errno))
    }

    fn explain(&self, error: &std::io::Error) -> Error {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        failed("put object", errno).with("key", &self.key).with("written", self.size)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.pending {
            let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

/// Creates a staging file and locks it, so that a sweep can tell it from what a killed process left.
pub(super) fn create_file(dir: &OwnedFd, name: &str) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, dirs::FILE_MODE)?;
    // Network file systems may not lock; a sweep then goes by age alone.
    let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    Ok(file.into())
}

pub(super) fn random_name() -> Result<String> {
    use std::fmt::Write as _;
    let mut random = [0u8; 16];
    ring::rand::SystemRandom::new().fill(&mut random).map_err(|_| {
        Error::new(ErrorKind::Io, "name staging file").message("the operating system gave no random bytes")
    })?;
    Ok(random.iter().fold(String::with_capacity(32), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    }))
}

/// Removes staging files last written before `older_than` whose writer is gone.
pub(super) fn sweep(root: &Root, older_than: Duration) -> Result<u64> {
    let refuse = |e| failed("sweep staging files", e);
    let dir = match dirs::open_dir(root.dir(), STAGING) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(0),
        Err(e) => return Err(refuse(e)),
    };
    let Some(limit) = SystemTime::now().checked_sub(older_than) else { return Ok(0) };
    let mut removed = 0;
    for entry in Dir::read_from(&dir).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&dir, entry.file_name(), flags, Mode::empty()) else { continue };
        let file = File::from(file);
        let Ok(found) = file.metadata() else { continue };
        if !found.is_file() || found.modified().is_ok_and(|modified| modified > limit) {
            continue;
        }
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            continue;
        }
        match rustix::fs::unlinkat(&dir, entry.file_name(), AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(refuse(e)),
        }
    }
    Ok(removed)
}
