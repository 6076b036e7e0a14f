//! What is in an RDB: counts, sizes, the biggest keys, and when keys expire.

use std::collections::{BTreeMap, BinaryHeap};

use backup_core::Result;
use chrono::{DateTime, Utc};

use super::encoding::Kind;
use super::visit::{Record, Visitor};

/// How many of the biggest keys are kept.
const BIGGEST: usize = 20;
/// Longest part of a key's name that is kept, in bytes.
const NAME: usize = 1024;

/// Keys of one kind in one database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Keys.
    pub keys: u64,
    /// Those of them that expire.
    pub expires: u64,
    /// Bytes of their records in the stream: type, key and value.
    pub bytes: u64,
}

/// A big key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BigKey {
    /// Bytes of its value in the stream.
    pub bytes: u64,
    /// Its database.
    pub db: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its name, up to its first 1024 bytes.
    pub key: Vec<u8>,
}

/// How many keys expire when, counted from a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Already expired.
    pub past: u64,
    /// Within an hour.
    pub hour: u64,
    /// Within a day.
    pub day: u64,
    /// Within a week.
    pub week: u64,
    /// Within 30 days.
    pub month: u64,
    /// Later.
    pub later: u64,
}

/// Gathers statistics of an RDB while a reader reads it.
#[derive(Clone, Debug)]
pub struct Statistics {
    counts: BTreeMap<u64, [Count; Kind::ALL.len()]>,
    /// The database counted last: nearly always the next one too.
    current: (u64, [Count; Kind::ALL.len()]),
    biggest: BinaryHeap<std::cmp::Reverse<BigKey>>,
    expiry: Expiry,
    now: i64,
    functions: u64,
    modules: u64,
    aux: BTreeMap<String, String>,
    large: Option<(BigKey, bool, u64)>,
    checked: Option<bool>,
}

/// Auxiliary fields kept; a server writes about ten.
const AUX: usize = 64;

impl Statistics {
    /// Nothing yet; expiry is counted from `now`.
    pub fn new(now: DateTime<Utc>) -> Self {
        Self {
            counts: BTreeMap::new(),
            current: (0, Default::default()),
            biggest: BinaryHeap::new(),
            expiry: Expiry::default(),
            now: now.timestamp_millis(),
            functions: 0,
            modules: 0,
            aux: BTreeMap::new(),
            large: None,
            checked: None,
        }
    }

    /// Counts by database and kind; kinds without keys are left out.
    pub fn counts(&self) -> BTreeMap<(u64, Kind), Count> {
        let mut all = self.counts.clone();
        merge(&mut all, &self.current);
        let mut found = BTreeMap::new();
        for (db, kinds) in all {
            for (kind, count) in Kind::ALL.into_iter().zip(kinds) {
                if count.keys > 0 {
                    found.insert((db, kind), count);
                }
            }
        }
        found
    }

    /// Everything together.
    pub fn total(&self) -> Count {
        self.counts().values().fold(Count::default(), |sum, c| Count {
            keys: sum.keys + c.keys,
            expires: sum.expires + c.expires,
            bytes: sum.bytes + c.bytes,
        })
    }

    /// The biggest keys, biggest first.
    pub fn biggest(&self) -> Vec<BigKey> {
        let mut keys: Vec<_> = self.biggest.iter().map(|k| k.0.clone()).collect();
        keys.sort_by(|a, b| b.cmp(a));
        keys
    }

    /// When keys expire.
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// Libraries of functions.
    pub fn functions(&self) -> u64 {
        self.functions
    }

    /// Pieces of data that modules keep beside the keys.
    pub fn module_data(&self) -> u64 {
        self.modules
    }

    /// The auxiliary fields (`redis-ver`, `ctime`).
    pub fn aux_fields(&self) -> &BTreeMap<String, String> {
        &self.aux
    }

    /// Version of the server that wrote the stream, if it says so: `7.0.15`, `valkey 8.0.1`.
    pub fn server_version(&self) -> Option<String> {
        match (self.aux.get("redis-ver"), self.aux.get("valkey-ver")) {
            (_, Some(valkey)) => Some(format!("valkey {valkey}")),
            (Some(redis), None) => Some(redis.clone()),
            (None, None) => None,
        }
    }

    /// Whether the stream carried a checksum; `None` until its end was seen.
    pub fn checksummed(&self) -> Option<bool> {
        self.checked
    }

    #[inline]
    fn count(&mut self, db: u64, kind: Kind, expires: bool, bytes: u64) {
        if self.current.0 != db {
            let done = std::mem::replace(&mut self.current, (db, Default::default()));
            merge(&mut self.counts, &done);
        }
        if let Some(count) = self.current.1.get_mut(kind.index()) {
            count.keys += 1;
            count.expires += u64::from(expires);
            count.bytes += bytes;
        }
    }

    #[inline]
    fn smallest_big(&self) -> u64 {
        if self.biggest.len() < BIGGEST { 0 } else { self.biggest.peek().map_or(0, |k| k.0.bytes) }
    }

    fn big(&mut self, key: BigKey) {
        self.biggest.push(std::cmp::Reverse(key));
        if self.biggest.len() > BIGGEST {
            self.biggest.pop();
        }
    }

    fn expires(&mut self, at: i64) {
        const HOUR: i64 = 3_600_000;
        let slot = match at.saturating_sub(self.now) {
            i64::MIN..=0 => &mut self.expiry.past,
            1..=HOUR => &mut self.expiry.hour,
            left if left <= 24 * HOUR => &mut self.expiry.day,
            left if left <= 7 * 24 * HOUR => &mut self.expiry.week,
            left if left <= 30 * 24 * HOUR => &mut self.expiry.month,
            _ => &mut self.expiry.later,
        };
        *slot += 1;
    }
}

fn merge(counts: &mut BTreeMap<u64, [Count; Kind::ALL.len()]>, (db, add): &(u64, [Count; Kind::ALL.len()])) {
    for (sum, add) in counts.entry(*db).or_default().iter_mut().zip(add) {
        sum.keys += add.keys;
        sum.expires += add.expires;
        sum.bytes += add.bytes;
    }
}

fn big_key(record: &Record<'_>, bytes: u64) -> BigKey {
    let mut key = record.key.to_vec().unwrap_or_default();
    key.truncate(NAME);
    BigKey { bytes, db: record.db, kind: record.encoding.kind(), key }
}

impl Visitor for Statistics {
    fn aux(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        if self.aux.len() < AUX && name.len() + value.len() <= NAME {
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            self.aux.insert(text(name), text(value));
        }
        Ok(())
    }

    fn function(&mut self, _library: &[u8]) -> Result<()> {
        self.functions += 1;
        Ok(())
    }

    fn module_aux(&mut self, _module_id: u64) -> Result<()> {
        self.modules += 1;
        Ok(())
    }

    #[inline]
    fn value(&mut self, record: &Record<'_>, value: &[u8]) -> Result<()> {
        let bytes = value.len() as u64;
        let whole = 1 + record.key.body.len() as u64 + bytes;
        self.count(record.db, record.encoding.kind(), record.expires_at.is_some(), whole);
        if let Some(at) = record.expires_at {
            self.expires(at);
        }
        if bytes > self.smallest_big() {
            self.big(big_key(record, bytes));
        }
        Ok(())
    }

    fn large(&mut self, record: &Record<'_>) -> Result<()> {
        if let Some(at) = record.expires_at {
            self.expires(at);
        }
        self.large =
            Some((big_key(record, 0), record.expires_at.is_some(), 1 + record.key.body.len() as u64));
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some((key, ..)) = &mut self.large {
            key.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    fn large_end(&mut self) -> Result<()> {
        if let Some((key, expires, head)) = self.large.take() {
            self.count(key.db, key.kind, expires, head + key.bytes);
            if key.bytes > self.smallest_big() {
                self.big(key);
            }
        }
        Ok(())
    }

    fn end(&mut self, checked: bool) -> Result<()> {
        self.checked = Some(checked);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::RdbReader;
    use crate::rdb::length::write_string;

    const HOUR: i64 = 3_600_000;

    /// A string key of database `db`, with its expiry time in milliseconds since 1970.
    fn key(rdb: &mut Vec<u8>, db: u8, expires_at: Option<i64>, name: &str, size: usize) {
        rdb.extend_from_slice(&[254, db]);
        if let Some(at) = expires_at {
            rdb.push(252);
            rdb.extend_from_slice(&at.to_le_bytes());
        }
        rdb.push(0);
        write_string(rdb, name.as_bytes());
        write_string(rdb, &vec![b'v'; size]);
    }

    #[test]
    fn the_biggest_keys_and_the_times_of_expiry_are_found_whether_a_value_is_whole_or_in_pieces() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        let at = |left: i64| Some(now.timestamp_millis() + left);
        let mut rdb = b"REDIS0009".to_vec();
        for n in 0..50 {
            key(&mut rdb, 0, None, &format!("key:{n}"), 100 + n);
        }
        key(&mut rdb, 3, at(30 * 24 * HOUR + 1), "huge", 3 << 20);
        key(&mut rdb, 3, at(HOUR), "within the hour", 1);
        for left in [0, -5] {
            key(&mut rdb, 3, at(left), "past", 1);
        }
        for left in [HOUR + 1, 24 * HOUR, 24 * HOUR + 1, 7 * 24 * HOUR + 1] {
            key(&mut rdb, 3, at(left), "later", 1);
        }
        rdb.extend_from_slice(&[255, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut statistics = Statistics::new(now);
        let mut reader = RdbReader::new();
        for piece in rdb.chunks(70_001) {
            reader.push(piece, &mut statistics).unwrap();
        }
        reader.finish().unwrap();
        assert_eq!(statistics.expiry(), Expiry { past: 2, hour: 1, day: 2, week: 1, month: 1, later: 1 });
        let biggest = statistics.biggest();
        assert_eq!(biggest.len(), BIGGEST);
        assert_eq!((biggest[0].db, &biggest[0].key[..], biggest[0].bytes), (3, &b"huge"[..], (3 << 20) + 5));
        for (n, big) in biggest.iter().enumerate().skip(1) {
            assert_eq!(big.key, format!("key:{}", 50 - n).into_bytes());
        }
        let total = statistics.total();
        assert_eq!((total.keys, total.expires, statistics.checksummed()), (58, 8, Some(false)));
    }
}
