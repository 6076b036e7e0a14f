//! Where data goes back to: [`RestoreTarget`] and its [`Restore`].

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::item::Item;
use crate::name::{BackupId, SetName};
use crate::proof::Proofs;
use crate::reader::ArtifactReader;
use crate::retention::{LogPosition, Until};
use crate::selection::Selection;
use crate::source::{ArtifactFormat, ArtifactMeta, Warning};

/// Something a backup can be restored into.
///
/// # Contract
///
/// * Nothing the user already has is changed before [`Restore::commit`], unless [`Atomicity::None`] was declared.
/// * [`begin`](RestoreTarget::begin) fails with [`ErrorKind::TargetNotEmpty`](crate::ErrorKind::TargetNotEmpty) where
///   something is in the way and [`RestorePlan::replace`] is off, and checks space and permissions.
#[async_trait]
pub trait RestoreTarget: Debug + Send + Sync {
    /// Whether it can take artifacts of `format`.
    fn accepts(&self, format: &ArtifactFormat) -> bool;

    /// What happens to what is already there.
    fn atomicity(&self) -> Atomicity;

    /// Prepares a place beside the real one.
    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>>;
}

/// What a target can promise about replacing something that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Atomicity {
    /// Old and new change places in one step.
    Swap,
    /// Item by item, with a journal that finishes or undoes after a crash.
    PerItemWithJournal,
    /// In place. Needs `allow_partial()` and a safety backup.
    None,
}

/// What is to be restored.
#[derive(Clone)]
pub struct RestorePlan {
    /// The set.
    pub set: SetName,
    /// The backup.
    pub id: BackupId,
    /// [`Source::kind`](crate::Source::kind) of what made it.
    pub source_kind: String,
    /// Version of the server it came from.
    pub server_version: Option<String>,
    /// The artifacts that will be offered, in phase order.
    pub artifacts: Vec<PlannedArtifact>,
    /// Where replay of the log begins, if the backup knows it.
    pub log_position: Option<LogPosition>,
    /// Slices of the continuous log to replay afterwards, oldest first, without a gap: each begins at or before the end
    /// of the one before it, and the first at or before [`log_position`](Self::log_position).
    pub log: Vec<PlannedSlice>,
    /// How far to replay the log; `None` where it is not replayed.
    pub until: Option<Until>,
    /// Which items.
    pub selection: Selection,
    /// Whether to replace what exists.
    pub replace: bool,
    /// What the staged copy must prove: of everything, or of the selected items.
    pub proofs: Proofs,
    /// The source's details of the whole.
    pub details: Map<String, Value>,
    /// Logical bytes of the selected items; what the target will need in space, roughly.
    pub logical_bytes: u64,
    /// The selected items, for targets that want to know them beforehand.
    pub items: Arc<dyn ItemList>,
}

impl Debug for RestorePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestorePlan")
            .field("set", &self.set)
            .field("id", &self.id)
            .field("artifacts", &self.artifacts.len())
            .field("log", &self.log.len())
            .field("until", &self.until)
            .field("selection", &self.selection)
            .field("replace", &self.replace)
            .finish_non_exhaustive()
    }
}

/// A list of items that can be streamed more than once.
pub trait ItemList: Send + Sync {
    /// The items, in the order the source recorded them.
    fn stream(&self) -> BoxStream<'static, Result<Item>>;
}

/// An artifact a restore will offer.
#[derive(Clone, Debug)]
pub struct PlannedArtifact {
    /// The backup that holds it.
    pub origin: BackupId,
    /// What it is.
    pub meta: ArtifactMeta,
    /// Its plain size in bytes.
    pub plain_size: u64,
    /// The source's details of it.
    pub details: Map<String, Value>,
}

/// A slice of the log that a restore will offer.
#[derive(Clone, Debug)]
pub struct PlannedSlice {
    /// Its id.
    pub id: BackupId,
    /// Where it begins. Entries before the end of the slice before it were offered already, and are to be skipped.
    pub from: LogPosition,
    /// Where it ends.
    pub to: LogPosition,
    /// The moment of its first entry, by the datastore's clock.
    pub from_time: DateTime<Utc>,
    /// The moment up to which it is complete, by the datastore's clock.
    pub to_time: DateTime<Utc>,
    /// Its artifacts, in phase order.
    pub artifacts: Vec<PlannedArtifact>,
}

/// A slice of the log as [`Restore::replay`] gets it.
#[derive(Clone, Debug)]
pub struct SliceReader {
    /// Which slice.
    pub slice: PlannedSlice,
    /// What its entries prove.
    pub proofs: Proofs,
    /// Its artifacts, in the order of [`PlannedSlice::artifacts`]. Their bytes are compared with the digests of the plain bytes
    /// when they are read to their end.
    pub artifacts: Vec<ArtifactReader>,
}

/// A restore in progress on the target's side.
///
/// The engine asks [`wants`](Restore::wants) and [`needs`](Restore::needs), calls [`artifact`](Restore::artifact) for each,
/// phase by phase, then [`prove`](Restore::prove), compares, replays the log where that was asked for
/// ([`replay`](Restore::replay) for each slice in order, then [`replayed`](Restore::replayed)), and ends with
/// [`commit`](Restore::commit) or [`abort`](Restore::abort). Dropping it is an abort.
#[async_trait]
pub trait Restore: Send + Sync {
    /// Whether this artifact is to be offered at all.
    fn wants(&self, meta: &ArtifactMeta) -> bool {
        let _ = meta;
        true
    }

    /// Whether the bytes of this selected item are to be read. `false` where the target already has them
    /// (an unchanged file); it still counts in the proof.
    async fn needs(&self, item: &Item) -> Result<bool> {
        let _ = item;
        Ok(true)
    }

    /// How many artifacts it takes at once.
    fn max_open(&self) -> usize {
        1
    }

    /// Takes one artifact. Bytes from the reader were verified against the manifest; an error among them means
    /// that no intact copy was found, and the restore will be aborted.
    async fn artifact(&self, reader: ArtifactReader) -> Result<()>;

    /// Computes the proofs of the staged copy by reading it back.
    async fn prove(&self) -> Result<Proofs>;

    /// Applies a slice of the log to the staged copy, or puts it where the datastore will find it. Applies no entry that
    /// was applied before, and none beyond [`RestorePlan::until`]. Targets without a log refuse it.
    async fn replay(&self, slice: SliceReader) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "replay log")
            .message("this target cannot replay a log; restore without `until`")
            .with("slice", slice.slice.id))
    }

    /// Called once after the last slice: where the last entry ends that was applied, or will be at
    /// [`commit`](Restore::commit).
    async fn replayed(&self) -> Result<LogPosition> {
        Err(Error::new(ErrorKind::Unsupported, "replay log").message("this target cannot replay a log"))
    }

    /// Puts the staged copy in place.
    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)>;

    /// Leaves the target as it was before `begin`.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// The way back after a replacing restore.
#[async_trait]
pub trait Undo: Send + Sync + Debug {
    /// Puts the old state back.
    async fn undo(self: Box<Self>) -> Result<()>;
    /// Removes the old state.
    async fn drop_old(self: Box<Self>) -> Result<()>;
}

/// What a target did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Items restored.
    pub items: u64,
    /// Logical bytes restored.
    pub bytes: u64,
    /// Where the old state is kept, if something was replaced.
    pub old_kept_at: Option<String>,
    /// What could not be restored exactly (an owner, an attribute) and why.
    pub warnings: Vec<Warning>,
    /// Anything else worth knowing.
    pub details: Map<String, Value>,
}
