//! From members to files.
//!
//! One thread reads the archive. It makes directories, links and large files itself and hands small files, which
//! cost more system calls than bytes, to a few others. Directories get their metadata at the very end
//! ([`prove`](super::prove)), so that they stay writable and keep their times.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use backup_core::{Bytes, Error, ErrorKind, Hasher, ItemKind, ItemPath, Result};
use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, mkfifoat, openat, symlinkat};
use rustix::io::Errno;

use super::entry::Entry;
use super::layout::{Place, clean, split};
use super::metadata::{Handle, apply};
use super::notes::{LEFT_OUT, Notes};
use super::record::Record;
use super::restore::{Directory, Shared, Tree};
use super::stop::Stop;
use super::{OPERATION, failed};
use crate::tar::read::{Archive, Chunks, Member, MemberKind};

/// Files up to this many bytes are written by the helpers.
const SMALL: u64 = 128 * 1024;
/// Small files waiting for a helper: with [`SMALL`], at most 4 MiB.
const WAITING: usize = 32;
const HELPERS: usize = 2;
/// Bytes handed to one write of a large file.
const PIECE: usize = 1024 * 1024;

/// Extracts an archive into the staged tree.
pub(crate) fn extract(shared: &Shared, tree: &mut Tree, chunks: impl Chunks) -> Result<()> {
    let helpers = Helpers::default();
    let (send, receive) = sync_channel(WAITING);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        for _ in 0..HELPERS {
            scope.spawn(|| helpers.work(&receive, &shared.notes));
        }
        let mut extractor = Extractor { shared, tree, helpers: &helpers, send };
        extractor.run(Archive::new(chunks))
        // The sender is dropped here, which ends the helpers.
    })?;
    helpers.outcome()
}

struct Extractor<'a> {
    shared: &'a Shared,
    tree: &'a mut Tree,
    helpers: &'a Helpers,
    send: SyncSender<SmallFile>,
}

struct SmallFile {
    dir: Arc<OwnedFd>,
    entry: Entry,
    data: Bytes,
}

impl Extractor<'_> {
    fn run(&mut self, mut archive: Archive<impl Chunks>) -> Result<()> {
        while let Some(member) = archive.next()? {
            if self.helpers.failed.load(Ordering::Acquire) {
                break;
            }
            let item = clean(&member.path)?;
            let about = ItemPath::new(item.as_slice());
            self.member(member, item, &mut archive)
                .map_err(|e| if e.context_value("path").is_some() { e } else { e.with("item", about) })?;
        }
        Ok(())
    }

    fn member(&mut self, member: Member, item: Vec<u8>, archive: &mut Archive<impl Chunks>) -> Result<()> {
        if member.kind == MemberKind::Device {
            return Err(Error::invalid(OPERATION, "the archive has a device node: refused"));
        }
        let layout = &self.shared.layout;
        if !layout.selects(&item) {
            let alias = if member.kind == MemberKind::File { layout.alias(&item) } else { None };
            let Some(alias) = alias else { return Ok(()) };
            let place = layout.file_place(alias)?;
            self.shared.budget.take(member.size)?;
            return self.content_of_links(member, item, place, archive);
        }
        self.shared.budget.take(member.size)?;
        self.tree.items += 1;
        self.tree.bytes += member.size;
        match member.kind {
            MemberKind::Directory => self.directory(member, item),
            MemberKind::HardLink => self.hard_link(&member, item),
            MemberKind::File => self.file(member, item, archive),
            MemberKind::Symlink => self.special(member, ItemKind::Symlink, item),
            // Devices were refused above.
            MemberKind::Fifo | MemberKind::Device => self.special(member, ItemKind::Fifo, item),
        }
    }

    fn entry(&self, member: Member, kind: ItemKind, item: Vec<u8>, place: Vec<u8>) -> Entry {
        let Shared { owners, times, notes, .. } = self.shared;
        Entry::new(member, kind, item, place, owners, times, notes)
    }

    fn directory(&mut self, member: Member, item: Vec<u8>) -> Result<()> {
        let place = match self.shared.layout.place(&item) {
            Place::At(place) => place,
            Place::Above => return self.left_out(member, item),
        };
        if let Some(Directory::Recorded(first)) = self.tree.directories.get(&place)
            && first.item != item
        {
            // Two directories became one by stripping; the first one decides.
            return self.left_out(member, item);
        }
        if !place.is_empty() {
            let (above, name) = split(&place);
            let above = self.tree.parent(above)?;
            match mkdirat(&above, name, Mode::RWXU) {
                // Made for a member below it, kept from the old tree, or recorded twice.
                Err(Errno::EXIST) if self.tree.directories.contains_key(&place) => {}
                other => other.map_err(|e| exists_or(&item, "create directory", e))?,
            }
        }
        let entry = self.entry(member, ItemKind::Directory, item, place.clone());
        let before = self.tree.directories.insert(place, Directory::Recorded(Box::new(entry)));
        if matches!(before, Some(Directory::Recorded(_))) {
            self.tree.items -= 1;
        }
        Ok(())
    }

    fn left_out(&mut self, member: Member, item: Vec<u8>) -> Result<()> {
        self.shared.notes.add(LEFT_OUT, &item);
        let entry = self.entry(member, ItemKind::Directory, item, Vec::new());
        self.tree.spool.push(&Record::Above(entry))
    }

    fn file(&mut self, member: Member, item: Vec<u8>, archive: &mut Archive<impl Chunks>) -> Result<()> {
        let place = self.shared.layout.file_place(&item)?;
        let dir = self.tree.parent(split(&place).0)?;
        let sparse = member.sparse.is_some();
        if !sparse && member.size <= SMALL {
            let data = archive.whole(usize::try_from(SMALL).unwrap_or(usize::MAX))?;
            let entry = self.entry(member, ItemKind::File, item, place);
            self.tree.spool.push(&Record::Staged(entry.clone()))?;
            return self.helpers.submit(&self.send, SmallFile { dir, entry, data });
        }
        let (member, file) = write(member, &dir, split(&place).1, archive, None, &self.shared.stop)?;
        let entry = self.entry(member, ItemKind::File, item, place);
        apply(&Handle::Open(file.as_fd()), &entry, &self.shared.notes)?;
        self.tree.spool.push(&Record::Staged(entry))
    }

    /// The content of selected hard links, under the name of the first of them.
    fn content_of_links(
        &mut self,
        member: Member,
        item: Vec<u8>,
        place: Vec<u8>,
        archive: &mut Archive<impl Chunks>,
    ) -> Result<()> {
        let dir = self.tree.parent(split(&place).0)?;
        let mut hasher = Hasher::new();
        let name = split(&place).1;
        let (member, file) = write(member, &dir, name, archive, Some(&mut hasher), &self.shared.stop)?;
        let entry = self.entry(member, ItemKind::File, item, place);
        apply(&Handle::Open(file.as_fd()), &entry, &self.shared.notes)?;
        self.tree.spool.push(&Record::Content { entry, sha256: hasher.finish() })
    }

    fn hard_link(&mut self, member: &Member, item: Vec<u8>) -> Result<()> {
        let layout = &self.shared.layout;
        let place = layout.file_place(&item)?;
        let link = clean(&member.link)?;
        let absent = || leads_nowhere(&link);
        let content = if layout.selects(&link) {
            let content = layout.file_place(&link)?;
            if content == place {
                return Err(absent());
            }
            content
        } else {
            layout.file_place(layout.alias(&link).ok_or_else(absent)?)?
        };
        // The first link to content that was not selected has got it already.
        if content != place {
            self.helpers.wait();
            if !link_to(self.tree, &content, &place)? {
                // The content may be in an artifact that comes later.
                self.tree.late_links.push((content.clone(), place.clone()));
            }
        }
        self.tree.spool.push(&Record::HardLink { item, place, link, content })
    }

    fn special(&mut self, member: Member, kind: ItemKind, item: Vec<u8>) -> Result<()> {
        let place = self.shared.layout.file_place(&item)?;
        let (above, name) = split(&place);
        let dir = self.tree.parent(above)?;
        let made = match kind {
            ItemKind::Symlink => symlinkat(member.link.as_slice(), &dir, name),
            _ => mkfifoat(&dir, name, Mode::RUSR | Mode::WUSR),
        };
        made.map_err(|e| exists_or(&item, "create symbolic link or pipe", e))?;
        let handle = Handle::named(dir.as_fd(), name).map_err(|e| failed("set metadata", &item, e))?;
        let entry = self.entry(member, kind, item, place.clone());
        apply(&handle, &entry, &self.shared.notes)?;
        self.tree.spool.push(&Record::Staged(entry))
    }
}

/// Makes the links whose content came after them.
pub(crate) fn finish_links(tree: &mut Tree, stop: &Stop) -> Result<()> {
    for (content, place) in std::mem::take(&mut tree.late_links) {
        stop.check()?;
        if !link_to(tree, &content, &place)? {
            return Err(leads_nowhere(&content));
        }
    }
    Ok(())
}

/// Makes `place` a further name of the file at `content`; `false` if there is none.
fn link_to(tree: &mut Tree, content: &[u8], place: &[u8]) -> Result<bool> {
    let (from_dir, from) = split(content);
    let (to_dir, to) = split(place);
    let to_dir = tree.parent(to_dir)?;
    let from_dir = match tree.dirs.find(from_dir) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(false),
        Err(_) => return Err(leads_nowhere(content)),
    };
    match linkat(&from_dir, from, &to_dir, to, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        // A directory.
        Err(Errno::PERM) => Err(leads_nowhere(content)),
        Err(e) => Err(exists_or(place, "create hard link", e)),
    }
}

fn leads_nowhere(content: &[u8]) -> Error {
    Error::invalid(OPERATION, "a hard link leads to something that is not a restored file: refused")
        .with("link", ItemPath::new(content))
}

/// Creates a file and writes the member's data, leaving holes where it has none.
fn write(
    mut member: Member,
    dir: &OwnedFd,
    name: &[u8],
    archive: &mut Archive<impl Chunks>,
    mut hasher: Option<&mut Hasher>,
    stop: &Stop,
) -> Result<(Member, File)> {
    let io = |e| failed("write file", &member.path, e);
    let mut file = create(dir, name).map_err(|e| exists_or(&member.path, "create file", e))?;
    if let Some(extents) = member.sparse.take() {
        file.set_len(member.size).map_err(io)?;
        let mut covered = 0;
        for extent in extents {
            let (mut at, end) = (extent.offset, extent.offset + extent.length);
            if let Some(hasher) = hasher.as_deref_mut() {
                hash_zeros(hasher, at - covered, stop)?;
                covered = end;
            }
            while at < end {
                let limit = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                // The map was checked: it adds up to the data there is.
                let Some(data) = archive.data(limit)? else { break };
                file.write_all_at(&data, at).map_err(io)?;
                at += data.len() as u64;
                if let Some(hasher) = hasher.as_deref_mut() {
                    hasher.update(&data);
                }
            }
        }
        if let Some(hasher) = hasher {
            hash_zeros(hasher, member.size - covered, stop)?;
        }
    } else {
        while let Some(data) = archive.data(PIECE)? {
            file.write_all(&data).map_err(io)?;
            if let Some(hasher) = hasher.as_deref_mut() {
                hasher.update(&data);
            }
        }
    }
    Ok((member, file))
}

fn create(dir: &OwnedFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

fn exists_or(item: &[u8], what: &'static str, error: Errno) -> Error {
    if error == Errno::EXIST {
        Error::invalid(OPERATION, "the archive has two members of one name: refused")
            .with("path", ItemPath::new(item))
    } else {
        failed(what, item, error)
    }
}

fn hash_zeros(hasher: &mut Hasher, mut bytes: u64, stop: &Stop) -> Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while bytes > 0 {
        stop.check()?;
        let now = usize::try_from(bytes).unwrap_or(ZEROS.len()).min(ZEROS.len());
        hasher.update(ZEROS.get(..now).unwrap_or(&ZEROS));
        bytes -= now as u64;
    }
    Ok(())
}

/// Threads that write small files.
#[derive(Default)]
struct Helpers {
    under_way: Mutex<usize>,
    idle: Condvar,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Helpers {
    fn submit(&self, to: &SyncSender<SmallFile>, file: SmallFile) -> Result<()> {
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        to.send(file).map_err(|_| {
            Error::new(ErrorKind::Internal, OPERATION).message("the threads that write files ended early")
        })
    }

    /// Waits until everything that was submitted is written.
    fn wait(&self) {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.idle.wait_while(under_way, |n| *n > 0).unwrap_or_else(PoisonError::into_inner));
    }

    fn work(&self, from: &Mutex<Receiver<SmallFile>>, notes: &Notes) {
        loop {
            let next = from.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(file) = next else { return };
            if !self.failed.load(Ordering::Acquire)
                && let Err(e) = write_small(&file, notes)
            {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                self.failed.store(true, Ordering::Release);
            }
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            *under_way -= 1;
            if *under_way == 0 {
                self.idle.notify_all();
            }
        }
    }

    fn outcome(self) -> Result<()> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

fn write_small(file: &SmallFile, notes: &Notes) -> Result<()> {
    let SmallFile { dir, entry, data } = file;
    let mut out = create(dir, split(&entry.place).1).map_err(|e| exists_or(&entry.item, "create file", e))?;
    out.write_all(data).map_err(|e| failed("write file", &entry.item, e))?;
    apply(&Handle::Open(out.as_fd()), entry, notes)
}
