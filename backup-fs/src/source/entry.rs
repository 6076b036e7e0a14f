//! Looking at one directory entry: its metadata, its extended attributes, a small file's content.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup_core::{Digest, Item, Warning};
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::attributes::{self, Attributes};
use crate::canonical::{FileTime, Xattrs};

/// Files up to this size are read whole, ahead of their turn; larger ones are streamed.
pub(crate) const SMALL: u64 = 256 * 1024;
/// How often a small file that changes while it is read is read again.
const RETRIES: u32 = 2;
/// Coarsest granularity of times on file systems in use (FAT, some network file systems).
const RACY_SECONDS: i64 = 2;
/// Two changes closer than this may get the same time: kernels stamp files by their clock tick, at most 10 ms apart.
const TICK: Duration = Duration::from_millis(20);
/// The same for file systems that keep no fraction of a second (ext2, ext3, FAT).
const COARSE_TICK: Duration = Duration::from_secs(2);

/// Where an entry is: an open directory and the name in it. No path is resolved twice, so nothing that is moved
/// while the tree is read can lead elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) dir: Arc<OwnedFd>,
    pub(crate) name: CString,
}

/// What the kernel says of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: FileTime,
    pub(crate) ctime: FileTime,
    pub(crate) dev: u64,
    pub(crate) inode: u64,
    pub(crate) links: u64,
    /// It was changed so recently that another change may leave the same times.
    pub(crate) racy: bool,
    pub(crate) xattrs: Xattrs,
    /// Whether it has attributes that this process may not read.
    pub(crate) hidden_xattrs: bool,
}

impl Meta {
    /// Metadata without extended attributes.
    pub(crate) fn of(stat: &Stat) -> Self {
        let mtime = file_time(stat.st_mtime, stat.st_mtime_nsec);
        let ctime = file_time(stat.st_ctime, stat.st_ctime_nsec);
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime,
            ctime,
            dev: stat.st_dev,
            inode: stat.st_ino,
            links: stat.st_nlink,
            racy: mtime.max(ctime).seconds >= now().saturating_sub(RACY_SECONDS),
            xattrs: Xattrs::new(),
            hidden_xattrs: false,
        }
    }

    /// Adds the extended attributes.
    pub(crate) fn with(mut self, attributes: Attributes) -> Self {
        self.xattrs = attributes.xattrs;
        self.hidden_xattrs = attributes.hidden;
        self
    }
}

/// What became of an entry when it was looked at.
#[derive(Debug)]
pub(crate) enum Found {
    Directory(Meta),
    /// A small file with its content. `changed` if no reading of it was quiet.
    File {
        meta: Meta,
        content: Vec<u8>,
        sha256: Digest,
        changed: bool,
    },
    /// A regular file to be read in its turn: it is large, or has several names.
    Stream,
    Symlink {
        meta: Meta,
        target: Vec<u8>,
    },
    Fifo(Meta),
    /// A regular file that is as the parent backup has it.
    Unchanged {
        meta: Meta,
        item: Box<Item>,
    },
    Socket,
    Device,
    /// Everything that an archive of an earlier run holds: that of this number among those that are taken over.
    Earlier(usize),
    /// Nothing to archive: something to tell.
    Note(Warning),
    Problem(Problem),
}

/// Why an entry could not be archived.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It is no longer there.
    Vanished,
    /// The system refused to give it.
    Unreadable(Errno),
    /// Its extended attributes are more than an archive can carry.
    TooManyAttributes,
    /// Not this entry's fault: no file descriptors, no memory. The run cannot go on.
    System(Errno),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::STALE | Errno::NOTDIR => Self::Vanished,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => Self::System(errno),
            _ => Self::Unreadable(errno),
        }
    }
}

/// An open regular file and what it was when opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: OwnedFd,
    pub(crate) stat: Stat,
}

/// Looks at an entry. `hint` is what the directory said it is.
pub(crate) fn inspect(at: &Place, hint: FileType, parent: Option<Box<Item>>) -> Found {
    look(at, hint, parent).unwrap_or_else(Found::Problem)
}

fn look(at: &Place, hint: FileType, parent: Option<Box<Item>>) -> Result<Found, Problem> {
    if let Some(item) = parent {
        let meta = Meta::of(&status(at)?);
        if super::parent::is_unchanged(&item, &meta) {
            return Ok(Found::Unchanged { meta, item });
        }
    }
    if hint == FileType::RegularFile {
        match small_file(at) {
            // It was replaced by something else since it was listed.
            Err(Problem::Unreadable(Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::INVAL)) => {}
            result => return result,
        }
    }
    let stat = status(at)?;
    let meta = Meta::of(&stat);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if hint == FileType::RegularFile => Ok(Found::Stream),
        FileType::RegularFile => small_file(at),
        FileType::Symlink => {
            let target = readlinkat(&at.dir, &at.name, Vec::new())?.into_bytes();
            let meta = meta.with(attributes::of_path(&at.dir, &at.name)?);
            Ok(Found::Symlink { meta, target })
        }
        FileType::Fifo => Ok(Found::Fifo(meta.with(attributes::of_path(&at.dir, &at.name)?))),
        FileType::Socket => Ok(Found::Socket),
        // A directory in the place of something else: its content was not listed, so it counts as gone.
        FileType::Directory => Err(Problem::Vanished),
        _ => Ok(Found::Device),
    }
}

/// `lstat`.
pub(crate) fn status(at: &Place) -> Result<Stat, Problem> {
    Ok(statat(&at.dir, &at.name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Opens a regular file without following links, waiting for a pipe's writer, or touching its access time.
pub(crate) fn open(at: &Place) -> Result<Opened, Problem> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(&at.dir, &at.name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may leave the access time alone.
        Err(Errno::PERM) => openat(&at.dir, &at.name, flags, Mode::empty())?,
        result => result?,
    };
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Problem::Unreadable(Errno::INVAL));
    }
    Ok(Opened { file, stat })
}

fn small_file(at: &Place) -> Result<Found, Problem> {
    let opened = open(at)?;
    if opened.stat.st_nlink > 1 || Meta::of(&opened.stat).size > SMALL {
        return Ok(Found::Stream);
    }
    read_small(at, opened)
}

/// Reads a small file whole. If it changed meanwhile it is opened and read again, so that a file that was replaced
/// is taken as it is now; after the last try it is taken as it is, cut to the size it had.
pub(crate) fn read_small(at: &Place, mut opened: Opened) -> Result<Found, Problem> {
    let mut attempt = 0;
    loop {
        let settled = settle(&mut opened)?;
        let mut meta = Meta::of(&opened.stat);
        // A file that grew past the limit between two attempts is no longer a small one.
        if meta.size > SMALL {
            return Ok(Found::Stream);
        }
        let size = usize::try_from(meta.size).unwrap_or(usize::MAX);
        // One byte more than expected tells a file that grew.
        let mut content = Vec::with_capacity(size.saturating_add(1));
        loop {
            match rustix::io::read(&opened.file, spare_capacity(&mut content)) {
                Ok(0) => break,
                // What was announced was read; whether more was written since, the second look tells too.
                Ok(_) if content.len() >= size => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        meta = meta.with(attributes::of_file(&opened.file)?);
        let after = fstat(&opened.file)?;
        let quiet = settled && same(&opened.stat, &after) && content.len() == size;
        if quiet || attempt == RETRIES {
            content.truncate(size);
            meta.size = content.len() as u64;
            let sha256 = Digest::of(&content);
            return Ok(Found::File { meta, content, sha256, changed: !quiet });
        }
        attempt += 1;
        opened = open(at)?;
    }
}

/// Waits until a change from now on must show in the file's times, where the last one is so recent that it need not.
/// `false` if the file changed even while it was waited for.
///
/// From the look that `opened` then holds to any later one, equal times mean that nothing was written in between.
/// Waiting the whole tick after looking makes this true even where the times come from a server whose clock is ahead.
pub(crate) fn settle(opened: &mut Opened) -> Result<bool, Problem> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(tick) = unsettled(&opened.stat, since) else { return Ok(true) };
    sleep(tick);
    let before = std::mem::replace(&mut opened.stat, fstat(&opened.file)?);
    Ok(same(&before, &opened.stat))
}

/// How long to wait for the times of a file, at `now` after 1970, to tell one change from the next.
fn unsettled(stat: &Stat, now: Duration) -> Option<Duration> {
    let changed = file_time(stat.st_ctime, stat.st_ctime_nsec);
    let tick = if changed.nanos == 0 { COARSE_TICK } else { TICK };
    let safe_until = i128::try_from(now.saturating_sub(tick).as_nanos()).unwrap_or(i128::MAX);
    let changed = i128::from(changed.seconds) * 1_000_000_000 + i128::from(changed.nanos);
    (changed > safe_until).then_some(tick)
}

/// Whether a file was left alone between two looks at it.
pub(crate) fn same(before: &Stat, after: &Stat) -> bool {
    before.st_size == after.st_size
        && (before.st_mtime, before.st_mtime_nsec) == (after.st_mtime, after.st_mtime_nsec)
        && (before.st_ctime, before.st_ctime_nsec) == (after.st_ctime, after.st_ctime_nsec)
}

/// Opens a directory for listing, by its name in `dir`.
pub(crate) fn open_directory(dir: impl AsFd, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(&dir, name, flags, Mode::empty()),
        result => result,
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn file_time<N: TryInto<u32>>(seconds: i64, nanos: N) -> FileTime {
    FileTime { seconds, nanos: nanos.try_into().unwrap_or(0) }
}
