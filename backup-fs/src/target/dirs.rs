//! Open handles of directories below a root, found without ever following a symbolic link.
//!
//! A path is walked component by component, each opened relative to its parent with `O_NOFOLLOW | O_DIRECTORY`. As no
//! component is `..`, `.` or empty, the walk cannot leave the root, whatever is created below it meanwhile: the
//! promise of `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, on every kernel, and at the cost of one call a
//! directory because handles are remembered.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use backup_core::{Error, ItemPath, Result};
use rustix::fs::{Mode, OFlags, mkdirat};
use rustix::io::Errno;

use super::mounts::open_here;
use super::{OPERATION, failed};

/// Handles remembered at once. Far below the usual limit of 1024 open files.
const CACHE: usize = 128;

#[derive(Debug)]
pub(crate) struct Dirs {
    root: Arc<OwnedFd>,
    open: HashMap<Vec<u8>, Arc<OwnedFd>>,
}

impl Dirs {
    pub(crate) fn new(root: Arc<OwnedFd>) -> Self {
        Self { root, open: HashMap::new() }
    }

    /// The directory at `place`, which must exist.
    pub(crate) fn find(&mut self, place: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        self.walk(place, |_, _| Err(Errno::NOENT))
    }

    /// The directory at `place`. Missing ones are created with mode 0700, and `created` hears of each.
    pub(crate) fn make(&mut self, place: &[u8], mut created: impl FnMut(&[u8])) -> Result<Arc<OwnedFd>> {
        let walked = self.walk(place, |parent, (path, name)| {
            mkdirat(parent, name, Mode::RWXU)?;
            created(path);
            Ok(())
        });
        walked.map_err(|e| match e {
            Errno::NOTDIR | Errno::LOOP => Error::invalid(
                OPERATION,
                "the archive has a member below something that is not a directory: refused",
            )
            .with("directory", ItemPath::new(place)),
            e => failed("create directory", place, e),
        })
    }

    fn walk(
        &mut self,
        place: &[u8],
        mut absent: impl FnMut(&OwnedFd, (&[u8], &[u8])) -> Result<(), Errno>,
    ) -> Result<Arc<OwnedFd>, Errno> {
        if place.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(found) = self.open.get(place) {
            return Ok(Arc::clone(found));
        }
        let (mut at, mut current) = self.nearest(place);
        while at < place.len() {
            let rest = place.get(at..).unwrap_or(&[]);
            let length = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
            let (name, path) = (rest.get(..length).unwrap_or(&[]), place.get(..at + length).unwrap_or(&[]));
            let next = match open_here(&current, name, OFlags::PATH) {
                Err(Errno::NOENT) => {
                    absent(&current, (path, name))?;
                    open_here(&current, name, OFlags::PATH)?
                }
                other => other?,
            };
            current = Arc::new(next);
            if self.open.len() >= CACHE {
                self.open.clear();
            }
            self.open.insert(path.to_vec(), Arc::clone(&current));
            at += length + 1;
        }
        Ok(current)
    }

    /// The deepest remembered ancestor, and where the rest of the path begins.
    fn nearest(&self, place: &[u8]) -> (usize, Arc<OwnedFd>) {
        let mut end = place.len();
        while let Some(slash) = place.get(..end).and_then(|p| p.iter().rposition(|&b| b == b'/')) {
            if let Some(found) = place.get(..slash).and_then(|p| self.open.get(p)) {
                return (slash + 1, Arc::clone(found));
            }
            end = slash;
        }
        (0, Arc::clone(&self.root))
    }
}
