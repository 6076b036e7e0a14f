//! The proof of an RDB's content.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{Proof, Proofs, Result};

use super::canonical::{Canonical, Hashed, LargeKey};
use super::encoding::Kind;
use super::visit::{Record, Visitor};

/// Keys that stay, under this name in [`Proofs`].
pub const KEYS: &str = "keys";
/// Keys that expire, or hashes with a field that does. Apart, because a copy made later has fewer.
pub const EXPIRING: &str = "expiring";
/// Keys with a packed collection over 16 MiB, hashed as stored. Another server may store it differently.
pub const OPAQUE: &str = "opaque";
/// Libraries of functions.
pub const FUNCTIONS: &str = "functions";

/// Which proof a key adds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Class {
    /// [`KEYS`]
    Lasting,
    /// [`EXPIRING`]
    Expiring,
    /// [`OPAQUE`]
    Opaque,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Lasting, Self::Expiring, Self::Opaque];

    /// The name of its proof.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lasting => KEYS,
            Self::Expiring => EXPIRING,
            Self::Opaque => OPAQUE,
        }
    }
}

/// Proofs of one database.
type PerDb = [[Proof; Class::ALL.len()]; Kind::ALL.len()];

/// Sums of hashed keys, by database, kind and class.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    done: BTreeMap<u64, PerDb>,
    /// The database added to last: nearly always the next one too.
    current: (u64, PerDb),
    changes: Changes,
}

impl Sums {
    #[inline]
    pub(crate) fn add(&mut self, db: u64, kind: Kind, hashed: &Hashed) {
        let class = hashed.class();
        if let (Class::Expiring, Some(at)) = (class, hashed.changes_at) {
            self.changes.add(at, hashed);
        }
        if self.current.0 != db {
            let done = std::mem::replace(&mut self.current, (db, PerDb::default()));
            merge(&mut self.done, &done);
        }
        if let Some(proof) = self.current.1.get_mut(kind.index()).and_then(|p| p.get_mut(class as usize)) {
            proof.add_hashed(&hashed.digest);
        }
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (db, sums) in &other.done {
            merge(&mut self.done, &(*db, *sums));
        }
        merge(&mut self.done, &other.current);
        self.changes.merge(&other.changes);
    }

    /// The proofs by database, kind and class; empty ones are left out.
    pub(crate) fn parts(&self) -> BTreeMap<(u64, Kind, Class), Proof> {
        let mut all = self.done.clone();
        merge(&mut all, &self.current);
        let mut found = BTreeMap::new();
        for (db, kinds) in all {
            for (kind, classes) in Kind::ALL.into_iter().zip(kinds) {
                for (class, proof) in Class::ALL.into_iter().zip(classes) {
                    if proof.count > 0 {
                        found.insert((db, kind, class), proof);
                    }
                }
            }
        }
        found
    }

    /// The proofs by name; those that are not empty, and [`KEYS`] always.
    pub(crate) fn proofs(&self) -> Proofs {
        let mut proofs = Proofs::new();
        proofs.insert(KEYS.to_owned(), Proof::empty());
        for ((_, _, class), proof) in self.parts() {
            proofs.entry(class.name().to_owned()).or_default().merge(&proof);
        }
        proofs
    }

    /// What expires when.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }
}

/// Computes the proof of an RDB while a reader reads it. Equal content gives equal proofs, whichever server, version
/// and encoding stored it; the source of `rdb/canonical.rs` says what is hashed.
#[derive(Default)]
pub struct Prover {
    canonical: Canonical,
    large: Option<(LargeKey, u64, Kind)>,
    sums: Sums,
    functions: Proof,
    /// Where a database is to be counted, if not as itself; databases not named are then not counted.
    as_db: Option<BTreeMap<u64, u64>>,
    /// Keys to be counted as opaque, whatever their encoding here.
    opaque_names: BTreeSet<(u64, Vec<u8>)>,
    /// A key that is not counted.
    without: Option<Vec<u8>>,
}

impl std::fmt::Debug for Prover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prover").field("proofs", &self.proofs()).finish_non_exhaustive()
    }
}

impl Prover {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts only the databases named, each as the one it is mapped to, and not the key `without`.
    pub(crate) fn mapped(mut self, databases: BTreeMap<u64, u64>, without: Option<&[u8]>) -> Self {
        self.as_db = Some(databases);
        self.without = without.map(<[u8]>::to_vec);
        self
    }

    /// Counts these keys (of the mapped databases) as opaque.
    pub(crate) fn with_opaque(mut self, names: BTreeSet<(u64, Vec<u8>)>) -> Self {
        self.opaque_names = names;
        self
    }

    /// The sums so far.
    pub(crate) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// The proofs by name: [`KEYS`], [`EXPIRING`], [`OPAQUE`] and [`FUNCTIONS`], those that are not empty, and
    /// [`KEYS`] always.
    pub fn proofs(&self) -> Proofs {
        let mut proofs = self.sums.proofs();
        if self.functions.count > 0 {
            proofs.insert(FUNCTIONS.to_owned(), self.functions);
        }
        proofs
    }

    /// The proofs by database, kind and class; empty ones are left out.
    pub fn parts(&self) -> BTreeMap<(u64, Kind, Class), Proof> {
        self.sums.parts()
    }

    /// The proof of the libraries of functions.
    pub fn functions(&self) -> Proof {
        self.functions
    }

    /// The database a record counts to, if it counts.
    #[inline]
    fn db(&self, record: &Record<'_>) -> Option<u64> {
        let Some(map) = &self.as_db else { return Some(record.db) };
        let db = map.get(&record.db).copied()?;
        match &self.without {
            Some(without) if record.key.body == without => None,
            _ => Some(db),
        }
    }

    /// Whether a key is one of those that are opaque elsewhere. There are hardly ever any.
    fn opaque_elsewhere(&self, record: &Record<'_>, db: u64) -> bool {
        !self.opaque_names.is_empty()
            && record.key.to_vec().is_ok_and(|key| self.opaque_names.contains(&(db, key)))
    }
}

fn merge(all: &mut BTreeMap<u64, PerDb>, (db, add): &(u64, PerDb)) {
    for (sums, adds) in all.entry(*db).or_default().iter_mut().zip(add) {
        for (sum, add) in sums.iter_mut().zip(adds) {
            sum.merge(add);
        }
    }
}

impl Visitor for Prover {
    fn function(&mut self, library: &[u8]) -> Result<()> {
        self.functions.add([library]);
        Ok(())
    }

    #[inline]
    fn value(&mut self, record: &Record<'_>, value: &[u8]) -> Result<()> {
        let Some(db) = self.db(record) else { return Ok(()) };
        let mut hashed = self.canonical.whole(record, db, value)?;
        hashed.opaque |= self.opaque_elsewhere(record, db);
        self.sums.add(db, record.encoding.kind(), &hashed);
        Ok(())
    }

    fn large(&mut self, record: &Record<'_>) -> Result<()> {
        self.large = match self.db(record) {
            None => None,
            Some(db) => {
                let mut key = LargeKey::begin(&mut self.canonical, record, db)?;
                if self.opaque_elsewhere(record, db) {
                    key.opaque_elsewhere();
                }
                Some((key, db, record.encoding.kind()))
            }
        };
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some((key, ..)) = &mut self.large {
            key.piece(&mut self.canonical, bytes)?;
        }
        Ok(())
    }

    fn large_end(&mut self) -> Result<()> {
        if let Some((key, db, kind)) = self.large.take() {
            let hashed = key.end(&mut self.canonical)?;
            self.sums.add(db, kind, &hashed);
        }
        Ok(())
    }
}

/// Proofs of keys that expire, by when: to compare a copy made earlier with what is left of it later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Milliseconds a bucket covers, as a power of two.
    shift: u32,
    buckets: BTreeMap<i64, Proof>,
}

/// Buckets kept; about 60 bytes each.
const BUCKETS: usize = 8192;
/// A bucket covers a second at least.
const FINEST: u32 = 10;

impl Changes {
    fn add(&mut self, at: i64, hashed: &Hashed) {
        self.shift = self.shift.max(FINEST);
        self.buckets.entry(at >> self.shift).or_default().add_hashed(&hashed.digest);
        while self.buckets.len() > BUCKETS {
            self.coarsen(self.shift + 1);
        }
    }

    fn coarsen(&mut self, shift: u32) {
        let by = shift - self.shift;
        let mut buckets = BTreeMap::<i64, Proof>::new();
        for (bucket, proof) in &self.buckets {
            buckets.entry(bucket >> by.min(63)).or_default().merge(proof);
        }
        self.buckets = buckets;
        self.shift = shift;
    }

    fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        let shift = self.shift.max(other.shift).max(FINEST);
        self.coarsen(shift);
        other.coarsen(shift);
        for (bucket, proof) in other.buckets {
            self.buckets.entry(bucket).or_default().merge(&proof);
        }
        while self.buckets.len() > BUCKETS {
            self.coarsen(self.shift + 1);
        }
    }

    /// How many keys there are.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.values().map(|p| p.count).sum()
    }

    /// Whether `later` holds exactly the keys of `self` that had not changed by `now` (milliseconds since 1970), and
    /// of the others no more than there were.
    pub(crate) fn survive_in(&self, later: &Self, now: i64) -> bool {
        let shift = self.shift.max(later.shift).max(FINEST);
        let (mut before, mut after) = (self.clone(), later.clone());
        before.coarsen(shift);
        after.coarsen(shift);
        let edge = now >> shift;
        let all = before.buckets.keys().chain(after.buckets.keys()).collect::<BTreeSet<_>>();
        all.into_iter().all(|bucket| {
            let was = before.buckets.get(bucket).copied().unwrap_or_default();
            let is = after.buckets.get(bucket).copied().unwrap_or_default();
            if *bucket > edge { was == is } else { is.count <= was.count }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup_core::Digest;

    fn hashed(n: u64) -> Hashed {
        Hashed { digest: Digest::of(&n.to_le_bytes()), changes_at: None, elements: 1, opaque: false }
    }

    #[test]
    fn what_expired_may_be_missing_and_nothing_else() {
        let now = 1_000_000_000_000;
        let mut before = Changes::default();
        let mut after = Changes::default();
        for n in 0..50_000u64 {
            let at = now - 10_000_000 + i64::try_from(n).unwrap() * 1000;
            before.add(at, &hashed(n));
            if at > now {
                after.add(at, &hashed(n));
            }
        }
        assert!(before.buckets.len() <= BUCKETS);
        assert_eq!(before.count(), 50_000);
        assert!(before.survive_in(&after, now));
        let mut lost = before.clone();
        lost.add(now + 30_000_000, &hashed(1));
        assert!(!lost.survive_in(&after, now));
        assert!(!after.survive_in(&lost, now));
    }
}
