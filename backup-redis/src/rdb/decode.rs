//! From stored bytes to what they mean: every encoding gives the same [`Part`]s.

use super::encoding::{Encoding, Role};
use super::error::RdbError;
use super::length::Head;
use super::lzf::LzfStream;
use super::packed::{Entry, intset, listpack, ziplist, zipmap};
use super::stream::{Node, StreamId};
use super::string::{StoredString, little_endian};
use super::walk::{Tokens, Walker};

/// Longest packed collection that is unpacked, in bytes. The servers keep these below a few KiB unless configured
/// otherwise; a stream's node is as long as its longest entry.
pub(crate) const PACKED_LIMIT: u64 = 16 * 1024 * 1024;
/// `QUICKLIST_NODE_CONTAINER_PLAIN`: the node is one item.
const SINGLE: u64 = 1;
/// Compressed strings up to this plain length are decompressed whole.
const WHOLE: u64 = 1024 * 1024;

/// A part of a value. The order is: a string's bytes; a list's items; a set's members; of a sorted set each member
/// and its score; of a hash each field, its value and, if it has one, its expiry; of a stream its entries each with
/// fields and values alternating, [`Part::Last`], and each group with its pending entries, and consumers with theirs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part<'a> {
    /// The next string.
    Bytes(&'a [u8]),
    /// The next string, of this length, follows in pieces.
    Begin(u64),
    /// The next bytes of it.
    Piece(&'a [u8]),
    /// It is complete.
    End,
    /// Score of the member before.
    Score(f64),
    /// When the field before expires, in milliseconds since 1970.
    Expiry(i64),
    /// A stream's entry; so many fields and values follow.
    Entry(StreamId, u64),
    /// What a stream knows of itself. `length` entries are not deleted.
    Last { id: StreamId, length: u64, deleted: Option<StreamId>, added: Option<u64> },
    /// A consumer group.
    Group { name: &'a [u8], last: StreamId, read: Option<u64> },
    /// An entry delivered and not acknowledged: when it was delivered last, and how often.
    Pending { id: StreamId, time: i64, count: u64 },
    /// A consumer of the group.
    Consumer { name: &'a [u8], seen: i64, active: Option<i64> },
    /// A pending entry that it owns.
    Owned(StreamId),
    /// A module's value: its id. What it saved has no meaning here.
    Module(u64),
}

/// Receives the parts of a value.
pub(crate) trait Parts {
    fn part(&mut self, part: Part<'_>) -> Result<(), RdbError>;
}

/// Decodes one value from its raw bytes, which may come in the pieces a reader delivers.
pub(crate) struct Decoder {
    walker: Walker,
    state: State,
    /// A header cut by the end of a chunk.
    carry: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(Encoding::String)
    }
}

impl Decoder {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self { walker: Walker::new(encoding), state: State::new(encoding), carry: Vec::new() }
    }

    /// Begins another value, with the memory of the one before.
    pub(crate) fn reset(&mut self, encoding: Encoding) {
        self.walker = Walker::new(encoding);
        let scratch = std::mem::take(&mut self.state.scratch);
        self.state = State { scratch, ..State::new(encoding) };
    }

    /// Takes raw bytes. They must end where [`super::Visitor::piece`] says pieces end.
    pub(crate) fn push<P: Parts>(&mut self, raw: &[u8], parts: &mut P) -> Result<(), RdbError> {
        let (used, done) = self.walker.walk(raw, &mut With { state: &mut self.state, parts })?;
        if used != raw.len() {
            return Err(RdbError::malformed("a value's bytes do not end where its layout does"));
        }
        self.state.done = done;
        Ok(())
    }

    /// Takes raw bytes cut anywhere.
    pub(crate) fn push_cut<P: Parts>(&mut self, chunk: &[u8], parts: &mut P) -> Result<(), RdbError> {
        let mut joined = std::mem::take(&mut self.carry);
        let input = if joined.is_empty() {
            chunk
        } else {
            joined.extend_from_slice(chunk);
            &joined
        };
        let (used, done) = self.walker.walk(input, &mut With { state: &mut self.state, parts })?;
        self.carry = input.get(used..).unwrap_or_default().to_vec();
        self.state.done = done;
        Ok(())
    }

    /// Whether the value is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.state.done
    }
}

/// Decodes a value whose raw bytes are all at hand.
pub(crate) fn decode<P: Parts>(encoding: Encoding, raw: &[u8], parts: &mut P) -> Result<(), RdbError> {
    let mut decoder = Decoder::new(encoding);
    decoder.push(raw, parts)?;
    if decoder.is_done() { Ok(()) } else { Err(RdbError::malformed("a value ends early")) }
}

/// How the body of a string that arrives in pieces is dealt with.
enum Open {
    Plain,
    Lzf(LzfStream),
    /// Gathered, because it must be seen whole.
    Gather(Role, Head),
    Ignored,
}

struct State {
    encoding: Encoding,
    done: bool,
    scratch: Vec<u8>,
    gathered: Vec<u8>,
    open: Open,
    first_expiry: i64,
    expiry: Option<i64>,
    container: u64,
    node: StreamId,
    /// Numbers of a stream or group, until there is a string or count that completes them.
    name: Vec<u8>,
    numbers: [u64; 8],
    at: usize,
    pending: StreamId,
    pending_time: i64,
    seen: i64,
}

impl State {
    fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            done: false,
            scratch: Vec::new(),
            gathered: Vec::new(),
            open: Open::Ignored,
            first_expiry: 0,
            expiry: None,
            container: 0,
            node: StreamId::default(),
            name: Vec::new(),
            numbers: [0; 8],
            at: 0,
            pending: StreamId::default(),
            pending_time: 0,
            seen: 0,
        }
    }

    fn remember(&mut self, n: u64) {
        if let Some(slot) = self.numbers.get_mut(self.at) {
            *slot = n;
        }
        self.at += 1;
    }

    fn id(&self, at: usize) -> StreamId {
        let get = |i| self.numbers.get(i).copied().unwrap_or_default();
        StreamId { ms: get(at), seq: get(at + 1) }
    }
}

/// Whether strings of this role are elements, which may be long, rather than parts of the structure.
fn is_element(role: Role) -> bool {
    matches!(role, Role::Content | Role::Item | Role::Member | Role::Field | Role::Value)
}

struct With<'a, P> {
    state: &'a mut State,
    parts: &'a mut P,
}

impl<P: Parts> Tokens for With<'_, P> {
    #[inline]
    fn string(&mut self, role: Role, string: StoredString<'_>) -> Result<(), RdbError> {
        let role = self.actual(role);
        if is_element(role) {
            match string.head {
                Head::Plain(_) => self.parts.part(Part::Bytes(string.body))?,
                Head::Lzf { plain, .. } if plain > WHOLE => {
                    self.begin(role, string.head)?;
                    self.piece(string.body)?;
                    return self.end();
                }
                _ => self.parts.part(Part::Bytes(string.plain(&mut self.state.scratch)?))?,
            }
            return self.element_done(role);
        }
        if role == Role::ModulePart {
            return Ok(());
        }
        if string.plain_len() > PACKED_LIMIT {
            return Err(too_long());
        }
        let mut scratch = std::mem::take(&mut self.state.scratch);
        let done = string.plain(&mut scratch).and_then(|plain| self.whole(role, plain));
        self.state.scratch = scratch;
        done
    }

    fn begin(&mut self, role: Role, head: Head) -> Result<(), RdbError> {
        let role = self.actual(role);
        self.state.open = if role == Role::ModulePart {
            Open::Ignored
        } else if !is_element(role) {
            let plain = match head {
                Head::Lzf { plain, .. } => plain,
                other => other.body(),
            };
            if plain > PACKED_LIMIT {
                return Err(too_long());
            }
            self.state.gathered.clear();
            Open::Gather(role, head)
        } else {
            // The role is needed again at the end: only a hash's value is followed by something.
            self.state.numbers[0] = u64::from(role == Role::Value);
            match head {
                Head::Lzf { plain, .. } => {
                    self.parts.part(Part::Begin(plain))?;
                    Open::Lzf(LzfStream::new(plain))
                }
                other => {
                    self.parts.part(Part::Begin(other.body()))?;
                    Open::Plain
                }
            }
        };
        Ok(())
    }

    fn piece(&mut self, body: &[u8]) -> Result<(), RdbError> {
        let parts = &mut *self.parts;
        match &mut self.state.open {
            Open::Plain => parts.part(Part::Piece(body)),
            Open::Lzf(stream) => stream.push(body, &mut |plain| parts.part(Part::Piece(plain))),
            Open::Gather(..) => {
                self.state.gathered.extend_from_slice(body);
                Ok(())
            }
            Open::Ignored => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), RdbError> {
        match std::mem::replace(&mut self.state.open, Open::Ignored) {
            Open::Gather(role, head) => {
                let gathered = std::mem::take(&mut self.state.gathered);
                self.string(role, StoredString { head, body: &gathered })?;
                self.state.gathered = gathered;
                Ok(())
            }
            Open::Ignored => Ok(()),
            open => {
                if let Open::Lzf(stream) = open {
                    stream.finish()?;
                }
                self.parts.part(Part::End)?;
                let role = if self.state.numbers[0] == 1 { Role::Value } else { Role::Item };
                self.element_done(role)
            }
        }
    }

    fn number(&mut self, role: Role, n: u64) -> Result<(), RdbError> {
        match role {
            Role::FieldExpiry => {
                // 0 is none; otherwise the distance to the first, plus one (`rdbSaveObject`, type 24).
                self.state.expiry = i64::try_from(n)
                    .ok()
                    .filter(|&n| n > 0)
                    .map(|n| self.state.first_expiry.saturating_add(n - 1));
            }
            Role::Container => self.state.container = n,
            Role::ModuleId => self.parts.part(Part::Module(n))?,
            Role::PendingCount => self.parts.part(Part::Pending {
                id: self.state.pending,
                time: self.state.pending_time,
                count: n,
            })?,
            // The first number of a stream, or of a group.
            Role::Length | Role::GroupMs => {
                self.state.at = 0;
                self.state.remember(n);
            }
            _ => self.state.remember(n),
        }
        Ok(())
    }

    fn fixed(&mut self, role: Role, bytes: &[u8]) -> Result<(), RdbError> {
        match role {
            Role::Score => {
                let bits = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
                self.parts.part(Part::Score(f64::from_bits(bits)))
            }
            Role::FirstExpiry => {
                self.state.first_expiry = little_endian(bytes);
                Ok(())
            }
            // Only Valkey 9 has it after the value, and as the time itself; -1 is none.
            Role::FieldExpiry => match little_endian(bytes) {
                -1 => Ok(()),
                at => self.parts.part(Part::Expiry(at)),
            },
            Role::PendingId => {
                self.state.pending = StreamId::from_big_endian(bytes);
                Ok(())
            }
            Role::PendingTime => {
                self.state.pending_time = little_endian(bytes);
                Ok(())
            }
            Role::OwnedId => self.parts.part(Part::Owned(StreamId::from_big_endian(bytes))),
            Role::SeenTime => {
                self.state.seen = little_endian(bytes);
                if self.state.encoding == Encoding::Stream3 { Ok(()) } else { self.consumer(None) }
            }
            Role::ActiveTime => self.consumer(Some(little_endian(bytes))),
            _ => Ok(()),
        }
    }

    fn score(&mut self, score: f64) -> Result<(), RdbError> {
        self.parts.part(Part::Score(score))
    }

    fn count(&mut self, role: Role, _n: u64) -> Result<(), RdbError> {
        match role {
            // The groups' count ends what a stream says of itself.
            Role::Group => {
                let more = self.state.encoding != Encoding::Stream;
                self.parts.part(Part::Last {
                    length: self.state.numbers[0],
                    id: self.state.id(1),
                    deleted: more.then(|| self.state.id(5)),
                    added: more.then_some(self.state.numbers[7]),
                })
            }
            // The pending entries' count ends a group's head.
            Role::PendingId => {
                let name = std::mem::take(&mut self.state.name);
                let read = (self.state.encoding != Encoding::Stream).then_some(self.state.numbers[2]);
                self.parts.part(Part::Group { name: &name, last: self.state.id(0), read })?;
                self.state.name = name;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl<P: Parts> With<'_, P> {
    /// A node of a list that is not packed is one item, too long to pack.
    #[inline]
    fn actual(&self, role: Role) -> Role {
        let item = role == Role::Blob
            && self.state.container == SINGLE
            && self.state.encoding == Encoding::ListQuicklist2;
        if item { Role::Item } else { role }
    }

    #[inline]
    fn element_done(&mut self, role: Role) -> Result<(), RdbError> {
        if role == Role::Value
            && let Some(at) = self.state.expiry.take()
        {
            self.parts.part(Part::Expiry(at))?;
        }
        Ok(())
    }

    fn consumer(&mut self, active: Option<i64>) -> Result<(), RdbError> {
        let name = std::mem::take(&mut self.state.name);
        self.parts.part(Part::Consumer { name: &name, seen: self.state.seen, active })?;
        self.state.name = name;
        Ok(())
    }

    /// A string of the structure, decompressed.
    fn whole(&mut self, role: Role, plain: &[u8]) -> Result<(), RdbError> {
        match role {
            Role::Blob => self.unpack(plain),
            Role::NodeKey => {
                if plain.len() != 16 {
                    return Err(RdbError::malformed("the id of a stream's node is not 16 bytes long"));
                }
                self.state.node = StreamId::from_big_endian(plain);
                Ok(())
            }
            Role::Node => {
                let mut node = Node::new(self.state.node);
                listpack(plain, &mut |entry| node.entry(entry, self.parts))?;
                node.finish()
            }
            _ => {
                self.state.name.clear();
                self.state.name.extend_from_slice(plain);
                Ok(())
            }
        }
    }

    /// A packed collection.
    fn unpack(&mut self, packed: &[u8]) -> Result<(), RdbError> {
        let parts = &mut *self.parts;
        let mut text = [0; 20];
        match self.state.encoding {
            Encoding::ListQuicklist2 | Encoding::SetListpack => {
                listpack(packed, &mut |e| parts.part(Part::Bytes(e.bytes(&mut text))))
            }
            Encoding::ListZiplist | Encoding::ListQuicklist => {
                ziplist(packed, &mut |e| parts.part(Part::Bytes(e.bytes(&mut text))))
            }
            Encoding::SetIntset => intset(packed, &mut |e| parts.part(Part::Bytes(e.bytes(&mut text)))),
            Encoding::HashZipmap => zipmap(packed, &mut |e| parts.part(Part::Bytes(e.bytes(&mut text)))),
            Encoding::HashZiplist | Encoding::HashListpack => {
                let mut pairs = 0usize;
                let mut each = |e: Entry<'_>| {
                    pairs += 1;
                    parts.part(Part::Bytes(e.bytes(&mut text)))
                };
                if self.state.encoding == Encoding::HashZiplist {
                    ziplist(packed, &mut each)?;
                } else {
                    listpack(packed, &mut each)?;
                }
                even(pairs, 2)
            }
            Encoding::SortedSetZiplist | Encoding::SortedSetListpack => {
                let mut entries = 0usize;
                let mut each = |e: Entry<'_>| {
                    entries += 1;
                    if entries % 2 == 1 {
                        return parts.part(Part::Bytes(e.bytes(&mut text)));
                    }
                    parts.part(Part::Score(e.score().ok_or(RdbError::malformed("a score is not a number"))?))
                };
                if self.state.encoding == Encoding::SortedSetZiplist {
                    ziplist(packed, &mut each)?;
                } else {
                    listpack(packed, &mut each)?;
                }
                even(entries, 2)
            }
            Encoding::HashListpackEx => {
                let mut entries = 0usize;
                listpack(packed, &mut |e| {
                    entries += 1;
                    if !entries.is_multiple_of(3) {
                        return parts.part(Part::Bytes(e.bytes(&mut text)));
                    }
                    match e.int() {
                        Some(0) => Ok(()),
                        Some(at) => parts.part(Part::Expiry(at)),
                        None => Err(RdbError::malformed("a field's expiry is not a number")),
                    }
                })?;
                even(entries, 3)
            }
            _ => Err(RdbError::malformed("a value is packed that cannot be")),
        }
    }
}

fn even(entries: usize, group: usize) -> Result<(), RdbError> {
    if entries.is_multiple_of(group) {
        Ok(())
    } else {
        Err(RdbError::malformed("a packed collection lacks a value"))
    }
}

fn too_long() -> RdbError {
    RdbError::TooLong { offset: 0, what: "packed collection", limit: PACKED_LIMIT }
}
