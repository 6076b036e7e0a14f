//! The proof of the staged tree: everything is read back from the file system and brought into canonical form.
//!
//! Where the plan deviates from the record (an owner mapped or left, a setuid bit dropped, an attribute the
//! file system refused) the recorded value enters the proof, but only after what is on disk was found to be
//! exactly what was planned. Anything else enters as it is on disk, and the proof will not match.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{Digest, Error, Hasher, ItemKind, ItemPath, Proof, Proofs, Result};
use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::entry::Entry;
use super::extract::finish_links;
use super::layout::split;
use super::metadata::{Handle, Observed, apply, copy, observe};
use super::record::{Record, Records};
use super::restore::{Directory, Shared, Tree};
use super::stop::Stop;
use super::{OPERATION, failed};
use crate::canonical::{Canonical, PROOF_NAME, Xattrs};

/// Threads that read files back.
const THREADS: usize = 2;
/// Records a thread takes at once.
const BATCH: usize = 32;
const BUFFER: usize = 256 * 1024;

/// Proves the files, gives the directories their metadata, and proves these.
pub(crate) fn prove(shared: &Shared, tree: &mut Tree) -> Result<Proofs> {
    finish_links(tree, &shared.stop)?;
    let records = Mutex::new(tree.spool.read()?);
    let root = &shared.stage.tree;
    let mut total = Proven::default();
    std::thread::scope(|scope| -> Result<()> {
        // What is staged goes to disk while it is read back from memory.
        let syncing = scope.spawn(|| rustix::fs::syncfs(root));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| prove_records(&records, Arc::clone(root), &shared.stop)))
            .collect();
        for thread in threads {
            total.merge(thread.join().map_err(|_| panicked())??);
        }
        syncing.join().map_err(|_| panicked())?.map_err(|e| Error::io("sync restored files", e.into()))
    })?;
    directories(shared, tree, &mut total)?;
    if total.missing != shared.notes.refused() {
        // Something that was set is gone: let the comparison fail on it.
        return Err(Error::new(backup_core::ErrorKind::ProofMismatch, OPERATION)
            .message("extended attributes that were set cannot be found again"));
    }
    Ok(Proofs::from([(PROOF_NAME.to_owned(), total.proof)]))
}

fn panicked() -> Error {
    Error::new(backup_core::ErrorKind::Internal, OPERATION).message("a thread ended unexpectedly")
}

#[derive(Default)]
struct Proven {
    proof: Proof,
    /// How often attributes were recorded and are not there.
    missing: BTreeMap<Vec<u8>, u64>,
}

impl Proven {
    fn merge(&mut self, other: Self) {
        self.proof.merge(&other.proof);
        for (name, count) in other.missing {
            *self.missing.entry(name).or_default() += count;
        }
    }

    /// Adds an entry as it is on disk, with recorded values where the deviation is the planned one.
    fn add(&mut self, entry: &Entry, seen: &Observed, link: &[u8], sha256: Option<Digest>) {
        self.proof.merge(&self::with_recorded(entry, seen, link, sha256, &mut self.missing));
    }
}

fn with_recorded(
    entry: &Entry,
    seen: &Observed,
    link: &[u8],
    sha256: Option<Digest>,
    missing: &mut BTreeMap<Vec<u8>, u64>,
) -> Proof {
    let planned = &entry.planned;
    let recorded_if = |same: bool, recorded: u32, seen: u32| if same { recorded } else { seen };
    let mut xattrs: Xattrs = seen.xattrs.clone();
    for (name, value) in &entry.xattrs {
        if !xattrs.contains_key(name) {
            *missing.entry(name.clone()).or_default() += 1;
            xattrs.insert(name.clone(), value.clone());
        }
    }
    Canonical {
        path: &entry.item,
        kind: seen.kind,
        mode: recorded_if(seen.mode == planned.mode, entry.mode, seen.mode),
        uid: recorded_if(seen.uid == planned.uid, entry.uid, seen.uid),
        gid: recorded_if(seen.gid == planned.gid, entry.gid, seen.gid),
        mtime: if seen.mtime == planned.mtime { entry.mtime } else { seen.mtime },
        link,
        sha256,
        xattrs: &xattrs,
    }
    .proof()
}

/// The canonical form of a regular file that is exactly what is recorded.
pub(crate) fn canonical_of_file<'a>(item: &'a [u8], seen: &'a Observed, sha256: Digest) -> Canonical<'a> {
    Canonical {
        path: item,
        kind: seen.kind,
        mode: seen.mode,
        uid: seen.uid,
        gid: seen.gid,
        mtime: seen.mtime,
        link: b"",
        sha256: Some(sha256),
        xattrs: &seen.xattrs,
    }
}

fn prove_records(records: &Mutex<Records>, root: Arc<OwnedFd>, stop: &Stop) -> Result<Proven> {
    let mut dirs = Dirs::new(root);
    let mut buffer = Buffer::new(stop);
    let mut proven = Proven::default();
    loop {
        let batch = {
            let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
            records.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?
        };
        if batch.is_empty() {
            return Ok(proven);
        }
        for record in batch {
            stop.check()?;
            prove_record(&record, &mut dirs, &mut buffer, &mut proven)?;
        }
    }
}

fn prove_record(record: &Record, dirs: &mut Dirs, buffer: &mut Buffer, proven: &mut Proven) -> Result<()> {
    match record {
        Record::Staged(entry) if entry.kind == ItemKind::File => {
            let (seen, sha256) = read_file(&entry.place, dirs, buffer)?;
            proven.add(entry, &seen, b"", Some(sha256));
        }
        Record::Staged(entry) => {
            let (above, name) = split(&entry.place);
            let io = |e: Errno| failed("read back", &entry.item, e);
            let dir = dirs.find(above).map_err(io)?;
            let seen = Handle::named(dir.as_fd(), name).and_then(|h| observe(&h)).map_err(io)?;
            let link = match seen.kind {
                ItemKind::Symlink => readlinkat(&dir, name, Vec::new()).map_err(io)?.into_bytes(),
                _ => Vec::new(),
            };
            proven.add(entry, &seen, &link, None);
        }
        Record::HardLink { item, place, link, content } => {
            if inode(place, dirs)? != inode(content, dirs)? {
                return Err(Error::new(backup_core::ErrorKind::ProofMismatch, OPERATION)
                    .message("a hard link is not the same file as what it leads to")
                    .with("item", ItemPath::new(item.as_slice())));
            }
            proven.proof.merge(&Canonical::hard_link(item, link).proof());
        }
        Record::Content { entry, sha256 } => {
            let (seen, read) = read_file(&entry.place, dirs, buffer)?;
            let expected = Observed {
                kind: ItemKind::File,
                mode: entry.planned.mode,
                uid: entry.planned.uid,
                gid: entry.planned.gid,
                mtime: entry.planned.mtime,
                ..seen.clone()
            };
            let mut none = BTreeMap::new();
            let found = with_recorded(entry, &seen, b"", Some(read), &mut proven.missing);
            if found != with_recorded(entry, &expected, b"", Some(*sha256), &mut none) {
                return Err(Error::new(backup_core::ErrorKind::ProofMismatch, OPERATION)
                    .message("the content of a hard link was not read back as it was written")
                    .with("item", ItemPath::new(entry.item.as_slice())));
            }
        }
        Record::Unchanged { item, place } => {
            let (seen, sha256) = read_file(place, dirs, buffer)?;
            proven.proof.merge(&canonical_of_file(item, &seen, sha256).proof());
        }
        Record::Above(entry) => {
            let recorded = Canonical {
                path: &entry.item,
                kind: entry.kind,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                link: b"",
                sha256: None,
                xattrs: &entry.xattrs,
            };
            proven.proof.merge(&recorded.proof());
        }
    }
    Ok(())
}

fn inode(place: &[u8], dirs: &mut Dirs) -> Result<(u64, u64)> {
    let (above, name) = split(place);
    let dir = dirs.find(above).map_err(|e| failed("read back", place, e))?;
    let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("read back", place, e))?;
    Ok((stat.st_dev, stat.st_ino))
}

fn read_file(place: &[u8], dirs: &mut Dirs, buffer: &mut Buffer) -> Result<(Observed, Digest)> {
    let io = |e: Errno| failed("read back", place, e);
    let (above, name) = split(place);
    let dir = dirs.find(above).map_err(io)?;
    // Without blocking, should a pipe stand there.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => open_unreadable(&dir, name, flags).map_err(io)?,
        other => other.map_err(io)?,
    };
    let seen = observe(&Handle::Open(file.as_fd())).map_err(io)?;
    let (sha256, _) = digest(&file, place, buffer)?;
    Ok((seen, sha256))
}

/// Opens a file its own mode forbids to read, by permitting it for a moment. Nobody else can reach it here.
fn open_unreadable(dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let handle = Handle::named(dir.as_fd(), name)?;
    let mode = handle.stat()?.st_mode & 0o7777;
    handle.set_mode(mode | 0o400)?;
    let opened = openat(dir, name, flags, Mode::empty());
    handle.set_mode(mode)?;
    opened
}

/// Memory to read into, kept from file to file.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    stop: Stop,
}

impl Buffer {
    pub(crate) fn new(stop: &Stop) -> Self {
        Self { bytes: vec![0; BUFFER], stop: stop.clone() }
    }
}

/// SHA-256 and length of what a file holds.
pub(crate) fn digest(file: &OwnedFd, place: &[u8], buffer: &mut Buffer) -> Result<(Digest, u64)> {
    let io = |e| failed("read back", place, e);
    let mut file = File::from(file.try_clone().map_err(io)?);
    let (mut hasher, mut size) = (Hasher::new(), 0);
    loop {
        buffer.stop.check()?;
        match file.read(&mut buffer.bytes) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(n) => {
                hasher.update(buffer.bytes.get(..n).unwrap_or(&[]));
                size += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
    }
}

/// Gives directories their metadata, the deepest first, and proves each by what its handle then says.
fn directories(shared: &Shared, tree: &mut Tree, proven: &mut Proven) -> Result<()> {
    let first = !tree.finished;
    tree.finished = true;
    let root = shared.stage.tree.as_fd();
    // A path sorts after what it begins with, so the reverse order meets children before their parents.
    for (place, directory) in tree.directories.iter().rev() {
        shared.stop.check()?;
        let io = |e: Errno| failed("finish directory", place, e);
        let opened = if place.is_empty() {
            None
        } else {
            let (above, name) = split(place);
            let above = tree.dirs.find(above).map_err(io)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Some(openat(&above, name, flags, Mode::empty()).map_err(io)?)
        };
        let dir = opened.as_ref().map_or(root, |dir| dir.as_fd());
        let handle = Handle::Open(dir);
        if first {
            match directory {
                Directory::Implied => handle.set_mode(shared.stage.default_mode).map_err(io)?,
                Directory::Recorded(entry) => apply(&handle, entry, &shared.notes)?,
                Directory::Kept(meta) => copy(dir, place, meta)?,
            }
        }
        let mut seen = observe(&handle).map_err(io)?;
        if place.is_empty() && first && !rustix::process::geteuid().is_root() && seen.mode & 0o700 != 0o700 {
            // Moving a directory writes to it; the owner gives itself the right until that is done.
            handle.set_mode(seen.mode | 0o700).map_err(io)?;
            tree.late_root_mode = Some(seen.mode);
        }
        if let (true, Some(mode)) = (place.is_empty(), tree.late_root_mode) {
            seen.mode = mode;
        }
        if let Directory::Recorded(entry) = directory {
            proven.add(entry, &seen, b"", None);
        }
    }
    Ok(())
}
