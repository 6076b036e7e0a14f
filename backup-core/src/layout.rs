//! Where the objects of a backup lie on a sink.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::{BackupId, SetName};
use crate::transform::Chain;

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

/// Directory that `RESTORE.txt` restores into where the source has no commands of its own.
pub(crate) const RESTORED: &str = "restored";

/// The names of the objects of one backup while it is made: none may be another's.
#[derive(Debug)]
pub(crate) struct ObjectNames {
    objects: BTreeSet<String>,
    artifacts: BTreeSet<String>,
}

impl ObjectNames {
    /// With the names that the backup itself needs.
    pub(crate) fn new(chain: &Chain) -> Self {
        let own = [
            MANIFEST,
            PENDING,
            PINNED,
            CONDEMNED,
            RESTORE_TXT,
            SHA256SUMS,
            RANGES,
            DECRYPT_PY,
            KEYS,
            RESTORED,
        ];
        let details = details_object(chain);
        let index = index_object(&details);
        Self {
            objects: own.into_iter().map(str::to_owned).chain([details, index]).collect(),
            artifacts: std::iter::once(DETAILS.to_owned()).collect(),
        }
    }

    /// Takes the names of an artifact's object and of its index.
    ///
    /// Names are written into commands that a person runs, too, so those that could be taken for options or for another
    /// line are refused.
    pub(crate) fn take(&mut self, artifact: &str, object: &str) -> Result<()> {
        let refuse = |why: &'static str| {
            Err(Error::new(ErrorKind::SourceFailed, "read source")
                .message(why)
                .with("artifact", artifact.escape_debug()))
        };
        if artifact.is_empty() || artifact.starts_with('-') || artifact.contains(char::is_control) {
            return refuse(
                "the source gave an artifact a name that is empty, begins with `-` or has control characters",
            );
        }
        let new = self.artifacts.insert(artifact.to_owned());
        if !new || !self.objects.insert(object.to_owned()) || !self.objects.insert(index_object(object)) {
            return refuse("the source gave an artifact a name that another object of the backup has");
        }
        Ok(())
    }
}

/// The object that holds the details.
pub(crate) fn details_object(chain: &Chain) -> String {
    format!("{DETAILS}.jsonl{}", chain.extension())
}

/// The object that holds the block index of another.
pub(crate) fn index_object(object: &str) -> String {
    format!("{object}.idx")
}

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
