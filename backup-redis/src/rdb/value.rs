//! Values as values: the full decoder.

use super::decode::{Part, Parts, decode};
use super::encoding::{Encoding, Kind};
use super::error::RdbError;
use super::stream::StreamId;

/// A decoded value, whole in memory. Decode a record of bounded size only: what
/// [`Visitor::value`](super::Visitor::value) delivers is bounded by the reader's window (compressed strings yield
/// up to 88 times their stored bytes).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A string.
    String(Vec<u8>),
    /// A list, in order.
    List(Vec<Vec<u8>>),
    /// A set, in the order of the stream.
    Set(Vec<Vec<u8>>),
    /// A sorted set: members and scores, in the order of the stream.
    SortedSet(Vec<(Vec<u8>, f64)>),
    /// A hash, in the order of the stream.
    Hash(Vec<HashField>),
    /// A stream.
    Stream(Stream),
    /// A module's value: the module's id. Its content is known to the module alone.
    Module(u64),
}

/// A field of a hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashField {
    /// Its name.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// When it expires, in milliseconds since 1970.
    pub expires_at: Option<i64>,
}

/// A stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Entries that are not deleted, in order.
    pub entries: Vec<StreamEntry>,
    /// The highest id ever added.
    pub last_id: StreamId,
    /// How many entries the stream says it has.
    pub length: u64,
    /// The highest id ever deleted, since Redis 7.0.
    pub max_deleted_id: Option<StreamId>,
    /// How many entries were ever added, since Redis 7.0.
    pub entries_added: Option<u64>,
    /// Its consumer groups.
    pub groups: Vec<Group>,
}

/// An entry of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its id.
    pub id: StreamId,
    /// Fields and values, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Vec<u8>,
    /// The last id delivered.
    pub last_id: StreamId,
    /// How many entries it has read, since Redis 7.0; `u64::MAX` where the server does not know.
    pub entries_read: Option<u64>,
    /// Entries delivered and not acknowledged.
    pub pending: Vec<PendingEntry>,
    /// Its consumers.
    pub consumers: Vec<Consumer>,
}

/// An entry delivered and not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingEntry {
    /// The entry.
    pub id: StreamId,
    /// When it was delivered last, in milliseconds since 1970.
    pub delivered_at: i64,
    /// How often it was delivered.
    pub count: u64,
}

/// A consumer of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: Vec<u8>,
    /// When it was seen last, in milliseconds since 1970.
    pub seen_at: i64,
    /// When it read last, in milliseconds since 1970, since Redis 7.2; -1 for never.
    pub active_at: Option<i64>,
    /// The pending entries it owns.
    pub pending: Vec<StreamId>,
}

impl Value {
    /// Decodes the raw bytes of a value.
    ///
    /// # Errors
    ///
    /// [`RdbError::Malformed`] when they are not what `encoding` says.
    pub fn decode(encoding: Encoding, raw: &[u8]) -> Result<Self, RdbError> {
        let mut builder = Builder {
            value: match encoding.kind() {
                Kind::String => Self::String(Vec::new()),
                Kind::List => Self::List(Vec::new()),
                Kind::Set => Self::Set(Vec::new()),
                Kind::SortedSet => Self::SortedSet(Vec::new()),
                Kind::Hash => Self::Hash(Vec::new()),
                Kind::Stream => Self::Stream(Stream::default()),
                Kind::Module => Self::Module(0),
            },
            long: Vec::new(),
            field: None,
        };
        decode(encoding, raw, &mut builder)?;
        Ok(builder.value)
    }
}

struct Builder {
    value: Value,
    long: Vec<u8>,
    /// A field that waits for its value.
    field: Option<Vec<u8>>,
}

impl Builder {
    fn string(&mut self, bytes: Vec<u8>) {
        match &mut self.value {
            Value::String(string) => *string = bytes,
            Value::List(items) | Value::Set(items) => items.push(bytes),
            Value::SortedSet(members) => members.push((bytes, 0.0)),
            Value::Hash(fields) => match self.field.take() {
                None => self.field = Some(bytes),
                Some(name) => fields.push(HashField { name, value: bytes, expires_at: None }),
            },
            Value::Stream(stream) => match self.field.take() {
                None => self.field = Some(bytes),
                Some(name) => {
                    if let Some(entry) = stream.entries.last_mut() {
                        entry.fields.push((name, bytes));
                    }
                }
            },
            Value::Module(_) => {}
        }
    }
}

impl Parts for Builder {
    fn part(&mut self, part: Part<'_>) -> Result<(), RdbError> {
        match part {
            Part::Bytes(bytes) => self.string(bytes.to_vec()),
            Part::Begin(_) => self.long.clear(),
            Part::Piece(bytes) => self.long.extend_from_slice(bytes),
            Part::End => {
                let long = std::mem::take(&mut self.long);
                self.string(long);
            }
            _ => match &mut self.value {
                Value::SortedSet(members) => {
                    if let (Part::Score(score), Some(member)) = (part, members.last_mut()) {
                        member.1 = score;
                    }
                }
                Value::Hash(fields) => {
                    if let (Part::Expiry(at), Some(field)) = (part, fields.last_mut()) {
                        field.expires_at = Some(at);
                    }
                }
                Value::Module(id) => {
                    if let Part::Module(module) = part {
                        *id = module;
                    }
                }
                Value::Stream(stream) => stream.part(part),
                _ => {}
            },
        }
        Ok(())
    }
}

impl Stream {
    fn part(&mut self, part: Part<'_>) {
        match part {
            Part::Entry(id, _) => self.entries.push(StreamEntry { id, fields: Vec::new() }),
            Part::Last { id, length, deleted, added } => {
                self.last_id = id;
                self.length = length;
                self.max_deleted_id = deleted;
                self.entries_added = added;
            }
            Part::Group { name, last, read } => self.groups.push(Group {
                name: name.to_vec(),
                last_id: last,
                entries_read: read,
                ..Group::default()
            }),
            Part::Pending { id, time, count } => {
                if let Some(group) = self.groups.last_mut() {
                    group.pending.push(PendingEntry { id, delivered_at: time, count });
                }
            }
            Part::Consumer { name, seen, active } => {
                if let Some(group) = self.groups.last_mut() {
                    group.consumers.push(Consumer {
                        name: name.to_vec(),
                        seen_at: seen,
                        active_at: active,
                        pending: Vec::new(),
                    });
                }
            }
            Part::Owned(id) => {
                if let Some(consumer) = self.groups.last_mut().and_then(|g| g.consumers.last_mut()) {
                    consumer.pending.push(id);
                }
            }
            _ => {}
        }
    }
}
