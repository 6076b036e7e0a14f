//! Trying out a file system: network and FUSE file systems do not all keep what POSIX promises.

use std::os::fd::{AsFd as _, OwnedFd};

use backup_core::{Error, ErrorKind, Result, Warning};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::dirs::{self, Publish, Root, failed};
use super::staging;

const OPERATION: &str = "probe local sink";

/// Tries exclusive creation, link or rename without replacing, renaming over, and syncing; sets how `root`
/// publishes. A place that cannot be written at all may still be read: that is a warning.
pub(super) fn probe(root: &mut Root) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    let writable = dirs::ensure_dir(root.dir(), staging::STAGING).and_then(|dir| {
        let names = Names::new(dir)?;
        names.create(0)?;
        Ok(names)
    });
    let names = match writable {
        Ok(names) => names,
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
            warnings.push(Warning::new(
                "read-only",
                "the repository can be read but not written: backups into it will fail",
            ));
            return Ok(warnings);
        }
        Err(Errno::NOSPC | Errno::DQUOT) => {
            warnings.push(Warning::new(
                "full",
                "the disk is full: backups into it will fail until space is freed",
            ));
            return Ok(warnings);
        }
        Err(e) => return Err(failed(OPERATION, e)),
    };
    if names.create(0) != Err(Errno::EXIST) {
        return Err(inadequate("a file can be created twice under one name (O_EXCL has no effect)"));
    }
    match names.sync(0) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOTSUP) => {
            return Err(inadequate("files cannot be synced to disk (fsync)"));
        }
        Err(e) => return Err(failed(OPERATION, e)),
    }
    root.publish = publish(&names)?;
    names.create(2).map_err(|e| failed(OPERATION, e))?;
    if let Err(e) = names.rename(2, 1) {
        return Err(inadequate("a file cannot be renamed over another").caused_by(std::io::Error::from(e)));
    }
    if let Err(Errno::INVAL | Errno::NOTSUP) = rustix::fs::fsync(names.dir.as_fd()) {
        warnings.push(Warning::new(
            "directory-sync-unsupported",
            "this file system cannot sync directories: after a power cut the newest objects may be missing",
        ));
    }
    Ok(warnings)
}

/// The way to give a name exactly once that this file system has.
fn publish(names: &Names) -> Result<Publish> {
    match names.link(0, 1) {
        Ok(()) => match names.link(0, 1) {
            Err(Errno::EXIST) => Ok(Publish::Link),
            _ => Err(inadequate("a hard link replaces what has its name")),
        },
        Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::INVAL) => {
            let twice = names
                .create(1)
                .and_then(|()| names.create(2))
                .map(|()| names.rename_no_replace(1, 2))
                .map_err(|e| failed(OPERATION, e))?;
            let _ = names.remove(2);
            match twice {
                Err(Errno::EXIST) => match names.rename_no_replace(1, 2).and_then(|()| names.rename(2, 1)) {
                    Ok(()) => Ok(Publish::RenameNoReplace),
                    Err(e) => Err(failed(OPERATION, e)),
                },
                _ => Err(inadequate("it has neither hard links nor a rename that refuses to replace")),
            }
        }
        Err(e) => Err(failed(OPERATION, e)),
    }
}

fn inadequate(what: &'static str) -> Error {
    Error::new(ErrorKind::StoreInadequate, OPERATION).message(format!(
        "{what}: this file system cannot hold a repository safely; use another, or an object store"
    ))
}

/// Three names of its own in the staging directory, removed on drop.
struct Names {
    dir: OwnedFd,
    base: String,
}

impl Names {
    fn new(dir: OwnedFd) -> Result<Self, Errno> {
        Ok(Self { dir, base: staging::random_name().map_err(|_| Errno::IO)? })
    }

    fn name(&self, n: u8) -> String {
        format!("{}.{n}", self.base)
    }

    fn create(&self, n: u8) -> Result<(), Errno> {
        staging::create_file(&self.dir, &self.name(n)).map(drop)
    }

    fn sync(&self, n: u8) -> Result<(), Errno> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, self.name(n), flags, rustix::fs::Mode::empty())?;
        rustix::io::write(&file, b"probe")?;
        rustix::fs::fsync(&file)
    }

    fn link(&self, from: u8, to: u8) -> Result<(), Errno> {
        rustix::fs::linkat(&self.dir, self.name(from), &self.dir, self.name(to), AtFlags::empty())
    }

    fn rename(&self, from: u8, to: u8) -> Result<(), Errno> {
        rustix::fs::renameat(&self.dir, self.name(from), &self.dir, self.name(to))
    }

    fn rename_no_replace(&self, from: u8, to: u8) -> Result<(), Errno> {
        rustix::fs::renameat_with(
            &self.dir,
            self.name(from),
            &self.dir,
            self.name(to),
            RenameFlags::NOREPLACE,
        )
    }

    fn remove(&self, n: u8) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.dir, self.name(n), AtFlags::empty())
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for n in 0..3 {
            let _ = self.remove(n);
        }
    }
}
