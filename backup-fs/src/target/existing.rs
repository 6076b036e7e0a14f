//! The tree that is being replaced: what stays as it is, and what need not be read again.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use backup_core::{Error, Item, ItemKind, Result};
use rustix::fs::{AtFlags, Mode, OFlags, fstat, linkat, mkdirat, openat};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::layout::{Layout, clean, split};
use super::metadata::{Handle, observe};
use super::mounts::explained;
use super::prove::{Buffer, canonical_of_file, digest};
use super::record::Record;
use super::remove::{join, list};
use super::restore::{Directory, Tree};
use super::stop::Stop;
use super::{OPERATION, failed};

#[derive(Debug)]
pub(crate) struct Existing {
    dirs: Dirs,
    /// Inodes that were linked, so that two items never become one file.
    linked: HashSet<u64>,
    buffer: Buffer,
    stop: Stop,
}

impl Existing {
    pub(crate) fn new(root: Arc<OwnedFd>, stop: &Stop) -> Self {
        Self { dirs: Dirs::new(root), linked: HashSet::new(), buffer: Buffer::new(stop), stop: stop.clone() }
    }

    /// Links everything into the staged tree that is not selected.
    pub(crate) fn keep_the_rest(&mut self, layout: &Layout, tree: &mut Tree) -> Result<()> {
        let io = |what, place: &[u8], e: Errno| failed(what, place, e);
        let mut open = vec![Vec::new()];
        while let Some(place) = open.pop() {
            let from = self.dirs.find(&place);
            let from = from.map_err(|e| explained(io("read existing directory", &place, e), e))?;
            let to = tree.dirs.find(&place).map_err(|e| io("keep existing directory", &place, e))?;
            for (name, is_dir) in list(&from).map_err(|e| io("read existing directory", &place, e))? {
                self.stop.check()?;
                let entry = join(&place, &name);
                if layout.replaces(&entry) {
                    continue;
                }
                if is_dir {
                    mkdirat(&to, name.as_slice(), Mode::RWXU)
                        .map_err(|e| io("keep existing directory", &entry, e))?;
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let meta = openat(&from, name.as_slice(), flags, Mode::empty())
                        .and_then(|dir| observe(&Handle::Open(dir.as_fd())))
                        .map_err(|e| io("read existing directory", &entry, e))?;
                    tree.directories.insert(entry.clone(), Directory::Kept(Box::new(meta)));
                    open.push(entry);
                } else {
                    linkat(&from, name.as_slice(), &to, name.as_slice(), AtFlags::empty()).map_err(|e| {
                        let error = io("keep existing file", &entry, e);
                        match e {
                            Errno::PERM | Errno::ACCESS => error.message(
                                "another user's file cannot be linked; restore as root or elsewhere",
                            ),
                            _ => explained(error, e),
                        }
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Links a file from the old tree if content and metadata are exactly what the backup recorded of `item`.
    pub(crate) fn take_unchanged(&mut self, item: &Item, layout: &Layout, tree: &mut Tree) -> Result<bool> {
        let (ItemKind::File, Some(sha256), Some(proof)) = (item.kind, item.sha256, &item.proof) else {
            return Ok(false);
        };
        let name = clean(item.path.as_bytes())?;
        if !layout.selects(&name) {
            return Ok(false);
        }
        let place = layout.file_place(&name)?;
        let (above, last) = split(&place);
        let Ok(dir) = self.dirs.find(above) else { return Ok(false) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Whatever keeps the old file from being read makes it one that has to be restored.
        let Ok(file) = openat(&dir, last, flags, Mode::empty()) else { return Ok(false) };
        let Ok(stat) = fstat(&file) else { return Ok(false) };
        let Ok(seen) = observe(&Handle::Open(file.as_fd())) else { return Ok(false) };
        if seen.kind != ItemKind::File || seen.size != item.size || self.linked.contains(&stat.st_ino) {
            return Ok(false);
        }
        // The metadata decides first, with the recorded digest in place of the one that costs reading.
        if canonical_of_file(&name, &seen, sha256).proof() != proof.proof {
            return Ok(false);
        }
        match digest(&file, &place, &mut self.buffer) {
            Ok((digest, size)) if digest == sha256 && size == item.size => {}
            _ => return self.stop.check().map(|()| false),
        }
        let to = tree.parent(above)?;
        match linkat(&dir, last, &to, last, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Error::invalid(OPERATION, "the backup lists two items of one name")
                    .with("item", &item.path));
            }
            // Another user's file, another file system, too many links.
            Err(_) => return Ok(false),
        }
        self.linked.insert(stat.st_ino);
        tree.items += 1;
        tree.bytes += item.size;
        tree.spool.push(&Record::Unchanged { item: name, place })?;
        Ok(true)
    }
}
