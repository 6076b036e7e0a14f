//! Limits on what an archive may unpack to, and the space it needs.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use backup_core::{Error, ErrorKind, RestorePlan, Result};
use rustix::fs::fstatvfs;

use super::OPERATION;
use crate::canonical::PROOF_NAME;

/// Bytes an archive may unpack to beyond the recorded ones and a quarter of them.
const SPARE_BYTES: u64 = 64 * 1024 * 1024;
/// Members beyond the recorded number.
const SPARE_MEMBERS: u64 = 1024;

/// What may still be unpacked.
#[derive(Debug)]
pub(crate) struct Budget {
    max_bytes: u64,
    max_members: u64,
    bytes: AtomicU64,
    members: AtomicU64,
}

impl Budget {
    /// From the recorded logical size and, where the plan has it, the recorded number of items.
    pub(crate) fn of(plan: &RestorePlan, additional: u64) -> Self {
        let members = plan.proofs.get(PROOF_NAME).map_or(u64::MAX, |proof| proof.count);
        let logical = plan.logical_bytes;
        Self {
            max_bytes: logical.saturating_add(logical / 4).saturating_add(SPARE_BYTES),
            max_members: members.saturating_add(additional).saturating_add(SPARE_MEMBERS),
            bytes: AtomicU64::new(0),
            members: AtomicU64::new(0),
        }
    }

    /// Accounts for a member of `bytes` logical bytes before it is written.
    pub(crate) fn take(&self, bytes: u64) -> Result<()> {
        let members = self.members.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if members > self.max_members {
            return Err(Error::new(ErrorKind::LimitExceeded, OPERATION)
                .message("the archive holds more members than the backup recorded: refused")
                .with("limit", self.max_members));
        }
        if before.checked_add(bytes).is_none_or(|sum| sum > self.max_bytes) {
            return Err(Error::new(ErrorKind::LimitExceeded, OPERATION)
                .message("the archive unpacks to much more than the backup recorded: refused")
                .with("limit", self.max_bytes));
        }
        Ok(())
    }
}

/// Fails when the file system of `directory` has less free space than is needed.
pub(crate) fn check_space(directory: impl AsFd, needed: u64) -> Result<()> {
    let stat = fstatvfs(directory).map_err(|e| Error::io("look for free space", e.into()))?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available < needed {
        return Err(Error::new(ErrorKind::StorageFull, OPERATION)
            .message("there is not enough space beside the destination; free some, or restore elsewhere")
            .with("needed_bytes", needed)
            .with("available_bytes", available));
    }
    Ok(())
}
