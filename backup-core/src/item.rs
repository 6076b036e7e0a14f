//! What a backup contains: one [`Item`] per file, table, collection or key space.
//!
//! Items are what `contents` lists, what a partial restore selects, and what an incremental backup refers to.
//! There may be millions, so they are never held as values: a source pushes them into an [`ItemSpool`],
//! which keeps them compressed, and readers stream them.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::name::BackupId;
use crate::proof::Proof;

/// The name of an item: any bytes, `/`-separated where it has a hierarchy.
///
/// In JSON and in print it is text: `%`, control characters and bytes that are not UTF-8 appear as `%XX`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ItemPath(Vec<u8>);

impl ItemPath {
    /// Takes the raw bytes of a name.
    pub fn new(raw: impl Into<Vec<u8>>) -> Self {
        Self(raw.into())
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &ItemPath) -> bool {
        self.0 == ancestor.0
            || (self.0.starts_with(&ancestor.0)
                && (ancestor.0.is_empty() || self.0.get(ancestor.0.len()) == Some(&b'/')))
    }
}

impl From<&str> for ItemPath {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for ItemPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '%' || c.is_control() {
                    let mut utf8 = [0; 4];
                    for byte in c.encode_utf8(&mut utf8).bytes() {
                        write!(f, "%{byte:02X}")?;
                    }
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ItemPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemPath({self})")
    }
}

impl TryFrom<String> for ItemPath {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        let mut raw = Vec::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some((plain, escaped)) = rest.split_once('%') {
            raw.extend_from_slice(plain.as_bytes());
            let digits = escaped
                .get(..2)
                .ok_or_else(|| Error::corrupt("read item name", "a `%` without two digits"))?;
            let byte = u8::from_str_radix(digits, 16)
                .map_err(|_| Error::corrupt("read item name", "a `%` without two hexadecimal digits"))?;
            raw.push(byte);
            rest = escaped.get(2..).unwrap_or("");
        }
        raw.extend_from_slice(rest.as_bytes());
        Ok(Self(raw))
    }
}

impl From<ItemPath> for String {
    fn from(path: ItemPath) -> Self {
        path.to_string()
    }
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ItemKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A further name of a file listed before.
    HardLink,
    /// A named pipe.
    Fifo,
    /// A database.
    Database,
    /// A table.
    Table,
    /// A collection of documents or vectors.
    Collection,
    /// A range of keys of a key-value store.
    Keyspace,
    /// Something else; `attributes` tell.
    #[serde(other)]
    Other,
}

/// What one item proves, and to which of the backup's proofs it adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemProof {
    /// The name in [`Proofs`](crate::Proofs) this item adds to.
    pub of: Cow<'static, str>,
    /// The item's own part.
    #[serde(flatten)]
    pub proof: Proof,
}

/// One thing a backup contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub path: ItemPath,
    /// What it is.
    pub kind: ItemKind,
    /// The backup whose artifact holds its bytes; `None` means this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<BackupId>,
    /// The artifact that holds its bytes.
    pub artifact: Cow<'static, str>,
    /// Where its bytes begin in the artifact's plain bytes.
    pub offset: u64,
    /// How many plain bytes of the artifact belong to it (for files in tar: headers, data and padding).
    pub length: u64,
    /// Its logical size in bytes.
    #[serde(default)]
    pub size: u64,
    /// SHA-256 of its logical content, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Its part of the proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ItemProof>,
    /// For links: what it points to. A hard link names the item that carries the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<ItemPath>,
    /// What else the source records (owner, mode, times; rows, columns).
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub attributes: Map<String, Value>,
}

/// Plain bytes of JSON lines gathered before they are compressed.
const SPOOL_BLOCK: usize = 128 * 1024;
/// Longest line a reader accepts, in bytes. A path may have 4 KiB, thrice that when escaped.
const MAX_LINE: u64 = 1024 * 1024;

/// Items in the order they were pushed, kept as compressed JSON lines: about 120 bytes of memory each.
#[derive(Default)]
pub struct ItemSpool {
    blocks: Vec<Bytes>,
    open: Vec<u8>,
    count: u64,
}

impl ItemSpool {
    /// An empty spool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an item.
    pub fn push(&mut self, item: &Item) -> Result<()> {
        serde_json::to_writer(&mut self.open, item)
            .map_err(|e| Error::new(crate::ErrorKind::Internal, "record item").caused_by(e))?;
        self.open.push(b'\n');
        self.count += 1;
        if self.open.len() >= SPOOL_BLOCK {
            self.blocks.push(compress(&self.open)?);
            self.open.clear();
        }
        Ok(())
    }

    /// Appends all items of `other`, sharing what it holds.
    pub fn append(&mut self, other: &Self) -> Result<()> {
        if !self.open.is_empty() {
            self.blocks.push(compress(&self.open)?);
            self.open.clear();
        }
        self.blocks.extend(other.blocks.iter().cloned());
        self.open.extend_from_slice(&other.open);
        self.count += other.count;
        Ok(())
    }

    /// Number of items.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items as JSON lines, in pieces of at most a few hundred KiB that end at line ends.
    pub fn json_lines(&self) -> impl Iterator<Item = Result<Bytes>> + '_ {
        let open = (!self.open.is_empty()).then(|| Ok(Bytes::copy_from_slice(&self.open)));
        self.blocks.iter().map(decompress).chain(open)
    }

    /// Like [`json_lines`](Self::json_lines), freeing each block after it was yielded.
    pub fn into_json_lines(self) -> impl Iterator<Item = Result<Bytes>> + Send + 'static {
        let open = (!self.open.is_empty()).then(|| Ok(Bytes::from(self.open)));
        self.blocks.into_iter().map(|block| decompress(&block)).chain(open)
    }

    /// The items.
    pub fn iter(&self) -> impl Iterator<Item = Result<Item>> + '_ {
        self.json_lines().flat_map(|block| match block {
            Ok(block) => block
                .split(|&b| b == b'\n')
                .filter(|line| !line.is_empty())
                .map(parse_item)
                .collect::<Vec<_>>(),
            Err(e) => vec![Err(e)],
        })
    }
}

impl fmt::Debug for ItemSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemSpool({} items)", self.count)
    }
}

/// Reads one line of [`ItemSpool::json_lines`].
pub fn parse_item(line: &[u8]) -> Result<Item> {
    serde_json::from_slice(line)
        .map_err(|e| Error::corrupt("read item", "a line of the item list cannot be read").caused_by(e))
}

fn compress(plain: &[u8]) -> Result<Bytes> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(plain).map_err(|e| Error::io("record item", e))?;
    let mut packed = encoder.finish().map_err(|e| Error::io("record item", e))?;
    packed.shrink_to_fit();
    Ok(packed.into())
}

fn decompress(packed: &Bytes) -> Result<Bytes> {
    let mut plain = Vec::with_capacity(SPOOL_BLOCK + 1024);
    let mut reader = BufReader::new(flate2::bufread::DeflateDecoder::new(&packed[..]));
    loop {
        let n = std::io::Read::take(&mut reader, MAX_LINE)
            .read_until(b'\n', &mut plain)
            .map_err(|e| Error::io("read item", e))?;
        if n == 0 {
            return Ok(plain.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(path: Vec<u8>, n: u64) -> Item {
        Item {
            path: ItemPath::new(path),
            kind: ItemKind::File,
            origin: None,
            artifact: "files-00001".into(),
            offset: n * 1024,
            length: 1024,
            size: n,
            sha256: Some(Digest::of(&n.to_le_bytes())),
            proof: Some(ItemProof { of: "files".into(), proof: Proof::of([&n.to_le_bytes()[..]]) }),
            link: None,
            attributes: Map::new(),
        }
    }

    #[test]
    fn a_hundred_thousand_items_take_less_than_200_bytes_each() {
        let mut spool = ItemSpool::new();
        let count = 20_000u64;
        for n in 0..count {
            spool
                .push(&item(format!("storage/books/epub/{:03}/{n:08}.epub", n % 977).into_bytes(), n))
                .unwrap();
        }
        let held = spool.blocks.iter().map(Bytes::len).sum::<usize>() + spool.open.capacity();
        assert!(held as u64 / count < 200, "{} bytes an item", held as u64 / count);
        let mut back = 0;
        for (n, read) in spool.iter().enumerate() {
            assert_eq!(read.unwrap().size, n as u64);
            back += 1;
        }
        assert_eq!(back, count);
    }

    #[test]
    fn appended_items_follow_those_that_are_there() {
        let spool = |numbers: std::ops::Range<u64>| {
            let mut spool = ItemSpool::new();
            numbers.for_each(|n| spool.push(&item(b"x".to_vec(), n)).unwrap());
            spool
        };
        let mut all = spool(0..3);
        all.append(&spool(3..2_000)).unwrap();
        all.append(&ItemSpool::new()).unwrap();
        all.push(&item(b"x".to_vec(), 2_000)).unwrap();
        assert_eq!(all.len(), 2_001);
        let read: Vec<u64> = all.iter().map(|item| item.unwrap().size).collect();
        assert!(read.into_iter().eq(0..2_001));
    }

    proptest! {
        #[test]
        fn any_path_survives_json(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            let before = item(raw, 7);
            let mut spool = ItemSpool::new();
            spool.push(&before).unwrap();
            prop_assert_eq!(spool.iter().next().unwrap().unwrap(), before);
        }
    }
}
