//! Where the objects of a backup lie on a sink.

use crate::error::Result;
use crate::key::Key;
use crate::name::{BackupId, SetName};

/// Names of the objects of one backup: `<set>/<id>/…`.
#[derive(Clone, Debug)]
pub(crate) struct BackupDir(Key);

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const PENDING: &str = "pending.json";
/// Beside the manifest: the backup stays until somebody removes this.
pub(crate) const PINNED: &str = "pinned.json";
/// Directory of the markers of pruners that are about to delete the backup, one object per pruner.
pub(crate) const CONDEMNED: &str = "condemned";
pub(crate) const RESTORE_TXT: &str = "RESTORE.txt";
pub(crate) const SHA256SUMS: &str = "SHA256SUMS";
/// The ranges of other backups' artifacts that a restore by hand needs.
pub(crate) const RANGES: &str = "RANGES";
pub(crate) const DECRYPT_PY: &str = "decrypt.py";
/// Stem of the object that lists plain digests, proofs and items.
pub(crate) const DETAILS: &str = "details";
pub(crate) const KEYS: &str = "keys";
pub(crate) const KEYRING: &str = "keyring";

impl BackupDir {
    pub(crate) fn new(set: &SetName, id: BackupId) -> Result<Self> {
        Ok(Self(set.key()?.join(id.to_string())?))
    }

    pub(crate) fn prefix(&self) -> &Key {
        &self.0
    }

    /// An object of the backup; `name` is a segment as the manifest or this library has it, still to be encoded.
    pub(crate) fn object(&self, name: &str) -> Result<Key> {
        self.0.join(name)
    }

    pub(crate) fn manifest(&self) -> Result<Key> {
        self.0.join(MANIFEST)
    }

    pub(crate) fn pending(&self) -> Result<Key> {
        self.0.join(PENDING)
    }

    pub(crate) fn pinned(&self) -> Result<Key> {
        self.0.join(PINNED)
    }

    pub(crate) fn condemned(&self) -> Result<Key> {
        self.0.join(CONDEMNED)
    }

    pub(crate) fn keys(&self) -> Result<Key> {
        self.0.join(KEYS)
    }
}
