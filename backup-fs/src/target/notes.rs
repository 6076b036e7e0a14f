//! What could not be restored exactly, counted by kind instead of listed by file.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup_core::{ItemPath, Warning};

/// One kind of shortcoming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Note {
    /// Stable, in kebab-case.
    pub(crate) code: &'static str,
    /// A sentence without its full stop, to which the count is added.
    pub(crate) sentence: &'static str,
}

pub(crate) const OWNER_LEFT: Note = Note {
    code: "owner-not-set",
    sentence: "the recorded owner was not set; everything belongs to the user who restored it",
};
pub(crate) const SETUID_DROPPED: Note = Note {
    code: "setuid-dropped",
    sentence: "the setuid or setgid bit was left out, because the file does not get its recorded owner",
};
pub(crate) const XATTR_REFUSED: Note = Note {
    code: "xattr-not-set",
    sentence: "an extended attribute was refused by the file system or needs more privileges",
};
pub(crate) const XATTR_FOREIGN: Note = Note {
    code: "xattr-not-restored",
    sentence: "an extended attribute belongs to the other host's policy and is not restored",
};
pub(crate) const ACL_UNKNOWN: Note = Note {
    code: "acl-not-restored",
    sentence: "an access list names users or groups that do not exist here, or is not understood",
};
pub(crate) const TIME_NOT_KEPT: Note = Note {
    code: "time-not-kept",
    sentence: "a time is finer than this file system keeps, or outside of its range, and was brought to the nearest before",
};
pub(crate) const LEFT_OUT: Note = Note {
    code: "leading-directory-left-out",
    sentence: "a directory lies above the destination, because its leading components were stripped",
};

/// Counts of notes, each with one example.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    counts: Mutex<BTreeMap<Note, (u64, Vec<u8>)>>,
    /// Names of attributes that were refused, and how often.
    refused: Mutex<BTreeMap<Vec<u8>, u64>>,
}

impl Notes {
    pub(crate) fn add(&self, note: Note, item: &[u8]) {
        let mut all = lock(&self.counts);
        all.entry(note).or_insert_with(|| (0, item.to_vec())).0 += 1;
    }

    /// Notes that the attribute `name` could not be set on one more entry.
    pub(crate) fn refuse(&self, name: &[u8]) {
        *lock(&self.refused).entry(name.to_vec()).or_default() += 1;
    }

    pub(crate) fn refused(&self) -> BTreeMap<Vec<u8>, u64> {
        lock(&self.refused).clone()
    }

    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let all = lock(&self.counts);
        all.iter()
            .map(|(note, (count, example))| {
                let entries = if *count == 1 { "entry" } else { "entries" };
                let example = ItemPath::new(example.as_slice());
                Warning::new(note.code, format!("{} ({count} {entries}, such as {example})", note.sentence))
            })
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
