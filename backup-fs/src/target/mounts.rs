//! File systems mounted inside a tree. Renaming a tree takes them along, and removing it would empty them.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use backup_core::{Error, Result};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, fstat, openat, openat2, statx,
};
use rustix::io::Errno;

/// What mounts this process sees (`proc_pid_mountinfo(5)`).
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Fails if a file system, or a single file or directory, is mounted at or below `tree`, whose path is real.
///
/// Mounts of other mount namespaces cannot be seen; [`open_here`] does not enter any that it meets.
pub(crate) fn refuse_below(tree: &Path, operation: &'static str) -> Result<()> {
    let table = std::fs::read(MOUNTINFO).map_err(|e| {
        Error::io(operation, e).message(
            "whether anything is mounted in the tree cannot be seen; mount /proc, or restore beside it",
        )
    })?;
    match first_below(&table, tree) {
        None => Ok(()),
        Some(mount) => Err(Error::invalid(
            operation,
            "something is mounted inside the tree; unmount it and mount it again afterwards, or restore beside the tree",
        )
        .with("mount", mount.display())
        .with("tree", tree.display())),
    }
}

/// The first mount point at or below `tree` in a table of mounts.
fn first_below(table: &[u8], tree: &Path) -> Option<PathBuf> {
    let points = table.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
    points.map(unescape).find(|point| point.starts_with(tree))
}

/// Spaces, tabs, line feeds and backslashes are written as three octal digits.
fn unescape(mut raw: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(raw.len());
    while let Some((&first, rest)) = raw.split_first() {
        let octal = rest.get(..3).filter(|_| first == b'\\').and_then(|d| str::from_utf8(d).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            path.push(byte);
            raw = rest.get(3..).unwrap_or(&[]);
        } else {
            path.push(first);
            raw = rest;
        }
    }
    std::ffi::OsString::from_vec(path).into()
}

/// The path of `name` in a directory.
pub(crate) fn path_of(parent: &Path, name: &[u8]) -> PathBuf {
    parent.join(std::ffi::OsStr::from_bytes(name))
}

/// Opens the directory `name` in `dir`, if it is one and nothing is mounted on it: [`Errno::XDEV`] says that something
/// is. Another mount of the same file system counts too.
pub(crate) fn open_here(dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    loop {
        match openat2(dir, name, flags, Mode::empty(), resolve) {
            // A rename elsewhere made the kernel unsure (`openat2(2)`).
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_and_look(dir, name, flags),
            other => return other,
        }
    }
}

fn open_and_look(dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let opened = openat(dir, name, flags, Mode::empty())?;
    let is_mount = match statx(&opened, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS) {
        Ok(seen) => seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        Err(Errno::NOSYS | Errno::PERM) => false,
        Err(e) => return Err(e),
    };
    if is_mount || fstat(&opened)?.st_dev != fstat(dir)?.st_dev {
        return Err(Errno::XDEV);
    }
    Ok(opened)
}

/// Adds what to do about it to the error of a call that met a mount.
pub(crate) fn explained(error: Error, errno: Errno) -> Error {
    match errno {
        Errno::XDEV | Errno::BUSY => error
            .message("something is mounted here, and what is in it is left alone; unmount it and try again"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_at_and_below_a_tree_are_found_and_others_are_not() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 0:30 / /srv/site-2/x rw - tmpfs none rw\n\
            31 22 0:30 / /srv/si\\040te/a\\134b rw shared:1 - tmpfs none rw\n";
        let find = |tree: &str| first_below(table, Path::new(tree));
        assert_eq!(find("/srv/si te").unwrap(), Path::new("/srv/si te/a\\b"));
        assert_eq!(find("/srv/si te/a\\b").unwrap(), Path::new("/srv/si te/a\\b"));
        assert_eq!(find("/srv/site-2").unwrap(), Path::new("/srv/site-2/x"));
        assert_eq!(find("/srv/site"), None);
        assert_eq!(find("/srv/site-2/x/y"), None);
    }
}
