//! Streams: entries packed in nodes (`t_stream.c`).

use std::fmt;

use super::decode::{Part, Parts};
use super::error::RdbError;
use super::packed::Entry;

/// The id of a stream's entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Milliseconds since 1970.
    pub ms: u64,
    /// Number within the millisecond.
    pub seq: u64,
}

impl StreamId {
    /// From its 16 bytes; missing ones count as 0.
    pub(crate) fn from_big_endian(bytes: &[u8]) -> Self {
        let half = |b: Option<&[u8; 8]>| b.map_or(0, |b| u64::from_be_bytes(*b));
        Self { ms: half(bytes.first_chunk()), seq: half(bytes.get(8..).and_then(|b| b.first_chunk())) }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

const DAMAGED: RdbError = RdbError::malformed("a stream's node is damaged");
const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;

/// What the next entry of the listpack is.
enum Expect {
    /// Of the master entry: number of entries, of deleted ones, of fields.
    Count,
    DeletedCount,
    FieldCount,
    MasterField(u64),
    MasterEnd,
    Flags,
    Ms,
    Seq,
    OwnCount,
    /// So many fields and values are left.
    Pairs {
        left: u64,
        field: bool,
    },
    Back,
}

/// Reads the listpack of a node: a master entry that says the fields most entries have, and the entries.
pub(super) struct Node {
    master: StreamId,
    /// The master's fields, each with its length (4 bytes) before it.
    fields: Vec<u8>,
    count: u64,
    expect: Expect,
    flags: i64,
    id: StreamId,
    /// Position of the next master field in `fields`.
    at: usize,
}

impl Node {
    pub(super) fn new(master: StreamId) -> Self {
        Self { master, fields: Vec::new(), count: 0, expect: Expect::Count, flags: 0, id: master, at: 0 }
    }

    /// Takes the next entry of the listpack.
    pub(super) fn entry(&mut self, entry: Entry<'_>, parts: &mut impl Parts) -> Result<(), RdbError> {
        let int = || entry.int().ok_or(DAMAGED);
        let size = || int().and_then(|n| u64::try_from(n).map_err(|_| DAMAGED));
        self.expect = match self.expect {
            Expect::Count => Expect::DeletedCount,
            Expect::DeletedCount => Expect::FieldCount,
            Expect::FieldCount => {
                self.count = size()?;
                if self.count == 0 { Expect::MasterEnd } else { Expect::MasterField(self.count) }
            }
            Expect::MasterField(left) => {
                let mut text = [0; 20];
                let name = entry.bytes(&mut text);
                let length = u32::try_from(name.len()).map_err(|_| DAMAGED)?;
                self.fields.extend_from_slice(&length.to_le_bytes());
                self.fields.extend_from_slice(name);
                if left > 1 { Expect::MasterField(left - 1) } else { Expect::MasterEnd }
            }
            Expect::MasterEnd | Expect::Back => Expect::Flags,
            Expect::Flags => {
                self.flags = int()?;
                Expect::Ms
            }
            Expect::Ms => {
                // Differences wrap as the server's unsigned arithmetic does.
                self.id.ms = self.master.ms.wrapping_add(int()?.cast_unsigned());
                Expect::Seq
            }
            Expect::Seq => {
                self.id.seq = self.master.seq.wrapping_add(int()?.cast_unsigned());
                if self.flags & SAME_FIELDS == 0 { Expect::OwnCount } else { self.begin(self.count, parts)? }
            }
            Expect::OwnCount => self.begin(size()?, parts)?,
            Expect::Pairs { left, field } => {
                let live = self.flags & DELETED == 0;
                let same = self.flags & SAME_FIELDS != 0;
                if live {
                    if same {
                        parts.part(Part::Bytes(self.next_field()?))?;
                    }
                    parts.part(Part::Bytes(entry.bytes(&mut [0; 20])))?;
                }
                let left = if same || !field { left - 1 } else { left };
                if left == 0 { Expect::Back } else { Expect::Pairs { left, field: !field } }
            }
        };
        Ok(())
    }

    fn begin(&mut self, pairs: u64, parts: &mut impl Parts) -> Result<Expect, RdbError> {
        self.at = 0;
        if self.flags & DELETED == 0 {
            parts.part(Part::Entry(self.id, pairs))?;
        }
        Ok(if pairs == 0 { Expect::Back } else { Expect::Pairs { left: pairs, field: true } })
    }

    fn next_field(&mut self) -> Result<&[u8], RdbError> {
        let rest = self.fields.get(self.at..).unwrap_or_default();
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(DAMAGED)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| DAMAGED)?;
        self.at += 4 + length;
        rest.get(..length).ok_or(DAMAGED)
    }

    /// The listpack is over.
    pub(super) fn finish(&self) -> Result<(), RdbError> {
        if matches!(self.expect, Expect::Flags) { Ok(()) } else { Err(DAMAGED) }
    }
}
