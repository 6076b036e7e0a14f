//! What a key means, as one hash: equal for every server and version that holds the same data.
//!
//! A key is an item of a [`Proof`] whose fields are, in this order:
//!
//! * a head: the kind (1 byte, [`Kind::index`]), the database (4 bytes, little-endian), and, if the key expires, the
//!   time in milliseconds since 1970 (8 bytes, little-endian);
//! * the key;
//! * a string: its bytes. A list: its items, in order;
//! * a set, hash or sorted set: the number of members (8 bytes) and the sum (32 bytes) of the [`Proof`] of its
//!   members, whatever their order. The fields of a member are: the member; or the member and its score (8 bytes, the
//!   bits of the double, never those of negative zero); or the field, its value and, if it expires, the time (8 bytes);
//! * a stream: for each entry its id (16 bytes) and number of pairs (8 bytes), and fields and values; then its last
//!   id; for each group name, last id, pending entries (id, time, count), consumers (name) and the ids each owns.
//!   What newer servers add by guessing when they load an older stream is left out: entries added, entries read,
//!   the highest deleted id, and when a consumer was seen or active;
//! * a module's value: the SHA-256 of its raw bytes, since only the module knows what they mean.

use backup_core::{Digest, Hasher, Proof};

use super::decode::{Decoder, Part, Parts};
use super::encoding::{Encoding, Kind};
use super::error::RdbError;
use super::proof::Class;
use super::stream::StreamId;
use super::string::StoredString;
use super::visit::Record;

/// Items up to this many canonical bytes are hashed in one go.
const TOGETHER: usize = 16 * 1024;

/// The hash of a key, and what else was learned on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hashed {
    /// The item's hash.
    pub(crate) digest: Digest,
    /// When the key, or the first of its fields, expires.
    pub(crate) changes_at: Option<i64>,
    /// Items, members, fields or entries; 1 for a string.
    pub(crate) elements: u64,
    /// The value holds a packed collection too long to unpack, and was hashed as its raw bytes. Another server
    /// may store it differently.
    pub(crate) opaque: bool,
}

impl Hashed {
    /// Which proof it adds to.
    #[inline]
    pub(crate) fn class(&self) -> Class {
        if self.opaque {
            Class::Opaque
        } else if self.changes_at.is_some() {
            Class::Expiring
        } else {
            Class::Lasting
        }
    }
}

/// Fields of an item, hashed.
#[derive(Clone, Default)]
struct Fields {
    bytes: Vec<u8>,
    hasher: Option<Hasher>,
}

impl Fields {
    #[inline]
    fn field(&mut self, bytes: &[u8]) {
        self.begin(bytes.len() as u64);
        self.piece(bytes);
    }

    #[inline]
    fn begin(&mut self, length: u64) {
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }

    #[inline]
    fn piece(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > TOGETHER {
            let hasher = self.hasher.get_or_insert_with(Hasher::new);
            hasher.update(&self.bytes);
            self.bytes.clear();
            hasher.update(bytes);
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.hasher.is_none()
    }

    #[inline]
    fn finish(&mut self) -> Digest {
        let digest = match self.hasher.take() {
            None => Digest::of(&self.bytes),
            Some(mut hasher) => {
                hasher.update(&self.bytes);
                hasher.finish()
            }
        };
        self.bytes.clear();
        digest
    }
}

/// Hashes one key after the other.
pub(crate) struct Canonical {
    item: Fields,
    member: Fields,
    members: Proof,
    kind: Kind,
    elements: u64,
    changes_at: Option<i64>,
    /// Fields of the current member so far: a hash's member is complete only when the next begins.
    in_member: u8,
    key: Vec<u8>,
    decoder: Decoder,
}

impl Default for Canonical {
    fn default() -> Self {
        Self::new()
    }
}

impl Canonical {
    pub(crate) fn new() -> Self {
        Self {
            item: Fields::default(),
            member: Fields::default(),
            members: Proof::empty(),
            kind: Kind::String,
            elements: 0,
            changes_at: None,
            in_member: 0,
            key: Vec::new(),
            decoder: Decoder::default(),
        }
    }

    /// Hashes a key whose value is at hand. `db` is the database to write into the head.
    pub(crate) fn whole(&mut self, record: &Record<'_>, db: u64, raw: &[u8]) -> Result<Hashed, RdbError> {
        self.begin(record, db)?;
        if record.encoding == Encoding::Module {
            self.item.field(Digest::of(raw).as_bytes());
            return Ok(self.finish());
        }
        if record.encoding == Encoding::String
            && let Some((string, _)) = StoredString::cut(raw).map_err(|e| e.shifted(record.offset))?
            && string.plain_len() <= TOGETHER as u64
        {
            let mut scratch = std::mem::take(&mut self.key);
            self.item.field(string.plain(&mut scratch).map_err(|e| e.shifted(record.offset))?);
            self.key = scratch;
            self.elements = 1;
            return Ok(self.finish());
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        decoder.reset(record.encoding);
        let pushed = decoder.push(raw, self);
        let done = decoder.is_done();
        self.decoder = decoder;
        match pushed {
            Ok(()) if done => Ok(self.finish()),
            Ok(()) => Err(RdbError::Malformed { offset: record.offset, what: "a value ends early" }),
            Err(RdbError::TooLong { .. }) => {
                self.begin(record, db)?;
                self.item.field(Digest::of(raw).as_bytes());
                Ok(Hashed { opaque: true, ..self.finish() })
            }
            Err(e) => Err(e.shifted(record.offset)),
        }
    }

    /// Begins a key: its head and name.
    fn begin(&mut self, record: &Record<'_>, db: u64) -> Result<(), RdbError> {
        self.kind = record.encoding.kind();
        self.elements = 0;
        self.changes_at = record.expires_at;
        self.members = Proof::empty();
        self.in_member = 0;
        self.item = Fields { bytes: std::mem::take(&mut self.item.bytes), hasher: None };
        self.item.bytes.clear();
        self.member.bytes.clear();
        self.member.hasher = None;
        let db = u32::try_from(db).unwrap_or(u32::MAX).to_le_bytes();
        let kind = u8::try_from(self.kind.index()).unwrap_or(u8::MAX);
        self.item.begin(if record.expires_at.is_some() { 13 } else { 5 });
        self.item.piece(&[kind]);
        self.item.piece(&db);
        if let Some(at) = record.expires_at {
            self.item.piece(&at.to_le_bytes());
        }
        let mut scratch = std::mem::take(&mut self.key);
        self.item.field(record.key.plain(&mut scratch).map_err(|e| e.shifted(record.offset))?);
        self.key = scratch;
        Ok(())
    }

    fn finish(&mut self) -> Hashed {
        self.end_member();
        if matches!(self.kind, Kind::Set | Kind::SortedSet | Kind::Hash) {
            self.item.field(&self.members.count.to_le_bytes());
            self.item.field(&self.members.sum);
            self.elements = self.members.count;
        }
        Hashed {
            digest: self.item.finish(),
            changes_at: self.changes_at,
            elements: self.elements,
            opaque: false,
        }
    }

    #[inline]
    fn end_member(&mut self) {
        if !self.member.is_empty() {
            let digest = self.member.finish();
            self.members.add_hashed(&digest);
        }
        self.in_member = 0;
    }

    /// Where the next string goes, after what it completes is completed.
    #[inline]
    fn next_string(&mut self) -> &mut Fields {
        match self.kind {
            Kind::Set | Kind::SortedSet => {
                self.end_member();
                &mut self.member
            }
            Kind::Hash => {
                if self.in_member >= 2 {
                    self.end_member();
                }
                self.in_member += 1;
                &mut self.member
            }
            Kind::Stream => &mut self.item,
            _ => {
                self.elements += 1;
                &mut self.item
            }
        }
    }

    fn id(&mut self, id: StreamId) {
        self.item.piece(&id.ms.to_le_bytes());
        self.item.piece(&id.seq.to_le_bytes());
    }
}

impl Parts for Canonical {
    #[inline]
    fn part(&mut self, part: Part<'_>) -> Result<(), RdbError> {
        match part {
            Part::Bytes(bytes) => self.next_string().field(bytes),
            Part::Begin(length) => self.next_string().begin(length),
            Part::Piece(bytes) => match self.kind {
                Kind::Set | Kind::SortedSet | Kind::Hash => self.member.piece(bytes),
                _ => self.item.piece(bytes),
            },
            Part::End | Part::Module(_) => {}
            // A packed sorted set forgets the sign of zero: adding zero does too.
            Part::Score(score) => self.member.field(&(score + 0.0).to_bits().to_le_bytes()),
            Part::Expiry(at) => {
                self.changes_at = Some(self.changes_at.map_or(at, |first| first.min(at)));
                self.member.field(&at.to_le_bytes());
            }
            Part::Entry(id, pairs) => {
                self.elements += 1;
                self.item.begin(24);
                self.id(id);
                self.item.piece(&pairs.to_le_bytes());
            }
            Part::Group { name, last, .. } => {
                self.item.field(b"group");
                self.item.field(name);
                self.item.begin(16);
                self.id(last);
            }
            Part::Pending { id, time, count } => {
                self.item.begin(32);
                self.id(id);
                self.item.piece(&time.to_le_bytes());
                self.item.piece(&count.to_le_bytes());
            }
            Part::Consumer { name, .. } => {
                self.item.field(b"consumer");
                self.item.field(name);
            }
            Part::Last { id, .. } | Part::Owned(id) => {
                self.item.begin(16);
                self.id(id);
            }
        }
        Ok(())
    }
}

/// A key whose value arrives in pieces.
pub(crate) struct LargeKey {
    decoder: Decoder,
    /// The raw bytes, for what turns out not to be decodable here.
    raw: Option<Hasher>,
    opaque: bool,
    /// The head and name, to begin again with.
    head: Fields,
    changes_at: Option<i64>,
    offset: u64,
    opaque_elsewhere: bool,
}

impl LargeKey {
    /// Begins a key on `canonical`.
    pub(crate) fn begin(canonical: &mut Canonical, record: &Record<'_>, db: u64) -> Result<Self, RdbError> {
        canonical.begin(record, db)?;
        let module = record.encoding == Encoding::Module;
        // Strings and plain collections are never packed, so they always decode.
        let packs = !matches!(
            record.encoding,
            Encoding::String | Encoding::List | Encoding::Set | Encoding::Hash | Encoding::SortedSet
        );
        Ok(Self {
            decoder: Decoder::new(record.encoding),
            raw: packs.then(Hasher::new),
            opaque: module,
            head: canonical.item.clone(),
            changes_at: record.expires_at,
            offset: record.offset,
            opaque_elsewhere: false,
        })
    }

    /// Counts it as opaque even where it can be decoded.
    pub(crate) fn opaque_elsewhere(&mut self) {
        self.opaque_elsewhere = true;
    }

    /// The next raw bytes.
    pub(crate) fn piece(&mut self, canonical: &mut Canonical, raw: &[u8]) -> Result<(), RdbError> {
        if let Some(hasher) = &mut self.raw {
            hasher.update(raw);
        }
        if self.opaque {
            return Ok(());
        }
        match self.decoder.push(raw, canonical) {
            Err(RdbError::TooLong { .. }) if self.raw.is_some() => {
                self.opaque = true;
                Ok(())
            }
            other => other.map_err(|e| e.shifted(self.offset)),
        }
    }

    /// The value is complete.
    pub(crate) fn end(self, canonical: &mut Canonical) -> Result<Hashed, RdbError> {
        if !self.opaque {
            return if self.decoder.is_done() {
                let hashed = canonical.finish();
                Ok(Hashed { opaque: self.opaque_elsewhere, ..hashed })
            } else {
                Err(RdbError::Malformed { offset: self.offset, what: "a value ends early" })
            };
        }
        let module = canonical.kind == Kind::Module;
        canonical.item = self.head;
        canonical.member = Fields::default();
        canonical.members = Proof::empty();
        canonical.changes_at = self.changes_at;
        canonical.elements = 0;
        if let Some(raw) = self.raw {
            canonical.item.field(raw.finish().as_bytes());
        }
        Ok(Hashed { opaque: !module, ..canonical.finish() })
    }
}
