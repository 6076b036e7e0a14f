//! Copying an object inside the repository: a second name of the same file.
//!
//! No file of an object is ever written again once it has its name, so two objects may share one.

use std::sync::Arc;

use backup_core::{Error, ErrorKind, Key, Result};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::dirs::{self, Placed, Publish, Root, Walk, failed};
use super::staging::{STAGING, random_name};

const OPERATION: &str = "copy object";

/// What tells this repository from every other that this host can reach.
pub(super) fn store(root: &Root) -> Option<String> {
    let found = rustix::fs::fstat(root.dir()).ok()?;
    Some(format!("local:{}:{}", found.st_dev, found.st_ino))
}

/// Gives the file at `from` the name `to` as well. `false` where the file system has no hard links, or no more for it.
pub(super) fn copy(root: &Arc<Root>, from: &Key, to: &Key) -> Result<bool> {
    let missing = || Error::new(ErrorKind::NotFound, OPERATION).with("key", from);
    if root.publish != Publish::Link {
        return Ok(false);
    }
    root.check_alive(OPERATION)?;
    let (parents, name) = dirs::split(from).ok_or_else(missing)?;
    let Walk::Dir(dir) = root.walk(OPERATION, &parents)? else { return Err(missing()) };
    match dirs::stat(&dir, name) {
        Ok(found) if dirs::is_file(&found) => {}
        Ok(_) | Err(Errno::NOENT) => return Err(missing()),
        Err(e) => return Err(failed(OPERATION, e).with("key", from)),
    }
    // Replacing is done by a rename, which needs a name of its own first.
    let staging = dirs::ensure_dir(root.dir(), STAGING).map_err(|e| failed(OPERATION, e))?;
    let staged = random_name()?;
    match rustix::fs::linkat(&dir, name, &staging, &staged, AtFlags::empty()) {
        Ok(()) => {}
        Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => return Ok(false),
        Err(Errno::NOENT) => return Err(missing()),
        Err(e) => return Err(failed(OPERATION, e).with("key", from)),
    }
    let placed = root.place(to, |at, name| match rustix::fs::renameat(&staging, &staged, at, name) {
        Ok(()) => Ok(Placed::Done),
        Err(Errno::NOENT) if dirs::stat(&staging, &staged).is_ok() => Ok(Placed::DirectoryVanished),
        Err(e) => Err(failed(OPERATION, e).with("key", to)),
    });
    // Gone after a rename, unless both names were the same file already.
    let _ = rustix::fs::unlinkat(&staging, &staged, AtFlags::empty());
    placed.map(|()| true)
}
