//! Putting the staged tree in place, and taking it back.
//!
//! Every step leaves either the old or the new tree complete. The exchange is one system call; what comes after it
//! (giving the old tree its name, removing the staging directory) is finished by the next restore to the same
//! destination if this process dies, because `swap.json` says which of the two trees is the new one.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{BackupId, Error, ErrorKind, ItemPath, Result, Undo};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, fsync, openat, renameat, renameat_with,
    statat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::mounts::{path_of, refuse_below};
use super::remove::{list, remove_tree};
use super::stage::{Found, Stage, TREE, prefix, random};
use super::{OPERATION, blocking, failed};

const JOURNAL: &str = "swap.json";
const UNFINISHED_JOURNAL: &str = "swap.json.new";
const OLD: &str = "old";
const MAX_JOURNAL: u64 = 64 * 1024;

/// What `swap.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    /// The destination's name.
    destination: ItemPath,
    /// Inode of the staged tree's root: whoever has it is the new tree.
    new_inode: u64,
    /// The name the old tree is to get.
    keep_as: ItemPath,
}

impl Journal {
    /// Whether it belongs to the destination `name`, and keeps the old tree beside it and nowhere else.
    fn speaks_of(&self, name: &[u8]) -> bool {
        let beside = [prefix(name).as_slice(), b"before-"].concat();
        self.destination.as_bytes() == name
            && self.keep_as.as_bytes().starts_with(&beside)
            && !self.keep_as.as_bytes().contains(&b'/')
    }
}

/// A step of a replacing swap, after which a test may stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Journaled,
    MovedAway,
    Exchanged,
    Kept,
}

/// Puts the staged tree in place of what was found there. `after` is called after each step.
pub(crate) fn swap(
    stage: &Stage,
    exchange: bool,
    mut after: impl FnMut(Step) -> Result<()>,
) -> Result<Option<Kept>> {
    let destination = &stage.destination;
    let (parent, name) = (&destination.parent, destination.name.as_slice());
    let io = |e: Errno| failed("put restored tree in place", name, e);
    let appeared = || {
        Error::new(ErrorKind::TargetNotEmpty, OPERATION)
            .message("something appeared at the destination while the restore ran; nothing was changed")
    };
    match &destination.found {
        Found::Nothing => {
            match renameat_with(&stage.wrapper, TREE, parent, name, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => return Err(appeared()),
                Err(Errno::INVAL | Errno::NOSYS) => {
                    // Without NOREPLACE a rename can still not replace a directory that has something in it.
                    renameat(&stage.wrapper, TREE, parent, name).map_err(io)?;
                }
                other => other.map_err(io)?,
            }
            fsync(parent).map_err(io)?;
            Ok(None)
        }
        Found::Empty(_) => {
            match renameat(&stage.wrapper, TREE, parent, name) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => return Err(appeared()),
                other => other.map_err(io)?,
            }
            fsync(parent).map_err(io)?;
            Ok(None)
        }
        Found::Tree { root, .. } => {
            let old = fstat(root).map_err(io)?.st_ino;
            let new = fstat(&stage.tree).map_err(io)?.st_ino;
            if inode(parent, name).map_err(io)? != Some(old) {
                return Err(appeared());
            }
            // Mounted while the restore ran.
            refuse_below(&path_of(&destination.parent_path, name), OPERATION)?;
            let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
            let keep_as = destination.sibling(&format!("before-{now}-{}", random()?));
            let about = Journal {
                destination: ItemPath::new(name),
                new_inode: new,
                keep_as: ItemPath::new(keep_as.as_slice()),
            };
            journal(stage, &about)?;
            after(Step::Journaled)?;
            let old_is_at = replace(stage, exchange, &mut after)?;
            let left = |error: Error| {
                error
                    .message(
                        "the restored tree is in place; the next restore here gives the old tree its name",
                    )
                    .with("old_tree", ItemPath::new(stage.name.as_slice()))
            };
            fsync(parent).map_err(|e| left(io(e)))?;
            after(Step::Exchanged)?;
            renameat(&stage.wrapper, old_is_at, parent, keep_as.as_slice())
                .map_err(|e| left(failed("name the old tree", &keep_as, e)))?;
            fsync(parent).map_err(io)?;
            after(Step::Kept)?;
            Ok(Some(Kept {
                parent: Arc::clone(parent),
                parent_path: destination.parent_path.clone(),
                name: name.to_vec(),
                old_name: keep_as,
                old_inode: old,
                new_inode: new,
            }))
        }
    }
}

/// Exchanges the trees; returns where in the staging directory the old one is now.
///
/// From the first rename on the staging directory holds the user's tree: dropping the stage must not remove it.
fn replace(
    stage: &Stage,
    exchange: bool,
    after: &mut impl FnMut(Step) -> Result<()>,
) -> Result<&'static str> {
    let (parent, name) = (&stage.destination.parent, stage.destination.name.as_slice());
    if exchange {
        match renameat_with(&stage.wrapper, TREE, parent, name, RenameFlags::EXCHANGE) {
            Ok(()) => {
                stage.keep();
                return Ok(TREE);
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(e) => return Err(failed("exchange old and restored tree", name, e)),
        }
    }
    renameat(parent, name, &stage.wrapper, OLD).map_err(|e| failed("move the old tree away", name, e))?;
    stage.keep();
    after(Step::MovedAway)?;
    if let Err(e) = renameat(&stage.wrapper, TREE, parent, name) {
        let error = failed("move the restored tree in place", name, e);
        return Err(match renameat(&stage.wrapper, OLD, parent, name) {
            Ok(()) => error,
            Err(_) => error.message("the old tree could not be moved back either; the next restore does it"),
        });
    }
    Ok(OLD)
}

fn journal(stage: &Stage, journal: &Journal) -> Result<()> {
    let io = |e| Error::io("write journal of the exchange", e);
    let text = serde_json::to_vec(journal)
        .map_err(|e| Error::new(ErrorKind::Internal, "write journal of the exchange").caused_by(e))?;
    let mut file = stage.file(UNFINISHED_JOURNAL)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io)?;
    renameat(&stage.wrapper, UNFINISHED_JOURNAL, &stage.wrapper, JOURNAL).map_err(|e| io(e.into()))?;
    fsync(&stage.wrapper).and_then(|()| fsync(&stage.destination.parent)).map_err(|e| io(e.into()))
}

fn inode(parent: &OwnedFd, name: &[u8]) -> Result<Option<u64>, Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Finishes or takes back what processes that died left beside the destination `name`.
pub(crate) fn recover(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    let prefix = prefix(name);
    let entries = list(parent).map_err(|e| Error::io("look for unfinished restores", e.into()))?;
    for (entry, is_dir) in entries {
        let Some(what) = entry.strip_prefix(prefix.as_slice()).filter(|_| is_dir) else { continue };
        if what.strip_prefix(b"restore-").is_some_and(is_stage) {
            recover_stage(parent, name, &entry)?;
        } else if what.strip_prefix(b"discard-").is_some_and(is_random) {
            remove_tree(parent, &entry)?;
        }
    }
    Ok(())
}

/// `<backup id>-<random>`: nothing a person would call a directory of theirs.
fn is_stage(text: &[u8]) -> bool {
    text.len().checked_sub(9).and_then(|at| text.split_at_checked(at)).is_some_and(|(id, rest)| {
        rest.strip_prefix(b"-").is_some_and(is_random)
            && str::from_utf8(id).is_ok_and(|id| id.parse::<BackupId>().is_ok())
    })
}

fn is_random(text: &[u8]) -> bool {
    text.len() == 8 && text.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

fn recover_stage(parent: &OwnedFd, name: &[u8], entry: &[u8]) -> Result<()> {
    let io = |e: Errno| failed("finish an earlier restore", entry, e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let wrapper = match openat(parent, entry, flags, Mode::empty()) {
        Ok(wrapper) => wrapper,
        // Gone meanwhile, or another user's.
        Err(Errno::NOENT | Errno::ACCESS) => return Ok(()),
        Err(e) => return Err(io(e)),
    };
    // In a directory that others may write to, anyone could have made one and put a journal in it.
    let stat = fstat(&wrapper).map_err(io)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Ok(());
    }
    if flock(&wrapper, FlockOperation::NonBlockingLockExclusive).is_err() {
        // Its process lives, or cannot be asked.
        return Ok(());
    }
    if let Some(journal) = read_journal(&wrapper)? {
        // It speaks of another destination, or cannot be read: then nobody knows which tree is the user's.
        let Some(journal) = journal.filter(|j| j.speaks_of(name)) else { return Ok(()) };
        // What is not the new tree is the user's, and never removed.
        for place in [TREE.as_bytes(), OLD.as_bytes()] {
            let Some(found) = inode(&wrapper, place).map_err(io)? else { continue };
            if found == journal.new_inode {
                continue;
            }
            match renameat_with(&wrapper, place, parent, name, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
                    let absent = inode(parent, name).map_err(io)?.is_none();
                    let to = if absent { name } else { journal.keep_as.as_bytes() };
                    renameat(&wrapper, place, parent, to).map_err(io)?;
                }
                Err(e) => return Err(io(e)),
            }
            fsync(parent).map_err(io)?;
        }
    }
    remove_tree(parent, entry)
}

/// The journal, if there is one, and if it can be understood.
#[allow(clippy::option_option, reason = "absent and unreadable mean opposite things here")]
fn read_journal(wrapper: &OwnedFd) -> Result<Option<Option<Journal>>> {
    let io = |e| Error::io("read journal of an earlier restore", e);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(wrapper, JOURNAL, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(io(e.into())),
    };
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_JOURNAL), &mut text).map_err(io)?;
    Ok(Some(serde_json::from_slice(&text).ok()))
}

/// The old tree, kept.
#[derive(Debug)]
pub(crate) struct Kept {
    parent: Arc<OwnedFd>,
    parent_path: PathBuf,
    name: Vec<u8>,
    old_name: Vec<u8>,
    old_inode: u64,
    new_inode: u64,
}

impl Kept {
    /// Where the old tree is.
    pub(crate) fn path(&self) -> String {
        path_of(&self.parent_path, &self.old_name).display().to_string()
    }

    fn undo(&self) -> Result<()> {
        let (parent, name, kept) = (&self.parent, self.name.as_slice(), self.old_name.as_slice());
        let io = |e: Errno| failed("put the old tree back", name, e);
        let here = inode(parent, name).map_err(io)?;
        if inode(parent, kept).map_err(io)? != Some(self.old_inode) || here != Some(self.new_inode) {
            return Err(Error::new(ErrorKind::WrongPlace, "put the old tree back")
                .message("the destination or the kept tree was moved or replaced meanwhile")
                .with("kept", self.path()));
        }
        refuse_below(&path_of(&self.parent_path, name), "put the old tree back")?;
        let discard = [prefix(name).as_slice(), b"discard-", random()?.as_bytes()].concat();
        match renameat_with(parent, kept, parent, name, RenameFlags::EXCHANGE) {
            Ok(()) => renameat(parent, kept, parent, discard.as_slice()).map_err(io)?,
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                renameat(parent, name, parent, discard.as_slice()).map_err(io)?;
                if let Err(e) = renameat(parent, kept, parent, name) {
                    renameat(parent, discard.as_slice(), parent, name).map_err(io)?;
                    return Err(io(e));
                }
            }
            Err(e) => return Err(io(e)),
        }
        fsync(parent).map_err(io)?;
        remove_tree(parent, &discard)
    }

    fn drop_old(&self) -> Result<()> {
        let (parent, kept) = (&self.parent, self.old_name.as_slice());
        let io = |e: Errno| failed("remove the old tree", kept, e);
        match inode(parent, kept).map_err(io)? {
            None => Ok(()),
            Some(found) if found == self.old_inode => {
                refuse_below(&path_of(&self.parent_path, kept), "remove the old tree")?;
                let discard = [prefix(&self.name).as_slice(), b"discard-", random()?.as_bytes()].concat();
                renameat(parent, kept, parent, discard.as_slice()).map_err(io)?;
                remove_tree(parent, &discard)
            }
            Some(_) => Err(Error::new(ErrorKind::WrongPlace, "remove the old tree")
                .message("what has its name now is something else")
                .with("kept", self.path())),
        }
    }
}

#[async_trait]
impl Undo for Kept {
    async fn undo(self: Box<Self>) -> Result<()> {
        blocking(move || Kept::undo(&self)).await
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        blocking(move || Kept::drop_old(&self)).await
    }
}

#[cfg(test)]
mod tests;
