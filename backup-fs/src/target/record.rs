//! What was staged, kept in a file of the staging directory until it is proved.
//!
//! One record a file: holding them in memory would make a restore's memory grow with the number of files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};

use backup_core::{Digest, Error, ErrorKind, ItemKind, Result};

use super::entry::{Entry, PlannedMeta};
use crate::canonical::{FileTime, Xattrs};

/// How one item came to be where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Created from its member.
    Staged(Entry),
    /// A further name for what lies at `content`, a place.
    HardLink { item: Vec<u8>, place: Vec<u8>, link: Vec<u8>, content: Vec<u8> },
    /// The content of selected hard links, itself not selected: checked, not counted.
    Content { entry: Entry, sha256: Digest },
    /// Linked from the old tree, where it was exactly as recorded.
    Unchanged { item: Vec<u8>, place: Vec<u8> },
    /// A directory above the destination: counted as recorded, restored nowhere.
    Above(Entry),
}

/// Records being written.
#[derive(Debug)]
pub(crate) struct Spool {
    out: BufWriter<File>,
    line: Vec<u8>,
}

impl Spool {
    pub(crate) fn new(file: File) -> Self {
        Self { out: BufWriter::new(file), line: Vec::new() }
    }

    pub(crate) fn push(&mut self, record: &Record) -> Result<()> {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        encode(record, &mut line);
        let length = u32::try_from(line.len()).map_err(|_| unreadable())?;
        let written = self.out.write_all(&length.to_le_bytes()).and_then(|()| self.out.write_all(&line));
        self.line = line;
        written.map_err(|e| Error::io("note restored item", e))
    }

    /// The records so far, from the first.
    pub(crate) fn read(&mut self) -> Result<Records> {
        let file = self
            .out
            .flush()
            .and_then(|()| self.out.get_ref().try_clone())
            .and_then(|mut file| file.seek(SeekFrom::Start(0)).map(|_| file))
            .map_err(|e| Error::io("read notes of restored items", e))?;
        Ok(Records { from: BufReader::new(file) })
    }
}

/// Records being read.
#[derive(Debug)]
pub(crate) struct Records {
    from: BufReader<File>,
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let mut length = [0; 4];
        match self.from.read_exact(&mut length) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(e) => return Some(Err(Error::io("read notes of restored items", e))),
        }
        let mut line = Vec::new();
        let length = u64::from(u32::from_le_bytes(length));
        let read = self.from.by_ref().take(length).read_to_end(&mut line);
        Some(match read {
            Err(e) => Err(Error::io("read notes of restored items", e)),
            Ok(_) => decode(&line).ok_or_else(unreadable),
        })
    }
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Internal, "read notes of restored items")
        .message("the notes in the staging directory are not what was written")
}

fn encode(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Staged(entry) => {
            out.push(0);
            put_entry(out, entry);
        }
        Record::HardLink { item, place, link, content } => {
            out.push(1);
            put_all(out, [item, place, link, content]);
        }
        Record::Content { entry, sha256 } => {
            out.push(2);
            put_entry(out, entry);
            out.extend_from_slice(sha256.as_bytes());
        }
        Record::Unchanged { item, place } => {
            out.push(3);
            put_all(out, [item, place]);
        }
        Record::Above(entry) => {
            out.push(4);
            put_entry(out, entry);
        }
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_all<const N: usize>(out: &mut Vec<u8>, all: [&Vec<u8>; N]) {
    for bytes in all {
        put(out, bytes);
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.push(match entry.kind {
        ItemKind::File => 0,
        ItemKind::Directory => 1,
        ItemKind::Symlink => 2,
        _ => 3,
    });
    out.push(u8::from(entry.planned.set_owner));
    let planned = &entry.planned;
    for number in [entry.mode, entry.uid, entry.gid, planned.mode, planned.uid, planned.gid] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for time in [entry.mtime, planned.mtime] {
        out.extend_from_slice(&time.seconds.to_le_bytes());
        out.extend_from_slice(&time.nanos.to_le_bytes());
    }
    put_all(out, [&entry.item, &entry.place, &entry.link]);
    for (name, value) in &entry.xattrs {
        put(out, name);
        put(out, value);
    }
    // Names are not empty, so an empty one ends the list.
    put(out, b"");
}

fn decode(line: &[u8]) -> Option<Record> {
    let mut from = Fields(line);
    let record = match from.byte()? {
        0 => Record::Staged(from.entry()?),
        1 => Record::HardLink {
            item: from.bytes()?,
            place: from.bytes()?,
            link: from.bytes()?,
            content: from.bytes()?,
        },
        2 => Record::Content { entry: from.entry()?, sha256: Digest::from(from.array::<32>()?) },
        3 => Record::Unchanged { item: from.bytes()?, place: from.bytes()? },
        4 => Record::Above(from.entry()?),
        _ => return None,
    };
    from.0.is_empty().then_some(record)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn time(&mut self) -> Option<FileTime> {
        let seconds = i64::from_le_bytes(self.array()?);
        Some(FileTime { seconds, nanos: self.number()? })
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(u64::from_le_bytes(self.array()?)).ok()?;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head.to_vec())
    }

    fn entry(&mut self) -> Option<Entry> {
        let kind = match self.byte()? {
            0 => ItemKind::File,
            1 => ItemKind::Directory,
            2 => ItemKind::Symlink,
            _ => ItemKind::Fifo,
        };
        let set_owner = self.byte()? != 0;
        let (mode, uid, gid) = (self.number()?, self.number()?, self.number()?);
        let mut planned = PlannedMeta {
            mode: self.number()?,
            uid: self.number()?,
            gid: self.number()?,
            mtime: FileTime::default(),
            set_owner,
        };
        let mtime = self.time()?;
        planned.mtime = self.time()?;
        let (item, place, link) = (self.bytes()?, self.bytes()?, self.bytes()?);
        let mut xattrs = Xattrs::new();
        loop {
            let name = self.bytes()?;
            if name.is_empty() {
                break;
            }
            xattrs.insert(name, self.bytes()?);
        }
        Some(Entry { item, place, kind, mode, uid, gid, mtime, link, xattrs, planned })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_reads_back_as_it_was() {
        let entry = Entry {
            item: b"a/\xff".to_vec(),
            place: b"\xff".to_vec(),
            kind: ItemKind::Symlink,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            mtime: FileTime { seconds: -5, nanos: 999_999_999 },
            link: b"../x".to_vec(),
            xattrs: Xattrs::from([
                (b"user.a".to_vec(), Vec::new()),
                (b"user.b".to_vec(), b"\0\x01".to_vec()),
            ]),
            planned: PlannedMeta {
                mode: 0o755,
                uid: 3,
                gid: 4,
                mtime: FileTime { seconds: -6, nanos: 0 },
                set_owner: true,
            },
        };
        let names = |n: usize| vec![b'x'; n];
        let all = [
            Record::Staged(entry.clone()),
            Record::HardLink { item: names(1), place: names(2), link: names(3), content: names(4) },
            Record::Content { entry: entry.clone(), sha256: Digest::of(b"x") },
            Record::Unchanged { item: names(1), place: names(300) },
            Record::Above(entry),
        ];
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        for record in &all {
            spool.push(record).unwrap();
        }
        let back: Vec<Record> = spool.read().unwrap().map(Result::unwrap).collect();
        assert_eq!(back, all);
    }
}
