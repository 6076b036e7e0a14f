//! Where data comes from: [`Source`] and its [`Snapshot`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::item::{Item, ItemSpool};
use crate::name::BackupId;
use crate::proof::Proofs;
use crate::retention::LogPosition;
use crate::selection::Selection;
use crate::target::ItemList;

/// Bytes in order. Lazy: nothing happens until it is polled. `Err` is the last item. An end without `Err` means
/// only that this stream ended; success of a backup is [`Snapshot::finish`].
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// Something that can be backed up.
///
/// # Contract
///
/// * [`snapshot`](Source::snapshot) fixes ONE consistent point in time for everything it yields, or says in a
///   warning that it cannot.
/// * Dropping a source, a snapshot or one of its streams at any moment leaves nothing behind on the server:
///   no transaction, slot, temporary file or process.
/// * `Debug` shows no secret.
#[async_trait]
pub trait Source: Debug + Send + Sync {
    /// What this is: `"postgres"`, `"directory"`. Recorded in the manifest and used to find a fitting target.
    fn kind(&self) -> &'static str;

    /// Looks whether a backup could succeed: may connect and may read. Names what is missing, and the way round.
    async fn check(&self) -> Result<CheckReport>;

    /// Begins a backup at one consistent point.
    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>>;

    /// Which of `request.earlier`, finished by a run that died, hold exactly what a [`snapshot`](Source::snapshot) of the
    /// same request would store again: their numbers in that list. Asked before the snapshot begins; what is named here and
    /// proves to be undamaged is in the snapshot's request then.
    ///
    /// That a name is the same says nothing: only what tells the content (times and inodes of all files, a version of the
    /// data) does, which the source left with the artifact as [`Finished::state`] or in its items. The default
    /// names none.
    async fn unchanged(&self, request: SnapshotRequest<'_>) -> Result<Vec<usize>> {
        let _ = request;
        Ok(Vec::new())
    }
}

/// What a backup asks of a source.
#[derive(Clone, Debug)]
pub struct SnapshotRequest<'a> {
    /// The backup to build upon, if this is to be an incremental. A source that cannot, makes a full.
    pub parent: Option<&'a dyn ParentReader>,
    /// What to include.
    pub selection: Selection,
    /// Fires when the run is to stop. Streams also stop when they are dropped.
    pub cancelled: CancellationToken,
    /// What a run that died has finished, and this one is to take over: each is part of the snapshot. The source yields
    /// it in its place like any artifact, by its own [`meta`](Earlier::meta); the stream is not read. No other artifact has
    /// its name, and its items and proofs belong into the report like those of all others.
    pub earlier: Vec<Earlier>,
}

impl SnapshotRequest<'_> {
    /// A full backup of everything.
    pub fn full() -> Self {
        Self {
            parent: None,
            selection: Selection::all(),
            cancelled: CancellationToken::new(),
            earlier: Vec::new(),
        }
    }
}

/// An artifact that a run of the same set finished before it died.
#[derive(Clone)]
pub struct Earlier {
    /// What it is.
    pub meta: ArtifactMeta,
    /// Its plain bytes.
    pub plain_size: u64,
    /// What the source left with it: [`Finished::state`].
    pub state: Option<Value>,
    /// What its items prove.
    pub proofs: Proofs,
    /// Its items.
    pub items: Arc<dyn ItemList>,
}

impl Debug for Earlier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Earlier").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// What an [independent](ArtifactMeta::independent) artifact holds, so that a later run can take it over.
#[derive(Debug, Default)]
pub struct Finished {
    /// What the source wants to find again to tell whether the artifact still holds what it would store.
    pub state: Option<Value>,
    /// Its items, which also are, or will be, in the source's report. None lies in another backup.
    pub items: ItemSpool,
    /// What they prove.
    pub proofs: Proofs,
}

/// What an incremental may read of the backup it builds upon.
pub trait ParentReader: Debug + Send + Sync {
    /// The parent's id.
    fn id(&self) -> BackupId;
    /// What its source left for the next backup: [`SourceReport::state`].
    fn state(&self) -> Option<&Value>;
    /// Its items, in the order the source pushed them, each with its `origin` filled in.
    fn items(&self) -> BoxStream<'static, Result<Item>>;
}

/// A backup in progress on the source's side.
///
/// The engine calls [`next`](Snapshot::next) until it returns `None`, holding at most
/// [`max_open`](Snapshot::max_open) undrained artifacts, then [`finish`](Snapshot::finish) once, commits the
/// manifest, and calls [`close`](Snapshot::close). On any failure it drops the streams and calls `close(Aborted)`.
#[async_trait]
pub trait Snapshot: Send {
    /// The next artifact, or `None` when there are no more.
    async fn next(&mut self) -> Result<Option<Artifact>>;

    /// How many artifacts may stream at once.
    fn max_open(&self) -> usize {
        1
    }

    /// Expected plain bytes of all artifacts together, for progress.
    fn estimate(&self) -> Option<u64> {
        None
    }

    /// The success token: called once, after every stream was drained to its end. It waits for the exit status,
    /// end marker or checksum that says the data is whole. Without it there is no manifest.
    async fn finish(&mut self) -> Result<SourceReport>;

    /// What an independent artifact holds, asked for once when its stream was drained and stored, if the run can be
    /// resumed. `None`, the default: it cannot be taken over.
    fn finished(&mut self, artifact: &str) -> Option<Finished> {
        let _ = artifact;
        None
    }

    /// Releases whatever the snapshot holds on the server. Positions that free data there (replication slots)
    /// advance on [`Outcome::Committed`] only.
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()>;
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The manifest is on as many sinks as required.
    Committed,
    /// The manifest is on fewer sinks than required: nothing may be advanced.
    Degraded,
    /// There is no backup.
    Aborted,
}

/// One stream of a backup, in the datastore's own format.
pub struct Artifact {
    /// What it is.
    pub meta: ArtifactMeta,
    /// Its plain bytes.
    pub data: ByteStream,
}

impl Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// What is known of an artifact before its first byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactMeta {
    /// Unique in the backup. It becomes an object name that anyone who may list the sink can read, so
    /// it is chosen by the source and not taken from user data where encryption is expected to hide it.
    pub name: Cow<'static, str>,
    /// The format of the plain bytes.
    pub format: ArtifactFormat,
    /// Restores work phase by phase: all artifacts of a phase complete before the next phase begins.
    #[serde(default)]
    pub phase: u32,
    /// Expected plain bytes, to plan uploads. An estimate; never trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_hint: Option<u64>,
    /// Whether a later run may adopt this artifact from one that died (its bytes do not depend on the moment).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub independent: bool,
}

impl ArtifactMeta {
    /// An artifact `name` of `format`.
    pub fn new(name: impl Into<Cow<'static, str>>, format: ArtifactFormat) -> Self {
        Self { name: name.into(), format, phase: 0, size_hint: None, independent: false }
    }

    /// Sets the phase.
    pub fn phase(mut self, phase: u32) -> Self {
        self.phase = phase;
        self
    }

    /// Declares that its bytes do not depend on the moment: a later run may take it over from one that died, where
    /// [`Source::unchanged`] says so.
    pub fn independent(mut self) -> Self {
        self.independent = true;
        self
    }

    /// Sets the expected size in bytes.
    pub fn size_hint(mut self, bytes: u64) -> Self {
        self.size_hint = Some(bytes);
        self
    }
}

/// The format of an artifact's plain bytes: a name targets recognise, and the file extension tools know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFormat {
    /// `"tar"`, `"pg_dump.custom"`, `"redis.rdb"`.
    pub name: Cow<'static, str>,
    /// Without the dot: `"tar"`, `"dump"`, `"rdb"`.
    pub extension: Cow<'static, str>,
}

impl ArtifactFormat {
    /// A POSIX tar archive.
    pub const TAR: Self = Self::new("tar", "tar");
    /// Bytes without a known structure.
    pub const BYTES: Self = Self::new("bytes", "bin");

    /// A format by name and file extension.
    pub const fn new(name: &'static str, extension: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), extension: Cow::Borrowed(extension) }
    }
}

/// What a source says when everything was delivered.
#[derive(Debug, Default)]
pub struct SourceReport {
    /// What the next incremental, or the next log slice, needs to continue from here.
    pub state: Option<Value>,
    /// Version of the server or tool the data came from.
    pub server_version: Option<String>,
    /// The consistent point, where it is another moment than the start of the backup.
    pub consistent_at: Option<DateTime<Utc>>,
    /// Where replay of the source's continuous log begins after a restore of this backup, where it has one.
    pub log_position: Option<LogPosition>,
    /// What the content proves, computed while it flowed.
    pub proofs: Proofs,
    /// What the backup contains.
    pub items: ItemSpool,
    /// Details of the whole (encoding, extensions, totals). Kept with the items, encrypted where the data is.
    pub details: Map<String, Value>,
    /// Details per artifact name.
    pub artifacts: BTreeMap<String, Map<String, Value>>,
    /// How to restore without this library, for `RESTORE.txt`.
    pub recipe: Recipe,
    /// What a person should know although the backup succeeded.
    pub warnings: Vec<Warning>,
}

/// How to restore the plain artifacts with standard tools: lines of shell that a person copies.
///
/// Names of user data in them must be quoted; secrets do not belong here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// What to do first: `mkdir restored`, `createdb copy`.
    pub before: Vec<String>,
    /// A command per artifact name that reads the plain artifact from standard input. An artifact without one
    /// is written to a file of its name.
    pub commands: BTreeMap<String, String>,
    /// A command that reads all artifacts that have none of their own, one after the other in the order of the
    /// manifest, from standard input: for formats whose files may be joined.
    pub joined: Option<String>,
    /// Whether `joined` also reads the ranges of single items, one after the other, before the artifacts. Then the
    /// text of an incremental takes what other backups hold out of their artifacts.
    pub joins_items: bool,
    /// What to do last.
    pub after: Vec<String>,
}

/// Something a person should know although the operation succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A stable, short code in kebab-case: `"file-changed-while-read"`.
    pub code: Cow<'static, str>,
    /// What happened, in a sentence.
    pub message: String,
}

impl Warning {
    /// A warning.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code), message: message.into() }
    }
}

/// What [`Source::check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Version of the server or tool.
    pub server_version: Option<String>,
    /// Expected plain bytes of a full backup.
    pub estimated_bytes: Option<u64>,
    /// What will not work, or not fully, and the way round.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether a backup can be expected to succeed.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|f| !f.fatal)
    }
}

/// One thing a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether a backup would fail because of it.
    pub fatal: bool,
    /// A stable, short code in kebab-case.
    pub code: Cow<'static, str>,
    /// What is wrong and what to do.
    pub message: String,
}
