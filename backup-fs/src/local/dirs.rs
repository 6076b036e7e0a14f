//! The directories of a repository, walked one segment at a time and never through a symbolic link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use backup_core::{Error, ErrorKind, Key, Result, Space};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// How often a creator starts again because someone else removed the directory it was about to use.
const MAX_RACES: usize = 1000;

pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_MODE: Mode = Mode::RWXU;
const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How a create-new object gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Publish {
    /// link(2), which fails where the name exists.
    Link,
    /// renameat2(2) with `RENAME_NOREPLACE`, for file systems without hard links.
    RenameNoReplace,
}

/// An open repository directory.
#[derive(Debug)]
pub(super) struct Root {
    dir: OwnedFd,
    pub(super) publish: Publish,
}

/// Where a walk along the segments of a key ended.
pub(super) enum Walk {
    /// At this directory.
    Dir(OwnedFd),
    /// A directory on the way does not exist.
    Absent,
    /// Something on the way is not a directory, so nothing can be below it.
    File,
}

impl Root {
    /// Opens the directory itself; symbolic links on the way to it are the user's and are followed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
            let error = match e {
                Errno::NOENT => Error::new(ErrorKind::WrongPlace, "open local sink").message(
                    "the directory does not exist; mount the disk it is on, or make it with `LocalSink::init`",
                ),
                Errno::NOTDIR => {
                    Error::new(ErrorKind::WrongPlace, "open local sink").message("this is not a directory")
                }
                e => failed("open local sink", e),
            };
            error.with("path", path.display())
        })?;
        Ok(Self { dir, publish: Publish::Link })
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Fails when the directory was removed since it was opened: it would seem to be an empty repository.
    pub(super) fn check_alive(&self, operation: &'static str) -> Result<()> {
        let found = rustix::fs::fstat(&self.dir).map_err(|e| failed(operation, e))?;
        if found.st_nlink == 0 {
            return Err(Error::new(ErrorKind::WrongPlace, operation)
                .message("the directory of this sink was removed or replaced; open the sink again"));
        }
        Ok(())
    }

    /// The directory that `segments` lead to.
    pub(super) fn walk(&self, operation: &'static str, segments: &[&str]) -> Result<Walk> {
        let mut at = self.dir.try_clone().map_err(|e| Error::io(operation, e))?;
        for segment in segments {
            at = match open_dir(&at, segment) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(Walk::Absent),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return match stat(&at, segment) {
                        Ok(found) if is_symlink(&found) => Err(symlink(operation, segment)),
                        Ok(_) => Ok(Walk::File),
                        Err(Errno::NOENT) => Ok(Walk::Absent),
                        Err(e) => Err(failed(operation, e)),
                    };
                }
                Err(e) => return Err(failed(operation, e)),
            };
        }
        Ok(Walk::Dir(at))
    }

    /// Calls `place` with the directory that is to hold `key`, made where it is missing, until `place` no longer
    /// reports that the directory vanished meanwhile; then syncs it and every directory above it.
    pub(super) fn place(
        &self,
        key: &Key,
        mut place: impl FnMut(BorrowedFd<'_>, &str) -> Result<Placed>,
    ) -> Result<()> {
        let Some((parents, name)) = split(key) else {
            return Err(Error::invalid("put object", "the root of a sink is not the name of an object"));
        };
        for _ in 0..MAX_RACES {
            let Some(chain) = self.make(key, &parents)? else { continue };
            let dir = chain.last().map_or(self.dir(), AsFd::as_fd);
            match place(dir, name)? {
                Placed::Done => {
                    // A directory found there may be another writer's, not synced yet: so all of them, every time.
                    for dir in chain.iter().rev().map(AsFd::as_fd).chain([self.dir()]) {
                        sync_dir(dir).map_err(|e| failed("put object", e).with("key", key))?;
                    }
                    return Ok(());
                }
                Placed::DirectoryVanished => {}
            }
        }
        self.check_alive("put object")?;
        Err(Error::new(ErrorKind::Unavailable, "put object")
            .message("the directory of the object is removed again and again by someone else")
            .with("key", key))
    }

    /// Opens the directories along `parents`, making those that are missing. `None`: one vanished; start again.
    fn make(&self, key: &Key, parents: &[&str]) -> Result<Option<Vec<OwnedFd>>> {
        let mut chain: Vec<OwnedFd> = Vec::with_capacity(parents.len());
        for segment in parents {
            let at = chain.last().map_or(self.dir(), AsFd::as_fd);
            let next = match open_dir(at, segment) {
                Err(Errno::NOENT) => match rustix::fs::mkdirat(at, *segment, DIR_MODE) {
                    Ok(()) | Err(Errno::EXIST) => open_dir(at, segment),
                    Err(e) => Err(e),
                },
                other => other,
            };
            match next {
                Ok(next) => chain.push(next),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return match stat(at, segment) {
                        Ok(found) if is_symlink(&found) => Err(symlink("put object", segment)),
                        _ => Err(file_in_the_way(key)),
                    };
                }
                Err(e) => return Err(failed("put object", e).with("key", key)),
            }
        }
        Ok(Some(chain))
    }

    /// Removes an object, and the directories that become empty.
    pub(super) fn delete(&self, key: &Key) -> Result<()> {
        let Some((parents, name)) = split(key) else { return Ok(()) };
        self.check_alive("delete object")?;
        let Walk::Dir(dir) = self.walk("delete object", &parents)? else { return Ok(()) };
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) => {}
            // A directory is not an object. Linux says EISDIR, POSIX EPERM.
            Err(Errno::NOENT | Errno::ISDIR) => return Ok(()),
            Err(Errno::PERM) if stat(&dir, name).is_ok_and(|found| is_dir(&found)) => return Ok(()),
            Err(e) => return Err(failed("delete object", e).with("key", key)),
        }
        sync_dir(dir.as_fd()).map_err(|e| failed("delete object", e).with("key", key))?;
        self.remove_empty(&parents);
        Ok(())
    }

    /// Removes the directory at `segments` and those above it as far as they are empty. Whoever is about to put
    /// something there notices and makes them again.
    pub(super) fn remove_empty(&self, segments: &[&str]) {
        let mut rest = segments;
        while let Some((name, above)) = rest.split_last() {
            let removed = match self.walk("delete object", above) {
                Ok(Walk::Dir(dir)) => rustix::fs::unlinkat(&dir, *name, AtFlags::REMOVEDIR),
                Ok(Walk::Absent) => Ok(()),
                Ok(Walk::File) | Err(_) => return,
            };
            if !matches!(removed, Ok(()) | Err(Errno::NOENT)) {
                return;
            }
            rest = above;
        }
    }

    pub(super) fn space(&self) -> Result<Space> {
        let found = rustix::fs::fstatvfs(&self.dir).map_err(|e| failed("read free space", e))?;
        Ok(Space {
            available: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }
}

/// What became of an attempt to put something into a directory.
pub(super) enum Placed {
    Done,
    DirectoryVanished,
}

/// The directories above an object, and its own name.
pub(super) fn split(key: &Key) -> Option<(Vec<&str>, &str)> {
    let mut segments: Vec<&str> = key.segments().collect();
    let name = segments.pop()?;
    Some((segments, name))
}

pub(super) fn open_dir(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, DIR_FLAGS, Mode::empty())
}

/// Makes the directory `name` if it is missing, and opens it.
pub(super) fn ensure_dir(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match open_dir(at, name) {
        Err(Errno::NOENT) => match rustix::fs::mkdirat(at, name, DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => open_dir(at, name),
            Err(e) => Err(e),
        },
        other => other,
    }
}

pub(super) fn stat(at: impl AsFd, name: &str) -> Result<Stat, Errno> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn is_dir(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

pub(super) fn is_file(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

pub(super) fn is_symlink(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Symlink
}

/// Makes the names in a directory durable. Some network file systems have no such call and say EINVAL; the probe
/// warns of that when the sink is opened.
pub(super) fn sync_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| rustix::fs::fsync(dir)) {
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
        other => other,
    }
}

/// An error of the operating system, with a word on what to do.
pub(super) fn failed(operation: &'static str, errno: Errno) -> Error {
    let error = Error::io(operation, errno.into());
    match error.kind() {
        ErrorKind::StorageFull => {
            error.message("no space or quota is left; free some, or prune, and start again")
        }
        ErrorKind::ReadOnly => error.message("the file system is read-only; remount it for writing"),
        ErrorKind::PermissionDenied => {
            error.message("the operating system refused; the directory must belong to the user who backs up")
        }
        _ => error,
    }
}

pub(super) fn already_exists(key: &Key) -> Error {
    Error::new(ErrorKind::AlreadyExists, "put object").with("key", key)
}

pub(super) fn file_in_the_way(key: &Key) -> Error {
    Error::invalid("put object", "another object has the name of a directory this one needs").with("key", key)
}

pub(super) fn directory_in_the_way(key: &Key) -> Error {
    Error::invalid("put object", "there are objects below this name, so it cannot be one").with("key", key)
}

pub(super) fn symlink(operation: &'static str, name: &str) -> Error {
    Error::new(ErrorKind::WrongPlace, operation)
        .message("a symbolic link lies in the repository; none is followed. Replace it by what it points to")
        .with("name", name)
}
