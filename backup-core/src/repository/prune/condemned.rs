//! The marker of a pruner.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName};

/// Largest marker a reader accepts, in bytes.
pub(super) const MARKER_LIMIT: u64 = 64 * 1024;
/// When the marker of a pruner that never came back is removed from a backup that stays. Pruners give up long before
/// ([`super::delete::MARKED_LIMIT`]); the rest covers two clocks that are each off by a day.
const STALE_AFTER: TimeDelta = TimeDelta::hours(72);

/// `condemned/<run>.json`: a prune is about to delete this backup.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::repository) struct Condemned {
    format: u32,
    set: SetName,
    id: BackupId,
    at: DateTime<Utc>,
}

impl Condemned {
    pub(in crate::repository) fn to_bytes(set: &SetName, id: BackupId, at: DateTime<Utc>) -> Result<Bytes> {
        let marker = Self { format: 1, set: set.clone(), id, at };
        serde_json::to_vec(&marker)
            .map(Bytes::from)
            .map_err(|e| Error::new(ErrorKind::Internal, "mark backup").caused_by(e))
    }

    /// Whether the pruner that wrote this is certainly gone. What cannot be read is not judged.
    pub(super) fn is_stale(bytes: &[u8], now: DateTime<Utc>) -> bool {
        serde_json::from_slice::<Self>(bytes)
            .is_ok_and(|marker| now.signed_duration_since(marker.at) > STALE_AFTER)
    }
}

/// The file name of the markers of one run.
pub(in crate::repository) fn marker_name() -> Result<String> {
    Ok(format!("{}.json", hex::encode(crate::keys::random::<8>()?)))
}
