//! Back up, verify and restore: the core.
//!
//! This crate holds the traits that datastores, stores and transforms implement ([`Source`], [`RestoreTarget`],
//! [`Sink`], [`Transform`], [`RetentionPolicy`]) and the engine that moves bytes between them.

mod clock;
mod command;
mod digest;
mod engine;
mod error;
mod item;
mod key;
mod keys;
mod layout;
mod log;
mod manifest;
mod memory;
mod name;
mod observer;
mod placement;
mod proof;
mod reader;
mod repository;
mod retention;
mod selection;
mod sink;
mod source;
mod target;
mod transform;
mod whole;
mod workers;

pub use command::{ARTIFACT_VARIABLE, CommandFailure, CommandLine, CommandSource, CommandTarget};
pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use item::{Item, ItemKind, ItemPath, ItemProof, ItemSpool, parse_item};
pub use key::{Key, decode_segment, encode_segment};
pub use keys::{BackupKey, Keyring, KeyringBuilder, RingUpdate, Signatures, SigningKey, VerifyingKey};
pub use log::{Cut, CutRequest, LogSource, gap as log_gap};
pub use manifest::{
    FORMAT, IndexRef, MANIFEST_LIMIT, Manifest, Previous, Seal, SourceInfo, StoredArtifact, StoredObject,
    Totals,
};
pub use memory::{MemorySink, MemorySource, MemoryTarget};
pub use name::{BackupId, SetName, SinkId};
pub use observer::{Event, Observer};
pub use placement::{CopyRule, Placement, ShortOf, Shortfall, copies};
pub use proof::{Proof, Proofs};
pub use reader::{ArtifactBytes, ArtifactReader};
pub use repository::{
    Archived, Backup, BackupList, BackupReport, Checkup, Contents, CopyProblem, DeletedBackup, Export,
    Follow, FollowReport, KeptWrap, KeyCheck, KeyReport, Loss, NotArchived, NotDeleted, PitrReport,
    PlannedPrune, Prune, PruneReport, RecoverySheet, RecoverySheetBuilder, Replayed, Replica, Replicate,
    ReplicateFailure, ReplicateReport, Repository, RepositoryBuilder, RestoreBuilder, RestoreOutcome,
    RestoreTo, Rotate, RotateFailure, RotateReport, Rotated, SetList, SinkCheck, SinkPitr, SinkPlan, Spared,
    Sweep, SweepReport, Swept, Unreadable, Verify, VerifyReport,
};
#[cfg(feature = "import")]
pub use repository::{Import, ImportFailure, ImportReport, Imported};
pub use retention::{
    And, BackupKind, BackupSummary, CLOCK_TOLERANCE, Decision, Gfs, KeepLabelled, KeepLast, KeepWithin,
    LogGap, LogPosition, Or, PitrRange, PitrWindow, PlanEntry, PrunePlan, RetentionPolicy, Slot, Standing,
    Until, countable, pitr_gaps, pitr_ranges, pitr_window, standings,
};
pub use selection::Selection;
pub use sink::{
    Availability, CREATE_NEW_LIMIT, ObjectInfo, ObjectKind, PutMode, PutOptions, Sink, SinkWriter, Space,
    StoreAddress, StoreCopy, put_bytes, read_bytes,
};
pub use source::{
    Artifact, ArtifactFormat, ArtifactMeta, ByteStream, CheckReport, Earlier, Finding, Finished, Outcome,
    ParentReader, Recipe, Snapshot, SnapshotRequest, Source, SourceReport, Warning,
};
pub use target::{
    Atomicity, ItemList, PlannedArtifact, PlannedSlice, Restore, RestorePlan, RestoreReport, RestoreTarget,
    SliceReader, Undo,
};
#[cfg(feature = "zstd")]
pub use transform::Zstd;
pub use transform::{
    AesGcm, Chain, ChainDecoder, ChainEncoder, ChainRange, Codec, CodecContext, Emit, Frame, Gzip, Identity,
    Located, Stage, Transform, TransformSpec,
};
#[cfg(feature = "age")]
pub use transform::{Age, AgeBuilder};
pub use whole::{WHOLE_BYTES, whole_item, whole_proof};
pub use workers::Workers;
pub use {async_trait::async_trait, bytes::Bytes, chrono_tz::Tz, tokio_util::sync::CancellationToken};
