//! Builds a value up by ordinary commands, where it is too long for `RESTORE` or in an encoding the server lacks.

use std::collections::BTreeMap;

use crate::rdb::decode::{Part, Parts};
use crate::rdb::{Kind, RdbError, StreamId};
use crate::resp;

/// Elements in one command.
const ELEMENTS: u64 = 500;
/// Bytes of elements in one command, unless a single one is longer.
const BYTES: usize = 128 * 1024;
/// Longest element of a collection that is held.
const ELEMENT: usize = 64 * 1024 * 1024;
/// First RDB version whose servers know a stream's counters, and the commands that set them.
const COUNTERS: u32 = 10;

/// Makes commands out of the parts of one value.
pub(crate) struct Rebuild {
    key: Vec<u8>,
    kind: Kind,
    version: u32,
    wire: Vec<u8>,
    commands: usize,
    /// Arguments of the command being gathered, as they go over the wire.
    arguments: Vec<u8>,
    elements: u64,
    /// An element that arrives in pieces.
    long: Vec<u8>,
    at: u64,
    streamed: bool,
    member: Vec<u8>,
    field: Option<Vec<u8>>,
    /// Fields and values that the current entry of a stream still lacks.
    lacking: u64,
    entries: u64,
    group: Vec<u8>,
    consumer: Vec<u8>,
    pending: BTreeMap<StreamId, (i64, u64)>,
}

impl Rebuild {
    pub(crate) fn new(key: Vec<u8>, kind: Kind, version: u32) -> Self {
        Self {
            key,
            kind,
            version,
            wire: Vec::new(),
            commands: 0,
            arguments: Vec::new(),
            elements: 0,
            long: Vec::new(),
            at: 0,
            streamed: false,
            member: Vec::new(),
            field: None,
            lacking: 0,
            entries: 0,
            group: Vec::new(),
            consumer: Vec::new(),
            pending: BTreeMap::new(),
        }
    }

    /// The commands made so far, and how many.
    pub(crate) fn take(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.wire), std::mem::take(&mut self.commands))
    }

    /// The value is complete.
    pub(crate) fn finish(&mut self, expires_at: Option<i64>) {
        self.flush();
        if let Some(at) = expires_at {
            let key = self.key.clone();
            self.command(&[b"PEXPIREAT", &key, at.to_string().as_bytes()]);
        }
    }

    fn command(&mut self, arguments: &[&[u8]]) {
        resp::command(&mut self.wire, arguments);
        self.commands += 1;
    }

    /// Sends off what was gathered for one command with many elements.
    fn flush(&mut self) {
        if self.elements == 0 {
            return;
        }
        let name: &[u8] = match self.kind {
            Kind::List => b"RPUSH",
            Kind::Set => b"SADD",
            Kind::SortedSet => b"ZADD",
            _ => b"HSET",
        };
        let each = if matches!(self.kind, Kind::List | Kind::Set) { 1 } else { 2 };
        resp::header(&mut self.wire, b'*', 2 + self.elements * each);
        resp::bulk(&mut self.wire, name);
        resp::bulk(&mut self.wire, &self.key);
        self.wire.extend_from_slice(&self.arguments);
        self.commands += 1;
        self.arguments.clear();
        self.elements = 0;
    }

    fn element(&mut self) {
        self.elements += 1;
        if self.elements >= ELEMENTS || self.arguments.len() >= BYTES {
            self.flush();
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        match self.kind {
            Kind::String => {
                let key = std::mem::take(&mut self.key);
                self.command(&[b"SET", &key, bytes]);
                self.key = key;
            }
            Kind::List | Kind::Set => {
                resp::bulk(&mut self.arguments, bytes);
                self.element();
            }
            Kind::SortedSet => bytes.clone_into(&mut self.member),
            Kind::Hash => match self.field.take() {
                None => self.field = Some(bytes.to_vec()),
                Some(field) => {
                    resp::bulk(&mut self.arguments, &field);
                    resp::bulk(&mut self.arguments, bytes);
                    self.member = field;
                    self.element();
                }
            },
            Kind::Stream => {
                resp::bulk(&mut self.arguments, bytes);
                self.lacking = self.lacking.saturating_sub(1);
                if self.lacking == 0 {
                    self.wire.extend_from_slice(&self.arguments);
                    self.arguments.clear();
                    self.commands += 1;
                }
            }
            Kind::Module => {}
        }
    }

    fn stream(&mut self, part: Part<'_>) {
        let key = self.key.clone();
        match part {
            Part::Entry(id, pairs) => {
                self.entries += 1;
                self.lacking = pairs * 2;
                resp::header(&mut self.arguments, b'*', 3 + pairs * 2);
                resp::bulk(&mut self.arguments, b"XADD");
                resp::bulk(&mut self.arguments, &key);
                resp::bulk(&mut self.arguments, id.to_string().as_bytes());
            }
            Part::Last { id, deleted, added, .. } => {
                let id = id.to_string();
                if self.entries == 0 {
                    // A stream without entries is made by adding one and trimming it away.
                    self.command(&[b"XADD", &key, b"MAXLEN", b"0", b"0-1", b"a", b"b"]);
                }
                match (deleted, added) {
                    (Some(deleted), Some(added)) if self.version >= COUNTERS => self.command(&[
                        b"XSETID",
                        &key,
                        id.as_bytes(),
                        b"ENTRIESADDED",
                        added.to_string().as_bytes(),
                        b"MAXDELETEDID",
                        deleted.to_string().as_bytes(),
                    ]),
                    _ => self.command(&[b"XSETID", &key, id.as_bytes()]),
                }
            }
            Part::Group { name, last, read } => {
                name.clone_into(&mut self.group);
                self.pending.clear();
                let last = last.to_string();
                match read {
                    // A count that is not known is written as -1.
                    Some(read) if self.version >= COUNTERS => self.command(&[
                        b"XGROUP",
                        b"CREATE",
                        &key,
                        name,
                        last.as_bytes(),
                        b"ENTRIESREAD",
                        read.cast_signed().to_string().as_bytes(),
                    ]),
                    _ => self.command(&[b"XGROUP", b"CREATE", &key, name, last.as_bytes()]),
                }
            }
            Part::Pending { id, time, count } => {
                self.pending.insert(id, (time, count));
            }
            Part::Consumer { name, .. } => {
                name.clone_into(&mut self.consumer);
                let group = self.group.clone();
                self.command(&[b"XGROUP", b"CREATECONSUMER", &key, &group, name]);
            }
            Part::Owned(id) => {
                let (time, count) = self.pending.get(&id).copied().unwrap_or((0, 1));
                let (group, consumer) = (self.group.clone(), self.consumer.clone());
                self.command(&[
                    b"XCLAIM",
                    &key,
                    &group,
                    &consumer,
                    b"0",
                    id.to_string().as_bytes(),
                    b"TIME",
                    time.to_string().as_bytes(),
                    b"RETRYCOUNT",
                    count.to_string().as_bytes(),
                    b"FORCE",
                    b"JUSTID",
                ]);
            }
            _ => {}
        }
    }
}

impl Parts for Rebuild {
    fn part(&mut self, part: Part<'_>) -> Result<(), RdbError> {
        match part {
            Part::Bytes(bytes) => self.string(bytes),
            Part::Begin(length) if self.kind == Kind::String => {
                self.streamed = true;
                if let Some(last) = length.checked_sub(1) {
                    // Writing the last byte first makes the server allocate once.
                    let key = self.key.clone();
                    self.command(&[b"SETRANGE", &key, last.to_string().as_bytes(), b"\0"]);
                }
            }
            Part::Begin(_) => self.long.clear(),
            Part::Piece(bytes) if self.streamed => {
                if !bytes.is_empty() {
                    let key = self.key.clone();
                    let at = self.at.to_string();
                    self.command(&[b"SETRANGE", &key, at.as_bytes(), bytes]);
                    self.at += bytes.len() as u64;
                }
            }
            Part::Piece(bytes) => {
                if self.long.len() + bytes.len() > ELEMENT {
                    return Err(RdbError::TooLong {
                        offset: 0,
                        what: "element of a collection",
                        limit: ELEMENT as u64,
                    });
                }
                self.long.extend_from_slice(bytes);
            }
            Part::End => {
                if !self.streamed {
                    let long = std::mem::take(&mut self.long);
                    self.string(&long);
                }
            }
            Part::Score(score) => {
                resp::bulk(&mut self.arguments, score.to_string().as_bytes());
                resp::bulk(&mut self.arguments, &self.member);
                self.element();
            }
            Part::Expiry(at) => {
                self.flush();
                let (key, field) = (self.key.clone(), self.member.clone());
                self.command(&[b"HPEXPIREAT", &key, at.to_string().as_bytes(), b"FIELDS", b"1", &field]);
            }
            other => self.stream(other),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::Encoding;
    use crate::rdb::decode::decode;

    #[test]
    fn a_sorted_set_is_built_by_zadd() {
        // Two members with binary scores.
        let mut raw = vec![2, 1, b'a'];
        raw.extend_from_slice(&1.5f64.to_le_bytes());
        raw.extend_from_slice(&[1, b'b']);
        raw.extend_from_slice(&f64::NEG_INFINITY.to_le_bytes());
        let mut rebuild = Rebuild::new(b"k".to_vec(), Kind::SortedSet, 12);
        decode(Encoding::SortedSet, &raw, &mut rebuild).unwrap();
        rebuild.finish(Some(7));
        let (wire, commands) = rebuild.take();
        assert_eq!(commands, 2);
        assert_eq!(
            String::from_utf8(wire).unwrap(),
            "*6\r\n$4\r\nZADD\r\n$1\r\nk\r\n$3\r\n1.5\r\n$1\r\na\r\n$4\r\n-inf\r\n$1\r\nb\r\n*3\r\n$9\r\nPEXPIREAT\r\n$1\r\nk\r\n$1\r\n7\r\n"
        );
    }
}
