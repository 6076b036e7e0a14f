//! The skip-parser: finds keys and the raw bytes of their values in a stream, as it arrives.
//!
//! It does no input or output and holds at most a window of the stream (1 MiB unless told otherwise), whatever
//! the stream declares. Records are found in the caller's own buffer; only one that straddles two buffers is copied.

use backup_core::{Error, Result};

use super::crc64::Crc64;
use super::encoding::{Dialect, Encoding};
use super::error::RdbError;
use super::length::{Head, head};
use super::string::StoredString;
use super::visit::{Record, Visitor};
use super::walk::{Skip, Walker};

/// Newest version of the Redis format whose records this reader knows.
pub const NEWEST_VERSION: u32 = 13;
/// Since this version a checksum ends the stream.
const CHECKSUM_SINCE: u32 = 5;
/// Version numbers of Valkey's own format.
const VALKEY_VERSIONS: std::ops::RangeInclusive<u32> = 80..=89;

/// Values up to this many bytes are delivered whole.
pub const DEFAULT_WINDOW: usize = 1024 * 1024;
/// Longest key, auxiliary field or library of functions, in bytes.
pub const DEFAULT_NAME_LIMIT: usize = 16 * 1024 * 1024;

mod opcode;

/// Reads an RDB stream pushed to it in pieces of any size.
///
/// ```
/// use backup_redis::rdb::{Ignore, RdbReader};
/// let empty = [&b"REDIS0009\xff"[..], &[0; 8]].concat(); // eight zeros: the writer's checksums are off
/// let mut reader = RdbReader::new();
/// for byte in &empty {
///     reader.push(&[*byte], &mut Ignore)?;
/// }
/// reader.finish()?;
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Debug)]
pub struct RdbReader {
    state: State,
    carry: Vec<u8>,
    /// Offset of the first byte that was not consumed.
    offset: u64,
    crc: Crc64,
    /// Offset of the checksum.
    end: Option<u64>,
    dialect: Dialect,
    version: u32,
    db: u64,
    next: Attributes,
    window: usize,
    name_limit: usize,
}

/// What the opcodes before a key say of it.
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    expires_at: Option<i64>,
    idle: Option<u64>,
    frequency: Option<u8>,
}

#[derive(Debug)]
enum State {
    Header,
    Records,
    /// In a value that began at `at` from the start of its record and of which `walked` bytes were walked.
    Value {
        walker: Walker,
        encoding: Encoding,
        at: usize,
        walked: usize,
    },
    Large {
        walker: Walker,
    },
    ModuleAux {
        walker: Walker,
    },
    Trailer,
    /// The stored checksum is known and not yet compared.
    Ended {
        stored: u64,
    },
    Done,
}

/// What one step in the state of records made of the input.
enum Step<'a> {
    /// Go on with these bytes.
    Next(&'a [u8]),
    /// The input ends inside a record.
    More,
}

impl Default for RdbReader {
    fn default() -> Self {
        Self::new()
    }
}

impl RdbReader {
    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            carry: Vec::new(),
            offset: 0,
            crc: Crc64::new(),
            end: None,
            dialect: Dialect::Redis,
            version: 0,
            db: 0,
            next: Attributes::default(),
            window: DEFAULT_WINDOW,
            name_limit: DEFAULT_NAME_LIMIT,
        }
    }

    /// Delivers values up to `bytes` whole, larger ones in pieces. At least 64 KiB.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = bytes.max(64 * 1024);
        self
    }

    /// Refuses keys, auxiliary fields and libraries longer than `bytes`.
    pub fn name_limit(mut self, bytes: usize) -> Self {
        self.name_limit = bytes;
        self
    }

    /// Whether the end of the stream was seen and its checksum compared.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes. Returns how many of them belong to the stream: all, until its end is among them.
    pub fn push<V: Visitor>(&mut self, chunk: &[u8], visitor: &mut V) -> Result<usize> {
        let chunk_start = self.offset + self.carry.len() as u64;
        let mut rest = chunk;
        while !self.carry.is_empty() && !rest.is_empty() {
            // Copy no more than is likely needed to complete the record that straddles.
            let held = self.carry.len();
            let take = rest.len().min(held.max(4096));
            let (piece, after) = rest.split_at_checked(take).unwrap_or((rest, &[]));
            let mut joined = std::mem::take(&mut self.carry);
            joined.extend_from_slice(piece);
            let used = self.run(&joined, visitor)?;
            if used >= held {
                rest = rest.get(used - held..).unwrap_or_default();
                joined.clear();
            } else {
                joined.drain(..used);
                rest = after;
            }
            self.carry = joined;
        }
        if self.carry.is_empty() && !rest.is_empty() {
            let used = self.run(rest, visitor)?;
            let left = rest.get(used..).unwrap_or_default();
            if self.end.is_none() || matches!(self.state, State::Trailer) {
                self.carry.extend_from_slice(left);
                rest = &[];
            } else {
                rest = left;
            }
        }
        let summed = match self.end {
            Some(end) => {
                usize::try_from(end.saturating_sub(chunk_start)).unwrap_or(usize::MAX).min(chunk.len())
            }
            None => chunk.len(),
        };
        self.crc.update(chunk.get(..summed).unwrap_or_default());
        if let State::Ended { stored } = self.state {
            let computed = self.crc.value();
            if stored != 0 && stored != computed {
                return Err(RdbError::Checksum { stored, computed }.into());
            }
            self.state = State::Done;
            visitor.end(stored != 0)?;
        }
        Ok(chunk.len() - rest.len())
    }

    /// The input is over.
    ///
    /// # Errors
    ///
    /// [`RdbError::Truncated`] when the stream is not.
    pub fn finish(&self) -> Result<()> {
        if self.is_done() {
            Ok(())
        } else {
            Err(RdbError::Truncated { offset: self.offset + self.carry.len() as u64 }.into())
        }
    }

    /// Consumes what it can of contiguous bytes; returns how many.
    fn run<V: Visitor>(&mut self, input: &[u8], visitor: &mut V) -> Result<usize> {
        let mut rest = input;
        loop {
            let before = rest.len();
            let step = match &mut self.state {
                State::Header => self.header(rest, visitor)?,
                State::Records => self.records(rest, visitor)?,
                State::Value { .. } => self.value(rest, visitor)?,
                State::Large { walker } => {
                    let (used, done) = walker.walk(rest, &mut Skip).map_err(|e| e.shifted(self.offset))?;
                    let (piece, after) = rest.split_at_checked(used).unwrap_or((rest, &[]));
                    visitor.piece(piece)?;
                    if done {
                        visitor.large_end()?;
                        self.state = State::Records;
                        Step::Next(after)
                    } else {
                        self.offset += used as u64;
                        return Ok(input.len() - after.len());
                    }
                }
                State::ModuleAux { walker } => {
                    let (used, done) = walker.walk(rest, &mut Skip).map_err(|e| e.shifted(self.offset))?;
                    let after = rest.get(used..).unwrap_or_default();
                    if done {
                        self.state = State::Records;
                        Step::Next(after)
                    } else {
                        self.offset += used as u64;
                        return Ok(input.len() - after.len());
                    }
                }
                State::Trailer => match rest.split_first_chunk::<8>() {
                    None => Step::More,
                    Some((stored, after)) => {
                        self.state = State::Ended { stored: u64::from_le_bytes(*stored) };
                        Step::Next(after)
                    }
                },
                State::Ended { .. } | State::Done => Step::More,
            };
            match step {
                Step::More => return Ok(input.len() - rest.len()),
                Step::Next(after) => {
                    self.offset += (before - after.len()) as u64;
                    rest = after;
                }
            }
        }
    }

    fn header<'a, V: Visitor>(&mut self, input: &'a [u8], visitor: &mut V) -> Result<Step<'a>> {
        let Some((magic, after)) = input.split_at_checked(9) else {
            let wrong = |magic: &[u8]| input.iter().zip(magic).any(|(a, b)| a != b);
            if wrong(b"REDIS") && wrong(b"VALKEY") {
                return Err(RdbError::NotRdb.into());
            }
            return Ok(Step::More);
        };
        let (dialect, digits) = match (magic.strip_prefix(b"REDIS"), magic.strip_prefix(b"VALKEY")) {
            (Some(digits), _) => (Dialect::Redis, digits),
            (_, Some(digits)) => (Dialect::Valkey, digits),
            _ => return Err(RdbError::NotRdb.into()),
        };
        let version = std::str::from_utf8(digits)
            .ok()
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse::<u32>().ok())
            .ok_or(RdbError::NotRdb)?;
        let known = match dialect {
            Dialect::Redis => (1..=NEWEST_VERSION).contains(&version),
            Dialect::Valkey => VALKEY_VERSIONS.contains(&version),
        };
        if !known {
            return Err(RdbError::UnknownVersion(String::from_utf8_lossy(magic).into_owned()).into());
        }
        (self.dialect, self.version) = (dialect, version);
        visitor.header(dialect, version)?;
        self.state = State::Records;
        Ok(Step::Next(after))
    }

    /// Records one after the other, as far as they lie whole in the input. This is the fast path: it touches
    /// nothing of `self` but the attributes of the next key.
    fn records<'a, V: Visitor>(&mut self, input: &'a [u8], visitor: &mut V) -> Result<Step<'a>> {
        let base = self.offset;
        let mut rest = input;
        while let Some((&code, after)) = rest.split_first() {
            let offset = base + (input.len() - rest.len()) as u64;
            let at = |e: RdbError| Error::from(e.shifted(offset));
            let next = if code >= opcode::FIRST {
                self.opcode(code, after, offset, visitor)?
            } else {
                let Some(encoding) = Encoding::from_code(code, self.dialect) else {
                    return Err(RdbError::UnknownType { offset, code }.into());
                };
                match StoredString::cut(after).map_err(at)? {
                    None => {
                        self.limit(after, "key").map_err(at)?;
                        None
                    }
                    Some((key, value)) => {
                        if key.plain_len() > self.name_limit as u64 {
                            return Err(self.too_long("key").shifted(offset).into());
                        }
                        let single = matches!(encoding.layout(), [super::encoding::Op::Str(_)]);
                        let whole = if single { StoredString::cut(value).map_err(at)? } else { None };
                        if let Some((_, behind)) = whole
                            && value.len() - behind.len() <= self.window
                        {
                            let raw = value.get(..value.len() - behind.len()).unwrap_or_default();
                            let record = self.record(key, encoding, offset, rest.len() - value.len());
                            visitor.value(&record, raw)?;
                            self.next = Attributes::default();
                            Some(behind)
                        } else {
                            self.state = State::Value {
                                walker: Walker::new(encoding),
                                encoding,
                                at: rest.len() - value.len(),
                                walked: 0,
                            };
                            return Ok(Step::Next(rest));
                        }
                    }
                }
            };
            match next {
                Some(next) => rest = next,
                None => break,
            }
            if !matches!(self.state, State::Records) {
                return Ok(Step::Next(rest));
            }
        }
        if rest.len() == input.len() { Ok(Step::More) } else { Ok(Step::Next(rest)) }
    }

    #[inline]
    fn record<'a>(&self, key: StoredString<'a>, encoding: Encoding, offset: u64, at: usize) -> Record<'a> {
        Record {
            db: self.db,
            key,
            encoding,
            expires_at: self.next.expires_at,
            idle: self.next.idle,
            frequency: self.next.frequency,
            offset,
            value_offset: offset + at as u64,
        }
    }

    /// A value that did not lie whole in the input at the first try, or has an inner structure. The input begins
    /// at its record.
    fn value<'a, V: Visitor>(&mut self, input: &'a [u8], visitor: &mut V) -> Result<Step<'a>> {
        let State::Value { walker, encoding, at, walked } = &mut self.state else { return Ok(Step::More) };
        let (encoding, at) = (*encoding, *at);
        let ahead = input.get(at + *walked..).unwrap_or_default();
        let (used, done) = walker.walk(ahead, &mut Skip).map_err(|e| e.shifted(self.offset))?;
        *walked += used;
        let walked = *walked;
        if !done && walked <= self.window {
            return Ok(Step::More);
        }
        let raw = input.get(at..at + walked).unwrap_or_default();
        let after = input.get(at + walked..).unwrap_or_default();
        let large = walked > self.window;
        let key = StoredString::cut(input.get(1..).unwrap_or_default())
            .map_err(|e| e.shifted(self.offset))?
            .map(|(key, _)| key)
            .ok_or(RdbError::Malformed { offset: self.offset, what: "a key changed while it was read" })?;
        let record = self.record(key, encoding, self.offset, at);
        self.next = Attributes::default();
        if !large {
            self.state = State::Records;
            visitor.value(&record, raw)?;
            return Ok(Step::Next(after));
        }
        visitor.large(&record)?;
        visitor.piece(raw)?;
        if done {
            visitor.large_end()?;
            self.state = State::Records;
        } else if let State::Value { walker, .. } = std::mem::replace(&mut self.state, State::Records) {
            self.state = State::Large { walker };
        }
        Ok(Step::Next(after))
    }

    /// Fails when the string that begins `input` and is not all there is longer than may be waited for.
    fn limit(&self, input: &[u8], what: &'static str) -> Result<(), RdbError> {
        match head(input)? {
            Some((Head::Plain(n) | Head::Lzf { stored: n, .. }, _)) if n > self.name_limit as u64 => {
                Err(self.too_long(what))
            }
            _ => Ok(()),
        }
    }

    fn too_long(&self, what: &'static str) -> RdbError {
        RdbError::TooLong { offset: 0, what, limit: self.name_limit as u64 }
    }
}
