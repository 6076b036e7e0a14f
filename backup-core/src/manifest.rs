//! The manifest: the last object of a backup, and the one that makes it exist.
//!
//! It is JSON that a person can read, followed by one line with the [seal](Seal) over the exact bytes before it.
//! Fields this version does not know are kept.

mod seal;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName};
use crate::retention::{BackupKind, LogPosition};
use crate::source::ArtifactMeta;
use crate::transform::TransformSpec;

pub use seal::Seal;
pub(crate) use seal::{Sealer, is_signed, open, open_finished, seal, seal_finished};

/// The format number this version writes, and the only one it reads.
pub const FORMAT: u32 = 1;
/// Largest manifest a reader accepts, in bytes.
pub const MANIFEST_LIMIT: u64 = 64 * 1024 * 1024;

/// What a backup is and which objects it consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The set it belongs to; must equal its place on the sink.
    pub set: SetName,
    /// Its id; must equal its place on the sink.
    pub id: BackupId,
    /// Full, incremental or log slice.
    pub kind: BackupKind,
    /// What made it.
    pub source: SourceInfo,
    /// Start, by the producer's clock.
    pub started: DateTime<Utc>,
    /// End, by the producer's clock.
    pub finished: DateTime<Utc>,
    /// The consistent point, where it is another moment than the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_at: Option<DateTime<Utc>>,
    /// Where replay of the set's continuous log begins after a restore of this backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_position: Option<LogPosition>,
    /// Until when it stays whatever a retention policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<DateTime<Utc>>,
    /// Name and version of the software that wrote it.
    pub software: String,
    /// The transforms, in the order in which they were applied.
    pub chain: Vec<TransformSpec>,
    /// Its own artifacts.
    pub artifacts: Vec<StoredArtifact>,
    /// The object with plain digests, proofs and items; it went through the same chain.
    pub details: StoredObject,
    /// Plain objects beside them: `RESTORE.txt`, `SHA256SUMS`, `decrypt.py`.
    pub notes: Vec<StoredObject>,
    /// Backups whose artifacts its items refer to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub references: BTreeSet<BackupId>,
    /// Labels given by the caller. Readable by anyone who may read the sink.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The backup of this set that was the newest before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// Sums.
    pub totals: Totals,
    /// Copies its repository required.
    pub required_copies: u32,
    /// Copies that were good when it was committed.
    pub good_copies: u32,
    /// What a later version wrote that this one does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What made a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// [`Source::kind`](crate::Source::kind).
    pub kind: String,
    /// Version of the server or tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
}

/// The backup before this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its id.
    pub id: BackupId,
    /// SHA-256 of its manifest object.
    pub sha256: Digest,
}

/// Sums over the backup's own objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Plain bytes of its artifacts.
    pub plain: u64,
    /// Stored bytes of all its objects but the manifest.
    pub stored: u64,
    /// Items it lists.
    pub items: u64,
}

/// An object of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Its name in the backup's directory, before encoding as a key segment.
    pub object: String,
    /// Its size in bytes, as stored.
    pub size: u64,
    /// SHA-256 of its stored bytes.
    pub sha256: Digest,
    /// Plain size in bytes, where it went through the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_size: Option<u64>,
    /// Its block index, where it is larger than a few blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRef>,
    /// The run that stored it, where that died and the backup took it over: keys are derived for that id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_as: Option<BackupId>,
}

/// The block index of a large object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRef {
    /// Its name in the backup's directory.
    pub object: String,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// An artifact as the manifest records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredArtifact {
    /// Its name, format and phase.
    #[serde(flatten)]
    pub meta: ArtifactMeta,
    /// The object that holds it.
    #[serde(flatten)]
    pub stored: StoredObject,
}

impl Manifest {
    /// Whether it had fewer good copies than were required when it was committed. It may have been replicated since.
    pub fn degraded(&self) -> bool {
        self.good_copies < self.required_copies
    }

    /// Whether its artifacts are encrypted.
    pub fn encrypted(&self) -> bool {
        self.chain.iter().any(|spec| ENCRYPTING.contains(&spec.id.as_ref()))
    }

    /// The artifact of this name.
    pub fn artifact(&self, name: &str) -> Option<&StoredArtifact> {
        self.artifacts.iter().find(|a| a.meta.name == name)
    }

    /// Every object the backup consists of, but the manifest and the key wraps.
    pub fn objects(&self) -> impl Iterator<Item = (Cow<'_, str>, u64, Digest)> {
        let stored = self.artifacts.iter().map(|a| &a.stored).chain([&self.details]).chain(&self.notes);
        stored.flat_map(|o| {
            let index = o.index.as_ref().map(|i| (Cow::Borrowed(i.object.as_str()), i.size, i.sha256));
            std::iter::once((Cow::Borrowed(o.object.as_str()), o.size, o.sha256)).chain(index)
        })
    }

    /// Parses and checks the document part of a manifest object.
    pub(crate) fn parse(document: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let unreadable =
            |e| Error::corrupt("read manifest", "the manifest is not the JSON it should be").caused_by(e);
        let version: Version = serde_json::from_slice(document).map_err(unreadable)?;
        if version.format != FORMAT {
            return Err(Error::new(ErrorKind::Unsupported, "read manifest")
                .message("this backup was written in a format this version does not know; use the software that wrote it or a newer one")
                .with("format", version.format)
                .with("known", FORMAT));
        }
        let manifest: Self = serde_json::from_slice(document).map_err(unreadable)?;
        let mut names = BTreeSet::new();
        for (name, _, _) in manifest.objects() {
            // Names become keys below the backup's own directory; `Key::join` encodes everything else away.
            if name.is_empty() || name.len() > crate::key::MAX_SEGMENT || !names.insert(name.into_owned()) {
                return Err(Error::corrupt(
                    "read manifest",
                    "an object name is empty, too long or listed twice",
                ));
            }
        }
        Ok(manifest)
    }
}

/// Ids of transforms that make bytes unreadable without a key.
const ENCRYPTING: [&str; 2] = ["aes-256-gcm", "age"];
