//! Removing a tree without following links, without entering what is mounted in it, and without a handle per level.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use backup_core::{Error, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawDir, fchmod, openat, unlinkat};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::layout::split;
use super::mounts::{explained, open_here};

/// Removes what `name` in `parent` is, with everything below it. Absent is fine.
///
/// Where a file system, or another part of the same one, is mounted, nothing is removed and the call fails.
pub(crate) fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux answers EISDIR for a directory, POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(failed("remove", name, e)),
    }
    let root = match open_writable(parent, name) {
        Ok(root) => Arc::new(root),
        Err(e) => return Err(failed("remove directory", name, e)),
    };
    let mut dirs = Dirs::new(Arc::clone(&root));
    // Directories in the order they were found: parents before children.
    let mut found: Vec<Vec<u8>> = vec![Vec::new()];
    let mut next = 0;
    while let Some(place) = found.get(next).cloned() {
        next += 1;
        let dir = if place.is_empty() {
            Arc::clone(&root)
        } else {
            let (above, last) = split(&place);
            let above = dirs.find(above).map_err(|e| failed("remove directory", &place, e))?;
            Arc::new(open_writable(&above, last).map_err(|e| failed("remove directory", &place, e))?)
        };
        for (entry, is_dir) in list(&dir).map_err(|e| failed("list directory", &place, e))? {
            if is_dir {
                found.push(join(&place, &entry));
            } else {
                match unlinkat(&dir, entry.as_slice(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(failed("remove file", &join(&place, &entry), e)),
                }
            }
        }
    }
    for place in found.iter().skip(1).rev() {
        let (above, last) = split(place);
        let above = dirs.find(above).map_err(|e| failed("remove directory", place, e))?;
        match unlinkat(&above, last, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("remove directory", place, e)),
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed("remove directory", name, e)),
    }
}

fn failed(what: &'static str, path: &[u8], errno: Errno) -> Error {
    explained(super::failed(what, path, errno), errno)
}

/// Opens a directory for listing. Its owner may have restored it without the right to look into it.
fn open_writable(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let open = || open_here(parent, name, OFlags::RDONLY);
    let dir = match open() {
        Err(Errno::ACCESS) => {
            let handle = super::metadata::Handle::named(parent.as_fd(), name)?;
            handle.set_mode(0o700)?;
            open()?
        }
        other => other?,
    };
    if !rustix::process::geteuid().is_root() {
        fchmod(&dir, Mode::RWXU)?;
    }
    Ok(dir)
}

/// Names in a directory, and whether each is itself a directory.
pub(crate) fn list(dir: &OwnedFd) -> Result<Vec<(Vec<u8>, bool)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = openat(dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    let mut entries = Dir::new(own)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        names.push((name.to_vec(), is_dir));
    }
    Ok(names)
}

/// Whether a directory has no entries.
pub(crate) fn is_empty(dir: &OwnedFd) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = openat(dir, ".", flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = RawDir::new(&own, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `name` in the directory `place`.
pub(crate) fn join(place: &[u8], name: &[u8]) -> Vec<u8> {
    if place.is_empty() { name.to_vec() } else { [place, b"/", name].concat() }
}
