//! Where the objects of a backup lie on a sink.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::{BackupId, SetName};
use crate::retention::{BackupKind, LogPosition};
use crate::transform::Chain;

/// Names of the objects of one backup: `<set>/<id>/…`, or, for a slice of a continuous log,
/// `<set>/log/<from>-<to>-<id>/…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackupDir {
    prefix: Key,
    slice: Option<SliceName>,
}

/// The last segment of the directory of a slice. Positions hold no `-`, so it is read in one way only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceName {
    pub(crate) from: LogPosition,
    pub(crate) to: LogPosition,
    pub(crate) id: BackupId,
}

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
/// What the name of the note on a finished artifact ends with.
pub(crate) const FINISHED: &str = ".finished.json";
pub(crate) const KEYS: &str = "keys";
pub(crate) const KEYRING: &str = "keyring";
/// Below a set: the directories of its log slices.
pub(crate) const LOG: &str = "log";

/// Directory that `RESTORE.txt` restores into where the source has no commands of its own.
pub(crate) const RESTORED: &str = "restored";

/// The names of the objects of one backup while it is made: none may be another's.
#[derive(Debug)]
pub(crate) struct ObjectNames {
    objects: BTreeSet<String>,
    artifacts: BTreeSet<String>,
    /// The extension of the chain.
    chain: String,
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
            chain: chain.extension(),
        }
    }

    /// Takes the names of an artifact's object, of its index, and of what is noted when it is finished.
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
        let details = finished_details(artifact, &self.chain);
        let noted = [finished_object(artifact), index_object(&details), details];
        let mut names = [object.to_owned(), index_object(object)].into_iter().chain(noted);
        let new = self.artifacts.insert(artifact.to_owned());
        if !new || !names.all(|name| self.objects.insert(name)) {
            return refuse("the source gave an artifact a name that another object of the backup has");
        }
        Ok(())
    }
}

/// The object that holds the details.
pub(crate) fn details_object(chain: &Chain) -> String {
    format!("{DETAILS}.jsonl{}", chain.extension())
}

/// The object that notes that an artifact is finished, for a run that takes it over.
pub(crate) fn finished_object(artifact: &str) -> String {
    format!("{artifact}{FINISHED}")
}

/// The object that lists what a finished artifact holds.
pub(crate) fn finished_details(artifact: &str, chain: &str) -> String {
    format!("{artifact}{FINISHED}l{chain}")
}

/// The object that holds the block index of another.
pub(crate) fn index_object(object: &str) -> String {
    format!("{object}.idx")
}

impl BackupDir {
    pub(crate) fn new(set: &SetName, id: BackupId) -> Result<Self> {
        Ok(Self { prefix: set.key()?.join(id.to_string())?, slice: None })
    }

    /// The directory of a slice.
    pub(crate) fn slice(set: &SetName, name: SliceName) -> Result<Self> {
        let prefix = slices(set)?.join(format!("{}-{}-{}", name.from, name.to, name.id))?;
        Ok(Self { prefix, slice: Some(name) })
    }

    /// The directory that `key` lies in, where `set_key` is that of the set; its id, and what follows.
    pub(crate) fn of(set_key: &Key, key: &Key) -> Option<(BackupId, Self, Vec<String>)> {
        let rest = key.strip_prefix(set_key)?;
        let mut segments = rest.segments();
        let first = segments.next()?;
        let (id, prefix, slice) = if first == LOG {
            let segment = segments.next()?;
            let name = SliceName::parse(segment)?;
            (name.id, set_key.join(LOG).ok()?.join(segment).ok()?, Some(name))
        } else {
            (first.parse().ok()?, set_key.join(first).ok()?, None)
        };
        Some((id, Self { prefix, slice }, segments.map(str::to_owned).collect()))
    }

    pub(crate) fn prefix(&self) -> &Key {
        &self.prefix
    }

    /// The range of the slice this is the directory of.
    pub(crate) fn range(&self) -> Option<&SliceName> {
        self.slice.as_ref()
    }

    pub(crate) fn is_slice(&self) -> bool {
        self.slice.is_some()
    }

    /// Whether a backup of this kind belongs here: a slice in the directory of its own range, anything else outside
    /// the log.
    pub(crate) fn fits(&self, kind: &BackupKind) -> bool {
        match (kind, &self.slice) {
            (BackupKind::Log { from, to, .. }, Some(name)) => *from == name.from && *to == name.to,
            (BackupKind::Log { .. }, None) | (_, Some(_)) => false,
            (_, None) => true,
        }
    }

    /// An object of the backup; `name` is a segment as the manifest or this library has it, still to be encoded.
    pub(crate) fn object(&self, name: &str) -> Result<Key> {
        self.prefix.join(name)
    }

    pub(crate) fn manifest(&self) -> Result<Key> {
        self.prefix.join(MANIFEST)
    }

    pub(crate) fn pending(&self) -> Result<Key> {
        self.prefix.join(PENDING)
    }

    pub(crate) fn pinned(&self) -> Result<Key> {
        self.prefix.join(PINNED)
    }

    pub(crate) fn condemned(&self) -> Result<Key> {
        self.prefix.join(CONDEMNED)
    }

    pub(crate) fn keys(&self) -> Result<Key> {
        self.prefix.join(KEYS)
    }
}

/// The directory of the log slices of a set.
pub(crate) fn slices(set: &SetName) -> Result<Key> {
    set.key()?.join(LOG)
}

impl SliceName {
    /// Reads a segment; `None` where it is not the directory of a slice, or not in its one spelling.
    pub(crate) fn parse(segment: &str) -> Option<Self> {
        let mut parts = segment.splitn(3, '-');
        let from = LogPosition::parse(parts.next()?).ok()?;
        let to = LogPosition::parse(parts.next()?).ok()?;
        let id = parts.next()?.parse().ok()?;
        (from < to).then_some(Self { from, to, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_slice_carries_its_range() {
        let set = SetName::parse("a/b").unwrap();
        let id: BackupId = "20261120T020000Z-00c0de".parse().unwrap();
        let name = SliceName { from: LogPosition::from_number(1), to: LogPosition::from_number(20), id };
        let dir = BackupDir::slice(&set, name.clone()).unwrap();
        let manifest = dir.manifest().unwrap();
        assert_eq!(
            manifest.as_str(),
            "a/b/log/0000000000000001-0000000000000014-20261120T020000Z-00c0de/manifest.json"
        );
        let (found, again, rest) = BackupDir::of(&set.key().unwrap(), &manifest).unwrap();
        assert_eq!((found, &again, rest), (id, &dir, vec![MANIFEST.to_owned()]));
        let plain = BackupDir::new(&set, id).unwrap();
        let below = plain.keys().unwrap().join("k.json").unwrap();
        assert_eq!(BackupDir::of(&set.key().unwrap(), &below).unwrap().1, plain);
        assert!(plain.fits(&BackupKind::Full) && !dir.fits(&BackupKind::Full));
    }

    #[test]
    fn what_is_not_spelled_like_a_slice_is_none() {
        let id = "20261120T020000Z-00c0de";
        for bad in [
            format!("1-2-{id}x"),
            format!("2-1-{id}"),
            format!("1-1-{id}"),
            format!("1-{id}"),
            "1-2-3".to_owned(),
        ] {
            assert!(SliceName::parse(&bad).is_none(), "{bad}");
        }
        assert!(SliceName::parse(&format!("1-2-{id}")).is_some());
    }
}
