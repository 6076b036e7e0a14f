//! The table of contents at the beginning of an archive.

use backup_core::{Error, ErrorKind, Result};

/// Most bytes a head may have. A database with a million objects has about a gigabyte; this many is an attack.
const MAX_HEAD: usize = 1 << 30;

/// The states of an entry's data, `K_OFFSET_*` in `pg_backup_archiver.h`.
const OFFSET_SET: u8 = 2;
const NO_DATA: u8 = 3;

/// One object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) dump_id: i32,
    pub(crate) has_data: bool,
    pub(crate) tag: String,
    /// `TABLE`, `TABLE DATA`, `INDEX`, …
    pub(crate) desc: String,
    pub(crate) defn: String,
    /// `COPY … FROM stdin;`, for table data.
    pub(crate) copy: String,
    pub(crate) namespace: String,
    /// Dump ids this one depends on.
    pub(crate) depends: Vec<i32>,
    /// Where in the head the state byte is; the offset follows it.
    state_at: usize,
    /// Where in the head the number is that says whether there is data.
    dumper_at: usize,
}

/// The whole head, parsed, with its bytes.
#[derive(Debug)]
pub(crate) struct Head {
    /// Bytes of an integer and of an offset.
    pub(crate) int_size: usize,
    pub(crate) offset_size: usize,
    /// Whether table data is stored as it is.
    pub(crate) uncompressed: bool,
    pub(crate) entries: Vec<Entry>,
    /// The bytes of the head, as they were.
    pub(crate) bytes: Vec<u8>,
}

impl Head {
    /// The head as a seekable archive has it: the offset of each block that `offset_of` knows is filled in, all
    /// others are marked as having no data. Its length is that of the original.
    pub(crate) fn with_offsets(&self, offset_of: impl Fn(i32) -> Option<u64>) -> Vec<u8> {
        let mut patched = self.bytes.clone();
        for entry in self.entries.iter().filter(|e| e.has_data) {
            let (state, offset) = match offset_of(entry.dump_id) {
                Some(offset) => (OFFSET_SET, offset),
                None => (NO_DATA, 0),
            };
            let end = entry.state_at + 1 + self.offset_size;
            if let Some([first, rest @ ..]) = patched.get_mut(entry.state_at..end) {
                *first = state;
                rest.fill(0);
                rest.iter_mut().zip(offset.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
        }
        patched
    }
}

impl Head {
    /// The head as that of an archive without any data, so that `pg_restore` prints the definitions and nothing else,
    /// whichever sections it is asked for.
    pub(crate) fn without_data(&self) -> Vec<u8> {
        let mut patched = self.with_offsets(|_| None);
        for entry in self.entries.iter().filter(|e| e.has_data) {
            if let Some(number) = patched.get_mut(entry.dumper_at..entry.dumper_at + 1 + self.int_size) {
                number.fill(0);
            }
        }
        patched
    }
}

/// What [`HeadReader::push`] found.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More bytes are needed.
    More,
    /// The head is complete; the second part are the bytes behind it.
    Complete(Box<Head>, Vec<u8>),
}

/// Reads a head from pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    bytes: Vec<u8>,
    parsed: usize,
    fixed: Option<Fixed>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Fixed {
    version: (u8, u8, u8),
    int_size: usize,
    offset_size: usize,
    uncompressed: bool,
    count: i32,
}

impl HeadReader {
    /// Takes the next bytes. [`ErrorKind::Unsupported`] names an archive version this parser does not know;
    /// [`ErrorKind::Corrupt`] something that is not an archive.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Progress> {
        if self.bytes.len() + bytes.len() > MAX_HEAD {
            return Err(Error::new(ErrorKind::LimitExceeded, "read archive")
                .message("the table of contents has more than 1 GiB"));
        }
        self.bytes.extend_from_slice(bytes);
        if self.fixed.is_none() {
            let mut cursor = Cursor::new(&self.bytes, 0);
            match Fixed::read(&mut cursor)? {
                Some(fixed) => {
                    self.parsed = cursor.at;
                    self.fixed = Some(fixed);
                }
                None => return Ok(Progress::More),
            }
        }
        let Some(fixed) = self.fixed.clone() else { return Ok(Progress::More) };
        while self.entries.len() < usize::try_from(fixed.count).unwrap_or(0) {
            let mut cursor = Cursor::new(&self.bytes, self.parsed);
            cursor.int_size = fixed.int_size;
            let Some(entry) = Entry::read(&mut cursor, &fixed)? else { return Ok(Progress::More) };
            self.parsed = cursor.at;
            self.entries.push(entry);
        }
        let rest = self.bytes.split_off(self.parsed);
        Ok(Progress::Complete(
            Box::new(Head {
                int_size: fixed.int_size,
                offset_size: fixed.offset_size,
                uncompressed: fixed.uncompressed,
                entries: std::mem::take(&mut self.entries),
                bytes: std::mem::take(&mut self.bytes),
            }),
            rest,
        ))
    }
}

fn damaged(why: &'static str) -> Error {
    Error::corrupt("read archive", why)
}

/// Reads primitives; `Ok(None)` means that the bytes so far are too few.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, int_size: 4 }
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(n)?;
        let piece = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(piece)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).and_then(|b| b.first().copied())
    }

    fn int(&mut self) -> Result<Option<i32>> {
        let Some(bytes) = self.take(1 + self.int_size) else { return Ok(None) };
        read_int(bytes).map(Some)
    }

    /// A string; NULL and empty are the same to us, except that a list of dependencies ends with NULL.
    #[expect(clippy::option_option, reason = "too few bytes and NULL are different answers")]
    fn string(&mut self) -> Result<Option<Option<String>>> {
        let Some(length) = self.int()? else { return Ok(None) };
        if length < 0 {
            return Ok(Some(None));
        }
        let length = usize::try_from(length).map_err(|_| damaged("a string has a negative length"))?;
        if length > MAX_HEAD {
            return Err(damaged("a string is longer than a table of contents may be"));
        }
        Ok(self.take(length).map(|bytes| Some(String::from_utf8_lossy(bytes).into_owned())))
    }
}

/// An integer as archives have them: a sign byte, then little-endian bytes.
pub(super) fn read_int(bytes: &[u8]) -> Result<i32> {
    let Some((sign, digits)) = bytes.split_first() else { return Err(damaged("an integer is missing")) };
    let value = digits
        .iter()
        .rev()
        .try_fold(0_u32, |value, &digit| (value >> 24 == 0).then(|| (value << 8) | u32::from(digit)));
    let value = value.and_then(|v| i32::try_from(v).ok());
    match (sign, value) {
        (0, Some(value)) => Ok(value),
        (1, Some(value)) => Ok(-value),
        (0 | 1, None) => Err(damaged("an integer does not fit into 32 bits")),
        _ => Err(damaged("an integer has no sign; this is not an archive, or it is damaged")),
    }
}

/// `$e?` for `Result<Option<T>>`: returns `Ok(None)` when there are too few bytes.
macro_rules! need {
    ($value:expr) => {
        match $value {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

impl Fixed {
    fn read(cursor: &mut Cursor<'_>) -> Result<Option<Self>> {
        let magic = need!(cursor.take(5));
        if magic != b"PGDMP" {
            return Err(damaged("this is not a custom archive of pg_dump"));
        }
        let version = (need!(cursor.byte()), need!(cursor.byte()), need!(cursor.byte()));
        if !((1, 14)..=(1, 16)).contains(&(version.0, version.1)) {
            return Err(Error::new(ErrorKind::Unsupported, "read archive")
                .message("this build reads archive versions 1.14 to 1.16; pg_restore may read this one")
                .with("version", format_args!("{}.{}.{}", version.0, version.1, version.2)));
        }
        let (int_size, offset_size) = (usize::from(need!(cursor.byte())), usize::from(need!(cursor.byte())));
        let format = need!(cursor.byte());
        if !(1..=8).contains(&int_size) || !(1..=8).contains(&offset_size) || format != 1 {
            return Err(damaged("the head of the archive has impossible sizes"));
        }
        cursor.int_size = int_size;
        let uncompressed =
            if version.1 >= 15 { need!(cursor.byte()) == 0 } else { need!(cursor.int()?) == 0 };
        for _ in 0..7 {
            need!(cursor.int()?);
        }
        let _database = need!(cursor.string()?);
        let _server_version = need!(cursor.string()?);
        let _dump_version = need!(cursor.string()?);
        let count = need!(cursor.int()?);
        if count < 0 {
            return Err(damaged("the number of entries is negative"));
        }
        Ok(Some(Self { version, int_size, offset_size, uncompressed, count }))
    }
}

impl Entry {
    fn read(cursor: &mut Cursor<'_>, fixed: &Fixed) -> Result<Option<Self>> {
        let dump_id = need!(cursor.int()?);
        let dumper_at = cursor.at;
        let has_data = need!(cursor.int()?) != 0;
        let _catalog = need!(cursor.string()?);
        let _oid = need!(cursor.string()?);
        let tag = need!(cursor.string()?).unwrap_or_default();
        let desc = need!(cursor.string()?).unwrap_or_default();
        let _section = need!(cursor.int()?);
        let defn = need!(cursor.string()?).unwrap_or_default();
        let _drop = need!(cursor.string()?);
        let copy = need!(cursor.string()?).unwrap_or_default();
        let namespace = need!(cursor.string()?).unwrap_or_default();
        let _tablespace = need!(cursor.string()?);
        let _access_method = need!(cursor.string()?);
        if fixed.version.1 >= 16 {
            let _relkind = need!(cursor.int()?);
        }
        let _owner = need!(cursor.string()?);
        let _with_oids = need!(cursor.string()?);
        let mut depends = Vec::new();
        while let Some(id) = need!(cursor.string()?) {
            depends.push(id.parse().map_err(|_| damaged("a dependency is not a number"))?);
        }
        let state_at = cursor.at;
        need!(cursor.take(1 + fixed.offset_size));
        Ok(Some(Self { dump_id, has_data, tag, desc, defn, copy, namespace, depends, state_at, dumper_at }))
    }
}
