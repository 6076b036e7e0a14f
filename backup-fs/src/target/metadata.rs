//! Setting and reading metadata, never through a symbolic link.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use backup_core::Result;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod,
    chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, getxattr, listxattr, openat,
    setxattr, statat, utimensat,
};
use rustix::io::Errno;

use super::entry::Entry;
use super::failed;
use super::notes::{Notes, XATTR_REFUSED};
use crate::canonical::{ACL_ACCESS, ACL_DEFAULT, FileTime, Xattrs, is_recorded_xattr};

const CAPABILITY: &[u8] = b"security.capability";

/// Something whose metadata is read or set.
#[derive(Debug)]
pub(crate) enum Handle<'a> {
    /// Open for reading or writing: regular files and directories.
    Open(BorrowedFd<'a>),
    /// Anything else, which opening could block or follow: by its name in an open directory. The second handle
    /// (`O_PATH | O_NOFOLLOW`) is reached through `/proc/self/fd`, for calls that know no directory.
    Named { dir: BorrowedFd<'a>, name: &'a [u8], path: OwnedFd },
}

impl<'a> Handle<'a> {
    pub(crate) fn named(dir: BorrowedFd<'a>, name: &'a [u8]) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self::Named { dir, name, path: openat(dir, name, flags, Mode::empty())? })
    }

    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        match self {
            Self::Open(fd) => fstat(fd),
            Self::Named { path, .. } => statat(path, "", AtFlags::EMPTY_PATH),
        }
    }

    fn set_owner(&self, uid: u32, gid: u32) -> Result<(), Errno> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(fd) => fchown(fd, uid, gid),
            Self::Named { dir, name, .. } => chownat(dir, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => fchmod(fd, Mode::from_raw_mode(mode)),
            Self::Named { path, .. } => chmod(proc_path(path), Mode::from_raw_mode(mode)),
        }
    }

    pub(crate) fn set_mtime(&self, mtime: FileTime) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanos) },
        };
        match self {
            Self::Open(fd) => futimens(fd, &times),
            Self::Named { dir, name, .. } => utimensat(dir, *name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Named { path, .. } => setxattr(proc_path(path), name, value, XattrFlags::empty()),
        }
    }

    /// The attributes that belong to the data.
    pub(crate) fn xattrs(&self) -> Result<Xattrs, Errno> {
        let mut all = Xattrs::new();
        let names = grow(|buffer| match self {
            Self::Open(fd) => flistxattr(fd, buffer),
            Self::Named { path, .. } => listxattr(proc_path(path), buffer),
        });
        let names = match names {
            Err(Errno::NOTSUP) => return Ok(all),
            other => other?,
        };
        for name in names.split(|&b| b == 0).filter(|name| is_recorded_xattr(name)) {
            let value = grow(|buffer| match self {
                Self::Open(fd) => fgetxattr(fd, name, buffer),
                Self::Named { path, .. } => getxattr(proc_path(path), name, buffer),
            })?;
            all.insert(name.to_vec(), value);
        }
        Ok(all)
    }
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Calls with a larger buffer until the answer fits. The kernel's limit is 64 KiB.
fn grow(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 512];
    match call(&mut small) {
        Err(Errno::RANGE) => {}
        other => return Ok(small.get(..other?).unwrap_or(&[]).to_vec()),
    }
    let mut large = vec![0; 64 * 1024];
    let used = call(&mut large)?;
    large.truncate(used);
    Ok(large)
}

/// Sets everything, in the order that keeps it: a change of owner clears setuid and capabilities, a change of mode
/// changes an access list, and an attribute needs write permission that the mode may take away.
pub(crate) fn apply(handle: &Handle<'_>, entry: &Entry, notes: &Notes) -> Result<()> {
    let planned = &entry.planned;
    let is_symlink = entry.kind == backup_core::ItemKind::Symlink;
    if planned.set_owner {
        handle
            .set_owner(planned.uid, planned.gid)
            .map_err(|e| failed("set owner (root may; others leave owners as they are)", &entry.item, e))?;
    }
    let late = |name: &[u8]| name == ACL_ACCESS || name == ACL_DEFAULT || name == CAPABILITY;
    set_xattrs(handle, entry, notes, |name| !late(name))?;
    if !is_symlink {
        handle.set_mode(planned.mode).map_err(|e| failed("set mode", &entry.item, e))?;
    }
    set_xattrs(handle, entry, notes, late)?;
    handle.set_mtime(planned.mtime).map_err(|e| failed("set time", &entry.item, e))
}

fn set_xattrs(
    handle: &Handle<'_>,
    entry: &Entry,
    notes: &Notes,
    which: impl Fn(&[u8]) -> bool,
) -> Result<()> {
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| which(name)) {
        match handle.set_xattr(name, value) {
            Ok(()) => {}
            Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {
                notes.add(XATTR_REFUSED, &entry.item);
                notes.refuse(name);
            }
            Err(e) => {
                let name = backup_core::ItemPath::new(name.as_slice());
                return Err(failed("set extended attribute", &entry.item, e).with("attribute", name));
            }
        }
    }
    Ok(())
}

/// Metadata as it is on disk.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) kind: backup_core::ItemKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: FileTime,
    pub(crate) size: u64,
    pub(crate) xattrs: Xattrs,
}

pub(crate) fn observe(handle: &Handle<'_>) -> Result<Observed, Errno> {
    let stat = handle.stat()?;
    Ok(Observed {
        kind: kind_of(&stat),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: FileTime {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        },
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        xattrs: handle.xattrs()?,
    })
}

pub(crate) fn kind_of(stat: &Stat) -> backup_core::ItemKind {
    use backup_core::ItemKind;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => ItemKind::File,
        FileType::Directory => ItemKind::Directory,
        FileType::Symlink => ItemKind::Symlink,
        FileType::Fifo => ItemKind::Fifo,
        _ => ItemKind::Other,
    }
}

/// Gives a directory the metadata another one had.
pub(crate) fn copy(dir: BorrowedFd<'_>, place: &[u8], from: &Observed) -> Result<()> {
    let handle = Handle::Open(dir.as_fd());
    let now = handle.stat().map_err(|e| failed("read metadata", place, e))?;
    if (now.st_uid, now.st_gid) != (from.uid, from.gid) {
        handle.set_owner(from.uid, from.gid).map_err(|e| failed("keep owner of directory", place, e))?;
    }
    for (name, value) in &from.xattrs {
        // What was readable on the old directory and cannot be set on the new one would be lost silently.
        handle.set_xattr(name, value).map_err(|e| failed("keep extended attribute", place, e))?;
    }
    handle.set_mode(from.mode).map_err(|e| failed("keep mode of directory", place, e))?;
    handle.set_mtime(from.mtime).map_err(|e| failed("keep time of directory", place, e))
}
