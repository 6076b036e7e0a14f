//! From the records of an RDB to the commands that write them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backup_core::{Error, ErrorKind, ItemPath, Proof, Result, Selection};
use tokio::sync::mpsc::Sender;

use super::batch::{Batch, Expected, RestoreOptions, restore, set};
use super::glob::Glob;
use super::pipe::{Existing, Written};
use super::slots::slot;
use super::stage::Databases;
use crate::rdb::canonical::{Canonical, Hashed, LargeKey};
use crate::rdb::crc64::Crc64;
use crate::rdb::decode::PACKED_LIMIT;
use crate::rdb::length::{Head, LZF_MOST};
use crate::rdb::proof::Sums;
use crate::rdb::transcode::transcode;
use crate::rdb::{Class, Encoding, FUNCTIONS, Kind, Record, StoredString, Visitor};

/// Bytes of libraries of functions that are held at once.
const FUNCTIONS_LIMIT: usize = 64 * 1024 * 1024;

/// Which keys are to be written.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// Of the items of the backup; `prefix` precedes their names.
    pub(crate) selection: Selection,
    pub(crate) prefix: String,
    pub(crate) databases: Option<BTreeSet<u64>>,
    pub(crate) keys: Option<Arc<[Glob]>>,
}

impl Filter {
    pub(crate) fn item(&self, db: u64, kind: Kind, class: Class) -> bool {
        if self.selection.is_all() {
            return true;
        }
        let mut path = format!("{}db{db}/{}", self.prefix, kind.name());
        if class != Class::Lasting {
            path.push('/');
            path.push_str(class.name());
        }
        self.selection.matches(&ItemPath::new(path))
    }

    pub(crate) fn functions(&self) -> bool {
        self.selection.matches(&ItemPath::new(format!("{}{FUNCTIONS}", self.prefix)))
    }

    fn key(&self, db: u64, key: &[u8]) -> bool {
        self.databases.as_ref().is_none_or(|dbs| dbs.contains(&db))
            && self.keys.as_ref().is_none_or(|globs| globs.iter().any(|g| g.matches(key)))
    }

    /// Whether it may leave out keys of a database that it does not leave out as a whole.
    pub(crate) fn is_partial(&self) -> bool {
        self.keys.is_some() || !self.selection.is_all()
    }
}

/// Bytes that `RESTORE` has around a value: its type before; version and checksum after it.
pub(crate) const AROUND: u64 = 11;

/// How keys are to be written.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// Newest RDB version that the server reads.
    pub(crate) version: u32,
    pub(crate) existing: Existing,
    pub(crate) proving: Proving,
    /// `proto-max-bulk-len`: longest argument the server takes.
    pub(crate) max_bulk: u64,
    /// The server's time, in milliseconds since 1970: what expires before is not written.
    pub(crate) now: i64,
}

/// How it is proved that what was written is what was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proving {
    /// Each batch is read back and its keys are compared one by one.
    EachBatch,
    /// Everything is read back at the end and compared with what was sent.
    Sent,
    /// Everything is read back at the end, and it is all that the backup's own proof speaks of. Keys that stay are
    /// compared with that, and not hashed on their way in too.
    Backup,
}

impl Proving {
    /// Whether a key and value need no hash on their way in: they stay, and can be decoded when they are read back.
    #[inline]
    fn passes(self, record: &Record<'_>, value: &[u8]) -> bool {
        self == Self::Backup
            && record.expires_at.is_none()
            && value.len() as u64 <= UNPACKED
            && !record.encoding.has_field_expiry()
    }
}

/// Values up to so many stored bytes hold nothing that is too long to unpack, whatever is compressed in them.
const UNPACKED: u64 = PACKED_LIMIT / LZF_MOST;

/// A value that is written afterwards, because its size was not known when it began.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) db: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) encoding: Encoding,
    pub(crate) options: RestoreOptions,
    /// Its raw bytes in the artifact.
    pub(crate) range: std::ops::Range<u64>,
    /// Over type byte and raw bytes.
    pub(crate) crc: Crc64,
    pub(crate) expected: Option<Expected>,
}

/// Makes commands and proofs out of records.
pub(crate) struct Builder {
    filter: Filter,
    manner: Manner,
    databases: Databases,
    pipes: Vec<Sender<Batch>>,
    /// Which pipe a slot's keys go to.
    route: Option<Arc<[u16]>>,
    batches: Vec<Batch>,
    canonical: Canonical,
    large: Option<Large>,
    scratch: Vec<u8>,
    transcoded: Vec<u8>,
    chosen: BTreeMap<(u64, Kind, Class), bool>,
    last_chosen: Option<((u64, Kind, Class), bool)>,
    pub(crate) done: Built,
}

/// What was made.
#[derive(Default)]
pub(crate) struct Built {
    /// Over what the plan selects, whether it could be written or not.
    pub(crate) delivered: Sums,
    /// Over what was written.
    pub(crate) written: Sums,
    pub(crate) functions: Vec<Vec<u8>>,
    functions_bytes: usize,
    pub(crate) functions_proof: Proof,
    /// Not written because they had expired.
    pub(crate) expired: u64,
    /// Not written because a pattern left them out.
    pub(crate) left_out: u64,
    pub(crate) bytes: u64,
    pub(crate) module_data: u64,
    pub(crate) opaque: BTreeSet<(u64, Vec<u8>)>,
    pub(crate) deferred: Vec<Deferred>,
    pub(crate) refused: Written,
}

struct Large {
    key: LargeKey,
    name: Vec<u8>,
    db: u64,
    encoding: Encoding,
    options: RestoreOptions,
    at: u64,
    length: u64,
    crc: Crc64,
}

impl Builder {
    pub(crate) fn new(
        filter: Filter,
        manner: Manner,
        databases: Databases,
        pipes: Vec<Sender<Batch>>,
        route: Option<Arc<[u16]>>,
    ) -> Self {
        let batches = pipes.iter().map(|_| Batch::default()).collect();
        Self {
            filter,
            manner,
            databases,
            pipes,
            route,
            batches,
            canonical: Canonical::new(),
            large: None,
            scratch: Vec::new(),
            transcoded: Vec::new(),
            chosen: BTreeMap::new(),
            last_chosen: None,
            done: Built::default(),
        }
    }

    /// Whether the item a key belongs to is selected.
    fn is_chosen(&mut self, db: u64, kind: Kind, class: Class) -> bool {
        let item = (db, kind, class);
        if let Some((last, chosen)) = self.last_chosen
            && last == item
        {
            return chosen;
        }
        let filter = &self.filter;
        let chosen = *self.chosen.entry(item).or_insert_with(|| filter.item(db, kind, class));
        self.last_chosen = Some((item, chosen));
        chosen
    }

    /// Counts a key; whether it is to be written.
    fn takes(
        &mut self,
        record_db: u64,
        kind: Kind,
        expires_at: Option<i64>,
        key: &[u8],
        hashed: Option<&Hashed>,
    ) -> bool {
        if !self.is_chosen(record_db, kind, hashed.map_or(Class::Lasting, Hashed::class)) {
            return false;
        }
        if let Some(hashed) = hashed {
            self.done.delivered.add(record_db, kind, hashed);
        }
        if !self.filter.key(record_db, key) {
            self.done.left_out += 1;
            return false;
        }
        if expires_at.is_some_and(|at| at <= self.manner.now) {
            self.done.expired += 1;
            return false;
        }
        if let Some(hashed) = hashed {
            if hashed.opaque {
                self.done.opaque.insert((record_db, key.to_vec()));
            }
            self.done.written.add(record_db, kind, hashed);
        }
        true
    }

    fn options(&self, record: &Record<'_>) -> RestoreOptions {
        RestoreOptions {
            expires_at: record.expires_at,
            idle: record.idle,
            frequency: record.frequency,
            replace: self.manner.existing == Existing::Replace,
        }
    }

    /// The batch for commands about `key`. A full one, and one for another database, is sent first.
    fn batch(&mut self, db: u64, key: &[u8]) -> Result<&mut Batch> {
        let to = self.databases.of(db)?;
        let pipe = self
            .route
            .as_ref()
            .map_or(0, |route| route.get(usize::from(slot(key))).copied().map_or(0, usize::from));
        if self.batches.get(pipe).is_some_and(|b| !b.starts.is_empty() && (b.db != to || b.is_full())) {
            self.send(pipe)?;
        }
        let batch = self
            .batches
            .get_mut(pipe)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "restore Redis keys"))?;
        batch.db = to;
        Ok(batch)
    }

    fn write(
        &mut self,
        db: u64,
        key: &[u8],
        (code, raw): (u8, &[u8]),
        options: RestoreOptions,
        expected: Option<Expected>,
    ) -> Result<()> {
        let Manner { version, proving, .. } = self.manner;
        let batch = self.batch(db, key)?;
        restore(batch, key, code, raw, version, options);
        if proving == Proving::EachBatch {
            batch.expected.extend(expected);
        }
        Ok(())
    }

    /// Writes a string that is stored as it is by `SET`, which costs a server less than `RESTORE` and its checksum.
    /// `false`: it has to be restored, because it is compressed, or `SET` cannot say what is to be kept beside it.
    fn set(&mut self, record: &Record<'_>, key: &[u8], value: &[u8]) -> Result<bool> {
        let plain = self.manner.existing == Existing::None
            && record.encoding == Encoding::String
            && self.options(record) == RestoreOptions::default();
        if plain
            && let Some((string, _)) = StoredString::cut(value)?
            && !matches!(string.head, Head::Lzf { .. })
        {
            let mut number = Vec::new();
            set(self.batch(record.db, key)?, key, string.plain(&mut number)?);
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends what was gathered for one node. Waits while it is behind.
    fn send(&mut self, pipe: usize) -> Result<()> {
        let (Some(batch), Some(to)) = (self.batches.get_mut(pipe), self.pipes.get(pipe)) else {
            return Ok(());
        };
        let batch = std::mem::take(batch);
        // The node's task has ended with an error of its own, which is the one reported.
        to.blocking_send(batch).map_err(|_| Error::new(ErrorKind::TargetFailed, "restore Redis keys"))
    }

    fn too_new(&mut self, key: &[u8], encoding: Encoding) {
        let why = format!(
            "a {} in an encoding that servers have since RDB version {}; this one reads up to {}",
            encoding.kind().name(),
            encoding.since(),
            self.manner.version
        );
        self.done.refused.refuse(key, &why);
    }
}

impl Visitor for Builder {
    fn function(&mut self, library: &[u8]) -> Result<()> {
        if !self.filter.functions() {
            return Ok(());
        }
        self.done.functions_proof.add([library]);
        self.done.functions_bytes += library.len();
        if self.done.functions_bytes > FUNCTIONS_LIMIT {
            return Err(Error::new(ErrorKind::LimitExceeded, "restore Redis functions")
                .message("the libraries of functions are larger than 64 MiB together"));
        }
        self.done.functions.push(library.to_vec());
        Ok(())
    }

    fn module_aux(&mut self, _module_id: u64) -> Result<()> {
        self.done.module_data += 1;
        Ok(())
    }

    fn value(&mut self, record: &Record<'_>, value: &[u8]) -> Result<()> {
        let hashed = if self.manner.proving.passes(record, value) {
            None
        } else {
            Some(self.canonical.whole(record, record.db, value)?)
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let key = record.key.plain(&mut scratch)?;
        if self.takes(record.db, record.encoding.kind(), record.expires_at, key, hashed.as_ref()) {
            self.done.bytes += value.len() as u64;
            let options = self.options(record);
            let expected = hashed.map(|hashed| expected(record.db, record.expires_at, &hashed));
            if value.len() as u64 + AROUND > self.manner.max_bulk {
                let mut crc = Crc64::new();
                crc.update(&[record.encoding.code()]);
                crc.update(value);
                self.done.deferred.push(Deferred {
                    db: self.databases.of(record.db)?,
                    key: key.to_vec(),
                    encoding: record.encoding,
                    options,
                    range: record.value_offset..record.value_offset + value.len() as u64,
                    crc,
                    expected,
                });
            } else if record.encoding.since() > self.manner.version {
                let mut transcoded = std::mem::take(&mut self.transcoded);
                match transcode(record.encoding, value, self.manner.version, &mut transcoded)? {
                    Some(encoding) => {
                        self.write(record.db, key, (encoding.code(), &transcoded), options, expected)?;
                    }
                    None => self.too_new(key, record.encoding),
                }
                self.transcoded = transcoded;
            } else if !self.set(record, key, value)? {
                self.write(record.db, key, (record.encoding.code(), value), options, expected)?;
            }
        }
        self.scratch = scratch;
        Ok(())
    }

    fn large(&mut self, record: &Record<'_>) -> Result<()> {
        let mut crc = Crc64::new();
        crc.update(&[record.encoding.code()]);
        self.large = Some(Large {
            key: LargeKey::begin(&mut self.canonical, record, record.db)?,
            name: record.key.to_vec()?,
            db: record.db,
            encoding: record.encoding,
            options: self.options(record),
            at: record.value_offset,
            length: 0,
            crc,
        });
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(large) = &mut self.large {
            large.key.piece(&mut self.canonical, bytes)?;
            large.crc.update(bytes);
            large.length += bytes.len() as u64;
        }
        Ok(())
    }

    fn large_end(&mut self) -> Result<()> {
        let Some(large) = self.large.take() else { return Ok(()) };
        let hashed = large.key.end(&mut self.canonical)?;
        let (db, encoding, expires_at) = (large.db, large.encoding, large.options.expires_at);
        if !self.takes(db, encoding.kind(), expires_at, &large.name, Some(&hashed)) {
            return Ok(());
        }
        self.done.bytes += large.length;
        self.done.deferred.push(Deferred {
            db: self.databases.of(db)?,
            key: large.name,
            encoding,
            options: large.options,
            range: large.at..large.at + large.length,
            crc: large.crc,
            expected: Some(expected(db, expires_at, &hashed)),
        });
        Ok(())
    }

    fn end(&mut self, _checked: bool) -> Result<()> {
        for pipe in 0..self.batches.len() {
            if self.batches.get(pipe).is_some_and(|b| !b.starts.is_empty()) {
                self.send(pipe)?;
            }
        }
        // The nodes' tasks end when nobody can send to them any more.
        self.pipes.clear();
        Ok(())
    }
}

fn expected(db: u64, expires_at: Option<i64>, hashed: &Hashed) -> Expected {
    Expected { digest: hashed.digest, expires_at, db, opaque: hashed.opaque }
}
