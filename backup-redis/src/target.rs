//! Restoring into a live server: [`RedisRestore`].

mod batch;
mod begin;
mod build;
mod functions;
pub(crate) mod glob;
mod large;
mod load;
mod pipe;
mod readback;
mod rebuild;
mod running;
mod safety;
mod slots;
mod stage;
mod uncompressed;
mod undo;
mod verify;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{ArtifactFormat, Atomicity, Restore, RestorePlan, RestoreTarget, Result};

use self::glob::Glob;
use crate::config::RedisConfig;
use crate::source::RDB;

/// Restores into a running Redis or Valkey server, over the network, by pipelined `RESTORE`.
///
/// | way | what happens to what is there | promise |
/// |---|---|---|
/// | [`RedisRestore::new`] | the keys are loaded into empty spare databases, proved there, and all change places with the real ones in one `MULTI` of `SWAPDB`; the old ones are kept in the spare ones until dropped | [`Atomicity::Swap`] |
/// | [`in_place`](Self::in_place) | it is streamed into a safety backup first, which is put back when the restore fails | [`Atomicity::None`] |
/// | [`merge`](Self::merge) | it stays, and the keys of the backup are added | [`Atomicity::None`] |
///
/// A restore touches the databases that the backup holds, and no others. A cluster has one database, so only the
/// latter two work there. What the server cannot take is named key by key, and the restore fails.
///
/// To prove what was written, a restore reads all of it back as a replica does. Compression of strings would take the
/// server most of the time of that, so where the user may `CONFIG SET`, `rdbcompression` is off until the server
/// begins to send (by default five seconds, `repl-diskless-sync-delay`; with `repl-diskless-sync no`, for as long as it writes a
/// file first), and on again then. A process that is killed meanwhile, or whose runtime ends when the restore is dropped,
/// leaves it off, as do a server and a network that are lost: the server's own snapshots are larger from then on, and nothing else is different, until it starts again
/// or hears `CONFIG SET rdbcompression yes`. Whoever does not want that gives the user no `config|set`:
/// [`PERMISSIONS`](Self::PERMISSIONS) leaves it out, because it allows much.
///
/// Keys keep their expiry times; those that have expired are counted and not written. While a restore in place or a
/// merge runs, other clients see it.
#[derive(Clone, Debug)]
pub struct RedisRestore {
    config: RedisConfig,
    way: Way,
    databases: Option<BTreeSet<u64>>,
    keys: Option<Arc<[Glob]>>,
    safety: Option<PathBuf>,
}

/// How a restore treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Swap,
    InPlace,
    Merge(OnConflict),
}

/// What a merge does about a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// It stays as it is, and is counted.
    Keep,
    /// The backup's replaces it.
    Replace,
}

impl RedisRestore {
    /// What the user of a restore needs, as `ACL SETUSER` takes it, beside `~*`. Servers before 7.0 do not know
    /// `function` and `pexpiretime`: leave them out there. In a cluster add `+cluster|slots +asking`, and where
    /// values may be longer than `proto-max-bulk-len`, `+@write`.
    ///
    /// With `+config|set`, which is not needed and allows much, the server need not compress what is read back.
    ///
    /// The proof reads everything back, so this user can read all data: its password is worth protecting.
    pub const PERMISSIONS: &str = "+restore +select +dbsize +get +set +del +exists +flushdb +swapdb +multi +exec \
         +dump +pttl +pexpiretime +info +time +config|get +client|id +client|kill +function|list \
         +function|restore +ping +psync +sync +replconf";

    /// Into the server at `url`; see [`RedisConfig`]. Connects when it is used.
    pub fn connect(url: &str) -> Result<Self> {
        RedisConfig::parse(url).map(Self::new)
    }

    /// Into the server of `config`.
    pub fn new(config: RedisConfig) -> Self {
        Self { config, way: Way::Swap, databases: None, keys: None, safety: None }
    }

    /// Writes into the real databases. Where they hold something (and replacing was asked for), it is first
    /// streamed into [`safety_backup`](Self::safety_backup).
    pub fn in_place(mut self) -> Self {
        self.way = Way::InPlace;
        self
    }

    /// Adds the keys of the backup to those that are there. Each batch is read back and compared. With a
    /// [`safety_backup`](Self::safety_backup), a merge that fails is undone.
    pub fn merge(mut self, conflict: OnConflict) -> Self {
        self.way = Way::Merge(conflict);
        self
    }

    /// The directory for the safety backup. Its files are readable by their owner alone, and stay until
    /// [`Undo::drop_old`](backup_core::Undo::drop_old).
    pub fn safety_backup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.safety = Some(directory.into());
        self
    }

    /// Restores these databases only.
    pub fn only_databases(mut self, databases: impl IntoIterator<Item = u64>) -> Self {
        self.databases = Some(databases.into_iter().collect());
        self
    }

    /// Restores keys that match one of these patterns only: patterns as of the command `KEYS`, over bytes.
    pub fn only_keys<P: AsRef<[u8]>>(mut self, patterns: impl IntoIterator<Item = P>) -> Self {
        self.keys = Some(patterns.into_iter().map(|p| Glob::new(p.as_ref())).collect());
        self
    }

    /// Empties the databases that a safety backup holds and writes it back: the way out after a restore in place
    /// died together with its process. The file is left where it is.
    pub async fn put_back(&self, safety_backup: &Path) -> Result<()> {
        begin::put_back(self, safety_backup).await
    }
}

#[async_trait]
impl RestoreTarget for RedisRestore {
    fn accepts(&self, format: &ArtifactFormat) -> bool {
        format.name == RDB.name
    }

    fn atomicity(&self) -> Atomicity {
        match self.way {
            Way::Swap => Atomicity::Swap,
            Way::InPlace | Way::Merge(_) => Atomicity::None,
        }
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        begin::begin(self, plan).await
    }
}
