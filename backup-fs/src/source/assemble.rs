//! From what was found to members, items and proofs, in archive order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{
    Digest, Earlier, Error, Finished, Item, ItemKind, ItemPath, ItemProof, ItemSpool, Proof, Proofs, Recipe,
    Result, SourceReport,
};
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::attributes;
use super::cursor::Cursor;
use super::earlier::Span;
use super::entry::{Found, Meta, Place, Problem, SMALL, open, read_small, settle};
use super::notes::Notes;
use super::output::{Output, stopped};
use super::owners::Owners;
use super::parent::{self, CHANGED, RACY};
use super::readahead::{Looked, Window, content_length};
use super::stream::{Trouble, copy, holes};
use crate::canonical::{Canonical, FileTime, PROOF_NAME};
use crate::config::Config;
use crate::tar::write::{Body, Member, padding};

/// Bytes of content after which their room in the window is given back.
const RELEASE: u64 = 1024 * 1024;

/// How to restore with GNU tar: all archives as one stream, so that the times of a directory that goes on in a later
/// archive are set last.
fn recipe() -> Recipe {
    Recipe {
        before: vec!["mkdir restored".to_owned()],
        joined: Some(
            "tar --extract --directory restored --ignore-zeros --preserve-permissions --same-owner \
             --numeric-owner --xattrs --xattrs-include='*' --acls"
                .to_owned(),
        ),
        joins_items: true,
        after: vec!["# The tree is in the directory `restored`.".to_owned()],
        ..Recipe::default()
    }
}

/// The first name of an inode with several, and how many may follow.
#[derive(Debug)]
struct FirstName {
    path: Vec<u8>,
    others: u64,
    /// What it was when it was archived: the number of an inode may be given to another file meanwhile.
    was: Version,
}

/// Size, mtime and ctime: what tells one version of a file from the next.
type Version = (u64, FileTime, FileTime);

fn version(meta: &Meta) -> Version {
    (meta.size, meta.mtime, meta.ctime)
}

/// Takes entries out of the window and writes them. See the [module](self).
#[derive(Debug)]
pub(crate) struct Assembler {
    out: Output,
    owners: Owners,
    /// Inodes with names still to come: memory grows with these only.
    links: HashMap<(u64, u64), FirstName>,
    notes: Notes,
    /// The items of ended archives, and what they prove.
    items: ItemSpool,
    proof: Proof,
    part: Part,
    /// What ended archives hold, where later runs may take them over.
    finished: Option<Archives>,
    /// Those that this run takes over.
    earlier: Vec<Earlier>,
}

/// What archives hold, by name.
pub(crate) type Archives = Arc<Mutex<BTreeMap<String, Finished>>>;

/// What the open archive holds.
#[derive(Debug, Default)]
struct Part {
    items: ItemSpool,
    proof: Proof,
    /// Its first and last entry.
    ends: Option<(ItemPath, ItemPath)>,
    /// It holds something that another run could not take for unchanged.
    unclear: bool,
}

impl Assembler {
    pub(crate) fn new(out: Output) -> Self {
        Self {
            out,
            owners: Owners::of_host(),
            links: HashMap::new(),
            notes: Notes::default(),
            items: ItemSpool::new(),
            proof: Proof::empty(),
            part: Part::default(),
            finished: None,
            earlier: Vec::new(),
        }
    }

    /// Tells what archives hold, so that later runs can take them over.
    pub(crate) fn telling(mut self, finished: Archives) -> Self {
        self.finished = Some(finished);
        self
    }

    /// Takes over archives.
    pub(crate) fn with(mut self, earlier: Vec<Earlier>) -> Self {
        self.out.spare(earlier.iter().map(|earlier| earlier.meta.name.as_ref()));
        self.earlier = earlier;
        self
    }

    /// Writes everything that comes through the window.
    pub(crate) fn run(&mut self, window: &Window) -> Result<()> {
        let mut batch = VecDeque::new();
        let mut done = 0;
        loop {
            window.take(&mut batch).map_err(|_| stopped())?;
            if batch.is_empty() {
                self.end_part()?;
                return self.out.finish();
            }
            while let Some(looked) = batch.pop_front() {
                self.out.check()?;
                done += content_length(&looked.found);
                self.entry(looked)?;
                if done >= RELEASE || batch.is_empty() {
                    window.release(done);
                    done = 0;
                }
            }
        }
    }

    /// Ends the open stream with `error`, or gives it back.
    pub(crate) fn fail(&mut self, error: Error) -> Option<Error> {
        self.out.fail(error)
    }

    /// What the source says in the end.
    pub(crate) fn report(self, config: &Config) -> Result<SourceReport> {
        let (warnings, details) = self.notes.finish(config)?;
        Ok(SourceReport {
            state: Some(parent::state()),
            proofs: Proofs::from([(PROOF_NAME.to_owned(), self.proof)]),
            items: self.items,
            details,
            warnings,
            recipe: recipe(),
            ..SourceReport::default()
        })
    }

    fn entry(&mut self, looked: Looked) -> Result<()> {
        let Looked { path, found, at } = looked;
        match found {
            Found::Directory(meta) => {
                self.notes.directories += 1;
                self.bare(&path, &meta, Body::Directory)
            }
            Found::Symlink { meta, target } => {
                if self.linked(&path, &meta)? {
                    return Ok(());
                }
                self.notes.symlinks += 1;
                self.bare(&path, &meta, Body::Symlink(&target))
            }
            Found::Fifo(meta) => {
                if self.linked(&path, &meta)? {
                    return Ok(());
                }
                self.notes.fifos += 1;
                self.bare(&path, &meta, Body::Fifo)
            }
            Found::File { meta, content, sha256, changed } => {
                self.small(&path, &meta, &content, sha256, changed)
            }
            Found::Stream => match at {
                Some(at) => self.stream(&path, &at),
                None => Ok(()),
            },
            Found::Unchanged { meta, item } => {
                if self.linked(&path, &meta)? {
                    return Ok(());
                }
                self.unchanged(&meta, &item)
            }
            Found::Socket => {
                self.notes.sockets += 1;
                Ok(())
            }
            Found::Device => {
                self.notes.device(&path);
                Ok(())
            }
            Found::Earlier(number) => self.take_over(number),
            Found::Note(warning) => {
                self.notes.warn(warning);
                Ok(())
            }
            Found::Problem(problem) => self.notes.problem(&path, &problem),
        }
    }

    /// Everything that an archive of an earlier run holds, in its place.
    fn take_over(&mut self, number: usize) -> Result<()> {
        let Some(earlier) = self.earlier.get(number).cloned() else { return Ok(()) };
        self.end_part()?;
        self.out.end_archive()?;
        self.out.earlier(earlier.meta)?;
        let (handle, cancelled) = self.out.context();
        let mut items = Cursor::of(earlier.items.as_ref(), handle, cancelled);
        while let Some(item) = items.take()? {
            self.notes.count(&item);
            if let Some(proof) = &item.proof {
                self.proof.merge(&proof.proof);
            }
            self.items.push(&item)?;
        }
        Ok(())
    }

    /// What the open archive holds is complete. To be called before its stream ends.
    fn end_part(&mut self) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        self.items.append(&part.items)?;
        self.proof.merge(&part.proof);
        if let (Some(finished), Some(name), Some((first, last)), false) =
            (&self.finished, self.out.name(), part.ends, part.unclear)
        {
            let proofs = Proofs::from([(PROOF_NAME.to_owned(), part.proof)]);
            let told = Finished { state: Span::new(first, last).state(), items: part.items, proofs };
            finished.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), told);
        }
        Ok(())
    }

    /// Adds an item to what the open archive holds.
    fn push(&mut self, item: &Item) -> Result<()> {
        if let Some(proof) = &item.proof {
            self.part.proof.merge(&proof.proof);
        }
        match &mut self.part.ends {
            Some((_, last)) => last.clone_from(&item.path),
            none => *none = Some((item.path.clone(), item.path.clone())),
        }
        self.part.items.push(item)
    }

    /// A member without content.
    fn bare(&mut self, path: &[u8], meta: &Meta, body: Body<'_>) -> Result<()> {
        let place = self.begin(path, meta, body)?;
        self.record(path, meta, body, place, None, Map::new())
    }

    fn small(
        &mut self,
        path: &[u8],
        meta: &Meta,
        content: &[u8],
        sha256: Digest,
        changed: bool,
    ) -> Result<()> {
        let body = Body::File { size: meta.size };
        let place = self.begin(path, meta, body)?;
        self.out.write(content)?;
        self.out.write_zeros(padding(meta.size) as u64)?;
        let mut attributes = Map::new();
        if changed {
            self.notes.changed(path, "it changed each time it was read; what was read last is archived");
            attributes.insert(CHANGED.to_owned(), true.into());
        }
        self.record(path, meta, body, place, Some(sha256), attributes)
    }

    /// A regular file that was left to its turn.
    fn stream(&mut self, path: &[u8], at: &Place) -> Result<()> {
        match self.try_stream(path, at)? {
            Ok(()) => Ok(()),
            // Replaced by something else since it was looked at.
            Err(Problem::Unreadable(Errno::LOOP | Errno::NXIO | Errno::INVAL)) => {
                self.notes.problem(path, &Problem::Vanished)
            }
            Err(problem) => self.notes.problem(path, &problem),
        }
    }

    fn try_stream(&mut self, path: &[u8], at: &Place) -> Result<Result<(), Problem>> {
        let mut opened = match open(at) {
            Ok(opened) => opened,
            Err(problem) => return Ok(Err(problem)),
        };
        let mut meta = Meta::of(&opened.stat);
        if self.linked(path, &meta)? {
            return Ok(Ok(()));
        }
        if meta.size <= SMALL {
            match read_small(at, opened) {
                Ok(Found::File { meta, content, sha256, changed }) => {
                    return self.small(path, &meta, &content, sha256, changed).map(Ok);
                }
                // It has grown.
                Ok(_) => match open(at) {
                    Ok(again) => opened = again,
                    Err(problem) => return Ok(Err(problem)),
                },
                Err(problem) => return Ok(Err(problem)),
            }
        }
        let settled = match settle(&mut opened) {
            Ok(settled) => settled,
            Err(problem) => return Ok(Err(problem)),
        };
        meta = match attributes::of_file(&opened.file) {
            Ok(attributes) => Meta::of(&opened.stat).with(attributes),
            Err(problem) => return Ok(Err(problem)),
        };
        let size = meta.size;
        let sparse = holes(&opened, size).map(|map| (map.encode(), map));
        let body = match &sparse {
            Some((encoded, map)) => Body::Sparse { size, stored: encoded.len() as u64 + map.data() },
            None => Body::File { size },
        };
        let place = self.begin(path, &meta, body)?;
        if let Some((encoded, _)) = &sparse {
            self.out.write(encoded)?;
        }
        let mut streamed = copy(&opened, size, sparse.as_ref().map(|(_, map)| map), &mut self.out)?;
        if !settled {
            streamed.trouble.get_or_insert(Trouble::Changed);
        }
        self.out.write_zeros(padding(body.stored()) as u64)?;
        let mut attributes = Map::new();
        if sparse.is_some() {
            attributes.insert("sparse".to_owned(), true.into());
        }
        if streamed.trouble.is_some() {
            attributes.insert(CHANGED.to_owned(), true.into());
        }
        match streamed.trouble {
            None => {}
            Some(Trouble::Changed) => {
                self.notes.changed(path, "it changed while it was read; it is archived in its first size");
            }
            Some(Trouble::Shrunk) => {
                self.notes.changed(path, "it shrank while it was read; zeros are archived for what was gone");
            }
            Some(Trouble::Unreadable(errno)) => {
                self.notes.problem(path, &Problem::Unreadable(errno))?;
            }
        }
        self.record(path, &meta, body, place, Some(streamed.sha256), attributes).map(Ok)
    }

    /// A file that is archived where the parent backup has it.
    fn unchanged(&mut self, meta: &Meta, item: &Item) -> Result<()> {
        self.notes.files += 1;
        self.notes.unchanged += 1;
        self.notes.bytes += meta.size;
        self.notes.unchanged_bytes += meta.size;
        self.remember(item.path.as_bytes(), meta);
        // It lies in another backup.
        self.part.unclear = true;
        self.push(item)
    }

    /// If an earlier name of the inode was archived, archives this one as a hard link.
    fn linked(&mut self, path: &[u8], meta: &Meta) -> Result<bool> {
        if meta.links <= 1 {
            return Ok(false);
        }
        let key = (meta.dev, meta.inode);
        let Some(first) = self.links.get_mut(&key) else { return Ok(false) };
        if first.was != version(meta) {
            self.links.remove(&key);
            self.notes.unlinked(path);
            return Ok(false);
        }
        first.others = first.others.saturating_sub(1);
        let target = if first.others == 0 {
            self.links.remove(&key).map(|first| first.path).unwrap_or_default()
        } else {
            first.path.clone()
        };
        self.notes.hard_links += 1;
        let body = Body::HardLink(&target);
        let place = self.begin(path, meta, body)?;
        self.record(path, meta, body, place, None, Map::new())?;
        Ok(true)
    }

    /// Remembers the first name of an inode that has several.
    fn remember(&mut self, path: &[u8], meta: &Meta) {
        if meta.links > 1 {
            let first = FirstName { path: path.to_vec(), others: meta.links - 1, was: version(meta) };
            self.links.insert((meta.dev, meta.inode), first);
        }
    }

    /// Writes a member's headers.
    fn begin(&mut self, path: &[u8], meta: &Meta, body: Body<'_>) -> Result<Written> {
        let member = Member {
            body,
            path,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            user: self.owners.user(meta.uid),
            group: self.owners.group(meta.gid),
            mtime: meta.mtime,
            xattrs: &meta.xattrs,
        };
        let headers = member.headers();
        let length = member.length(headers.len());
        if self.out.is_full(length) {
            self.end_part()?;
            self.out.end_archive()?;
        }
        let (artifact, offset) = self.out.begin_member()?;
        self.out.write(&headers)?;
        Ok(Written { artifact, offset, length })
    }

    /// Records what a member holds.
    fn record(
        &mut self,
        path: &[u8],
        meta: &Meta,
        body: Body<'_>,
        place: Written,
        sha256: Option<Digest>,
        mut attributes: Map<String, Value>,
    ) -> Result<()> {
        let (kind, link) = match body {
            Body::File { .. } | Body::Sparse { .. } => (ItemKind::File, None),
            Body::Directory => (ItemKind::Directory, None),
            Body::Symlink(target) => (ItemKind::Symlink, Some(target)),
            Body::HardLink(first) => (ItemKind::HardLink, Some(first)),
            Body::Fifo => (ItemKind::Fifo, None),
        };
        let size = if kind == ItemKind::File { meta.size } else { 0 };
        let canonical = match body {
            Body::HardLink(first) => Canonical::hard_link(path, first),
            _ => Canonical {
                path,
                kind,
                mode: meta.mode,
                uid: meta.uid,
                gid: meta.gid,
                mtime: meta.mtime,
                link: link.unwrap_or_default(),
                sha256,
                xattrs: &meta.xattrs,
            },
        };
        let proof = canonical.proof();
        // Further names refer to earlier archives, and times that cannot tell one change from the next tell nothing.
        self.part.unclear |= kind == ItemKind::HardLink
            || (kind != ItemKind::Directory && meta.links > 1)
            || meta.racy
            || meta.hidden_xattrs
            || attributes.contains_key(CHANGED);
        if kind == ItemKind::File {
            self.notes.files += 1;
            self.notes.bytes += size;
            if meta.racy {
                attributes.insert(RACY.to_owned(), true.into());
            }
        }
        if kind != ItemKind::HardLink {
            if kind != ItemKind::Directory {
                self.remember(path, meta);
            }
            self.describe(meta, &mut attributes);
            if meta.hidden_xattrs {
                self.notes.hidden_xattrs(path);
            }
        }
        self.push(&Item {
            path: ItemPath::new(path),
            kind,
            origin: None,
            artifact: place.artifact.into(),
            offset: place.offset,
            length: place.length,
            size,
            sha256,
            proof: Some(ItemProof { of: PROOF_NAME.into(), proof }),
            link: link.map(ItemPath::new),
            attributes,
        })
    }

    fn describe(&self, meta: &Meta, attributes: &mut Map<String, Value>) {
        let mut set = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
        set("mode", meta.mode.into());
        set("uid", meta.uid.into());
        set("gid", meta.gid.into());
        set("mtime", meta.mtime.as_nanos().into());
        set("ctime", meta.ctime.as_nanos().into());
        set("inode", meta.inode.into());
        for (name, owner) in [("user", self.owners.user(meta.uid)), ("group", self.owners.group(meta.gid))] {
            if !owner.is_empty() {
                set(name, String::from_utf8_lossy(owner).into());
            }
        }
        if !meta.xattrs.is_empty() {
            set("xattrs", meta.xattrs.len().into());
        }
    }
}

/// Where a member was written.
#[derive(Debug)]
struct Written {
    artifact: String,
    offset: u64,
    length: u64,
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_file_that_is_another_version_is_not_a_further_name_of_the_first() {
        let runtime = Runtime::new().unwrap();
        let (announce, _artifacts) = mpsc::channel(1);
        let cancelled = backup_core::CancellationToken::new();
        let out = Output::new(announce, 1 << 20, runtime.handle().clone(), cancelled);
        let mut assembler = Assembler::new(out);
        let file = tempfile::tempfile().unwrap();
        let mut meta = Meta::of(&rustix::fs::fstat(&file).unwrap());
        meta.links = 3;
        let later = FileTime { seconds: meta.ctime.seconds, nanos: meta.ctime.nanos ^ 1 };
        for other in [
            Meta { size: 1, ..meta.clone() },
            Meta { ctime: later, ..meta.clone() },
            Meta { mtime: later, ..meta.clone() },
        ] {
            assembler.remember(b"first", &meta);
            assert!(!assembler.linked(b"second", &other).unwrap());
            assert!(assembler.links.is_empty(), "what was recorded of it is over");
        }
    }
}
