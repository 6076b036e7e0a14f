//! The walk: all entries of all roots, in archive order, into the window.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::vec;

use backup_core::{CancellationToken, Error, ErrorKind, ItemKind, ItemPath, Result, Selection, Warning};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::attributes;
use super::entry::{Found, Meta, Place, Problem, open_directory};
use super::filter::{CACHE_TAG, Rules, is_cache};
use super::parent::Parent;
use super::readahead::{Entries, Job, Stopped};
use crate::config::{Config, Root};

/// Directories on the way down that are kept open; those above are opened again when the walk returns to them.
const MAX_OPEN: usize = 64;
const OPERATION: &str = "read directory tree";

/// Walks all roots. See the [module](self).
#[derive(Debug)]
pub(crate) struct Walker<'a, E> {
    pub(crate) config: &'a Config,
    /// What the backup was asked for, besides what is configured.
    pub(crate) selection: &'a Selection,
    pub(crate) window: &'a E,
    pub(crate) parent: Option<Parent>,
    pub(crate) cancelled: &'a CancellationToken,
}

/// A directory being walked.
#[derive(Debug)]
struct Frame {
    /// Its name in the archive, and in the directory above.
    path: Vec<u8>,
    name: CString,
    /// `None` while it is closed to save file descriptors.
    dir: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
    entries: vec::IntoIter<(CString, FileType)>,
    rules: Option<Arc<Rules>>,
    /// The directory's own member, as long as nothing included was found in it.
    withheld: Option<Found>,
}

/// Why the walk ended early.
enum Halt {
    Stopped,
    Failed(Error),
}

impl From<Stopped> for Halt {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl<E: Entries> Walker<'_, E> {
    /// Walks to the end, or until the window is stopped.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut result = Ok(());
        for root in &self.config.roots {
            result = match open_root(root) {
                Ok(Opened::Directory(dir)) => self.tree(root, dir),
                Ok(Opened::File(place, hint)) => self.single(root, place, hint),
                Err(error) => Err(error.into()),
            };
            if result.is_err() {
                break;
            }
        }
        match result {
            Ok(()) => self.window.complete(),
            Err(_) => self.window.stop(),
        }
        match result {
            Err(Halt::Failed(error)) => Err(error),
            Ok(()) | Err(Halt::Stopped) => Ok(()),
        }
    }

    fn single(&mut self, root: &Root, at: Place, hint: FileType) -> Result<(), Halt> {
        let item = ItemPath::new(root.name.clone());
        if self.includes(&item) && !self.config.filter.excludes(&item) {
            self.submit(root.name.clone(), at, hint)?;
        }
        Ok(())
    }

    fn tree(&mut self, root: &Root, dir: OwnedFd) -> Result<(), Halt> {
        let device = fstat(&dir).map_err(|e| failed(root, e.into()))?.st_dev;
        let mut stack: Vec<Frame> = Vec::new();
        self.enter(&mut stack, root.name.clone(), CString::default(), dir, device)?;
        loop {
            if self.cancelled.is_cancelled() {
                return Err(Halt::Stopped);
            }
            let Some(frame) = stack.last_mut() else { return Ok(()) };
            let Some((name, hint)) = frame.entries.next() else {
                stack.pop();
                continue;
            };
            if frame.dir.is_none() && !self.reopen(&mut stack)? {
                stack.pop();
                continue;
            }
            let Some(Frame { dir: Some(dir), path: above, rules, .. }) = stack.last() else { continue };
            let place = Place { dir: Arc::clone(dir), name };
            let path = below(above, &place.name);
            // Some file systems do not say in a listing what an entry is.
            let hint = match hint {
                FileType::Unknown => match statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(errno) => {
                        self.window.push_found(path, Found::Problem(errno.into()))?;
                        continue;
                    }
                },
                known => known,
            };
            let is_dir = hint == FileType::Directory;
            let item = ItemPath::new(path.clone());
            if self.config.filter.excludes(&item)
                || rules.as_ref().is_some_and(|rules| rules.ignores(&path, is_dir))
            {
                continue;
            }
            if !is_dir {
                if self.includes(&item) {
                    self.release_withheld(&mut stack)?;
                    self.submit(path, place, hint)?;
                }
                continue;
            }
            match open_directory(&place.dir, &place.name) {
                Ok(dir) => self.enter(&mut stack, path, place.name, dir, device)?,
                // Replaced by a link or a file since it was listed.
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    self.window.push_found(path, Found::Problem(Problem::Vanished))?;
                }
                Err(errno) => self.window.push_found(path, Found::Problem(errno.into()))?,
            }
        }
    }

    /// Archives a directory and puts it on the stack with its sorted entries.
    fn enter(
        &mut self,
        stack: &mut Vec<Frame>,
        path: Vec<u8>,
        name: CString,
        dir: OwnedFd,
        device: u64,
    ) -> Result<(), Halt> {
        let described = fstat(&dir)
            .map_err(Problem::from)
            .and_then(|stat| Ok(Meta::of(&stat).with(attributes::of_file(&dir)?)));
        let meta = match described {
            Ok(meta) => meta,
            Err(problem) => return Ok(self.window.push_found(path, Found::Problem(problem))?),
        };
        let identity = (meta.dev, meta.inode);
        let elsewhere = self.config.one_file_system && meta.dev != device;
        let mut entries = Vec::new();
        let mut listing = Ok(());
        if !elsewhere {
            listing = list(&dir, &mut entries);
            if self.config.filter.skip_caches && has(&entries, CACHE_TAG) && is_cache(&dir) {
                entries.retain(|(name, _)| name.as_c_str() == CACHE_TAG);
            }
        }

        let mut withheld = Some(Found::Directory(meta));
        let included = self.includes(&ItemPath::new(path.clone()));
        if included {
            self.release_withheld(stack)?;
            if let Some(found) = withheld.take() {
                self.window.push_found(path.clone(), found)?;
            }
        }
        if let Err(errno) = listing {
            self.window.push_found(path.clone(), Found::Problem(errno.into()))?;
        }
        let mut rules = stack.last().and_then(|frame| frame.rules.clone());
        for ignore_file in &self.config.filter.ignore_files {
            let Ok(file_name) = CString::new(ignore_file.clone()) else { continue };
            if has(&entries, &file_name) {
                let mut complaints = Vec::new();
                let depth = if path == b"." { 0 } else { path.len() + 1 };
                rules = Rules::read(&dir, &file_name, depth, rules, |why| complaints.push(why));
                let shown = ItemPath::new(below(&path, &file_name));
                for why in complaints {
                    let warning = Warning::new("ignore-file-not-followed", format!("{shown}: {why}"));
                    self.window.push_found(path.clone(), Found::Note(warning))?;
                }
            }
        }
        // The root stays open: everything is opened again from there.
        let far = stack.len().checked_sub(MAX_OPEN).filter(|&i| i > 0);
        if let Some(far) = far.and_then(|i| stack.get_mut(i)) {
            far.dir = None;
        }
        let dir = Some(Arc::new(dir));
        stack.push(Frame { path, name, dir, identity, entries: entries.into_iter(), rules, withheld });
        Ok(())
    }

    /// Opens the top directory of the stack again, from the root down. `false` if it is no longer there.
    fn reopen(&self, stack: &mut [Frame]) -> Result<bool, Halt> {
        let [root, between @ ..] = &*stack else { return Ok(false) };
        let Some(mut dir) = root.dir.clone() else { return Ok(false) };
        for frame in between {
            let next = open_directory(&*dir, &frame.name).and_then(|next| Ok((fstat(&next)?, next)));
            match next {
                Ok((stat, next)) if (stat.st_dev, stat.st_ino) == frame.identity => dir = Arc::new(next),
                _ => {
                    let path = stack.last().map(|top| top.path.clone()).unwrap_or_default();
                    self.window.push_found(path, Found::Problem(Problem::Vanished))?;
                    return Ok(false);
                }
            }
        }
        if let Some(top) = stack.last_mut() {
            top.dir = Some(dir);
        }
        Ok(true)
    }

    /// Archives the directories that lead to something included.
    fn release_withheld(&self, stack: &mut [Frame]) -> Result<(), Halt> {
        for frame in stack {
            if let Some(found) = frame.withheld.take() {
                self.window.push_found(frame.path.clone(), found)?;
            }
        }
        Ok(())
    }

    fn submit(&mut self, path: Vec<u8>, at: Place, hint: FileType) -> Result<(), Halt> {
        let mut known = None;
        if hint == FileType::RegularFile
            && let Some(parent) = &mut self.parent
        {
            match parent.find(&path) {
                Ok(item) => known = item.filter(|item| item.kind == ItemKind::File).map(Box::new),
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(Halt::Stopped),
                // A parent that cannot be read is no reason to have no backup.
                Err(error) => {
                    self.parent = None;
                    let message = format!("the files from here on are read: {}", error.chain());
                    let warning = Warning::new("parent-unreadable", message);
                    self.window.push_found(path.clone(), Found::Note(warning))?;
                }
            }
        }
        Ok(self.window.push(Job { path, at, hint, parent: known })?)
    }

    fn includes(&self, item: &ItemPath) -> bool {
        self.config.filter.include.matches(item) && self.selection.matches(item)
    }
}

/// A root, opened.
#[derive(Debug)]
enum Opened {
    Directory(OwnedFd),
    File(Place, FileType),
}

/// Whether a root is there, is what it was said to be, and can be read.
pub(crate) async fn open_root_in_background(root: &Root) -> Result<()> {
    let root = root.clone();
    tokio::task::spawn_blocking(move || match open_root(&root)? {
        Opened::File(place, FileType::RegularFile) => match super::entry::open(&place) {
            Ok(_) => Ok(()),
            Err(Problem::Unreadable(errno) | Problem::System(errno)) => Err(failed(&root, errno.into())),
            Err(_) => Err(failed(&root, Errno::NOENT.into())),
        },
        _ => Ok(()),
    })
    .await
    .map_err(|e| Error::new(ErrorKind::Internal, OPERATION).caused_by(e))?
}

fn open_root(root: &Root) -> Result<Opened> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).map_err(|e| failed(root, e.into()))
    };
    if !root.is_file {
        return Ok(Opened::Directory(open(&root.path)?));
    }
    // The name is looked up in an open directory, like every other entry's.
    let path = root.path.canonicalize().map_err(|e| failed(root, e))?;
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(root, io::ErrorKind::IsADirectory.into()));
    };
    let name = CString::new(name.as_bytes()).map_err(|e| failed(root, e.into()))?;
    let place = Place { dir: Arc::new(open(above)?), name };
    let stat =
        statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(root, e.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(failed(root, io::ErrorKind::IsADirectory.into())),
        kind => Ok(Opened::File(place, kind)),
    }
}

fn failed(root: &Root, source: io::Error) -> Error {
    let message = match source.kind() {
        io::ErrorKind::NotFound => {
            "a configured path does not exist; correct it, or mount what should be there"
        }
        io::ErrorKind::PermissionDenied => {
            "a configured path may not be read; run as its owner, or give access"
        }
        io::ErrorKind::NotADirectory => "a configured root is not a directory; give single files by `file`",
        io::ErrorKind::IsADirectory => "a configured file is a directory; give directories by `root`",
        _ => "a configured path cannot be read",
    };
    Error::io(OPERATION, source).message(message).with("path", root.path.display())
}

/// All entries of a directory but `.` and `..`, by byte order of their names. What was read before an error stays.
fn list(dir: &OwnedFd, entries: &mut Vec<(CString, FileType)>) -> rustix::io::Result<()> {
    let mut result = Ok(());
    // A second descriptor of the same opening, which leaves the access time alone where the first does.
    for entry in Dir::new(fcntl_dupfd_cloexec(dir, 0)?)? {
        match entry {
            Ok(entry) => {
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    entries.push((name.to_owned(), entry.file_type()));
                }
            }
            Err(errno) => {
                result = Err(errno);
                break;
            }
        }
    }
    entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    result
}

fn has(sorted: &[(CString, FileType)], name: &CStr) -> bool {
    sorted.binary_search_by(|(entry, _)| entry.as_c_str().cmp(name)).is_ok()
}

/// The path of `name` in the directory at `above`.
fn below(above: &[u8], name: &CStr) -> Vec<u8> {
    let mut path = Vec::with_capacity(above.len() + 1 + name.count_bytes());
    if above != b"." {
        path.extend_from_slice(above);
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
    path
}
