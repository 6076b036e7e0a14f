//! [`Keyring`]: the keys a repository is given, and how they open backups.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::BackupKey;
use super::builder::KeyringBuilder;
use super::ring_entry::RingEntry;
use super::wrap::{Kek, WrapFile, to_json};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName};

/// Most attempts to open the passphrase entries of one backup; each takes tenths of a second or more.
const MAX_ATTEMPTS: usize = 16;

/// Most entries of a repository's keyring that passphrases are tried on.
const MAX_ENTRIES: usize = 64;

/// The keys of a repository: raw 256-bit keys and passphrases. Cheap to clone; `Debug` shows key ids only.
///
/// Every backup has a random key of its own. The **first** key of the ring wraps the keys of new backups (all keys do
/// with [`KeyringBuilder::wrap_with_all`]); **any** key of the ring may open an old one. To rotate, put the new key
/// first and keep the old one behind it.
///
/// It does no input or output. A repository offers it the files it found, and stores the files it returns:
/// [`prepare`](Self::prepare) and [`wrap`](Self::wrap) when a backup begins, [`unwrap`](Self::unwrap) when one is
/// opened. With passphrases these compute for tenths of a second (once per process and entry): call them where
/// blocking is allowed.
///
/// ```
/// use backup_core::Keyring;
/// let keyring = Keyring::builder().key([7; 32]).build()?;
/// assert_eq!(keyring.key_ids().len(), 1);
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Keyring(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) secrets: Vec<Secret>,
    pub(super) wrap_with_all: bool,
    pub(super) allow_new_passphrase: bool,
    pub(super) rounds: u32,
    opened: Mutex<Opened>,
}

/// Something a user gave.
#[derive(Clone)]
pub(super) enum Secret {
    Key(Kek),
    Passphrase(Zeroizing<Vec<u8>>),
}

/// What passphrases have opened so far, so that each entry is computed once per process.
#[derive(Default)]
struct Opened {
    /// By key id: which passphrase (its place among the secrets), the entry, and the key in it.
    entries: BTreeMap<String, (usize, RingEntry, Kek)>,
    /// Entries that a passphrase was tried on in vain.
    failed: BTreeSet<(usize, String)>,
}

/// What [`Keyring::prepare`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RingUpdate {
    /// Files to create in `keyring/` before the first backup that uses them: name and content. The names are new;
    /// every one is also copied into the backups that need it.
    pub store: Vec<(String, Bytes)>,
    /// Entries that could not be read. Backups made with them carry their own copy.
    pub damaged: Vec<Error>,
}

impl Keyring {
    /// Begins a keyring.
    pub fn builder() -> KeyringBuilder {
        KeyringBuilder::default()
    }

    /// A keyring of one passphrase.
    pub fn from_passphrase(passphrase: impl Into<String>) -> Result<Self> {
        Self::builder().passphrase(passphrase).build()
    }

    /// A keyring of the one key in a file.
    pub fn from_key_file(path: impl Into<PathBuf>) -> Result<Self> {
        Self::builder().key_file(path).build()
    }

    /// A keyring of the one key in an environment variable.
    pub fn from_env(variable: impl Into<String>) -> Result<Self> {
        Self::builder().key_env(variable).build()
    }

    pub(super) fn assemble(
        secrets: Vec<Secret>,
        wrap_with_all: bool,
        allow_new_passphrase: bool,
        rounds: u32,
    ) -> Self {
        Self(Arc::new(Inner {
            secrets,
            wrap_with_all,
            allow_new_passphrase,
            rounds,
            opened: Mutex::default(),
        }))
    }

    /// The ids of its keys, in its order; a passphrase has those of the entries it opened so far.
    pub fn key_ids(&self) -> Vec<String> {
        let opened = self.opened();
        let mut ids = Vec::new();
        for (i, secret) in self.0.secrets.iter().enumerate() {
            match secret {
                Secret::Key(kek) => ids.push(kek.id.clone()),
                Secret::Passphrase(_) => {
                    ids.extend(opened.entries.iter().filter(|(_, e)| e.0 == i).map(|(id, _)| id.clone()));
                }
            }
        }
        ids
    }

    /// Whether [`prepare`](Self::prepare) has to be called with the files of `keyring/` before [`wrap`](Self::wrap).
    pub fn needs_preparation(&self) -> bool {
        let opened = self.opened();
        self.wrapping().any(|(i, s)| matches!(s, Secret::Passphrase(_)) && opened.of(i).is_none())
    }

    /// Makes the passphrases that wrap new backups ready: opens an entry of the repository's `keyring/` for each, or
    /// makes a new one. `files` are all files there, with their names.
    ///
    /// When two processes make an entry for the same passphrase at once, both entries are stored and both serve.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WrongKey`] when there are entries and no passphrase of this ring opens any: it is taken for a
    /// mistyped one (see [`KeyringBuilder::allow_new_passphrase`]).
    pub fn prepare(&self, files: &[(String, Bytes)]) -> Result<RingUpdate> {
        let mut update = RingUpdate::default();
        if !self.needs_preparation() {
            return Ok(update);
        }
        let mut entries = BTreeMap::new();
        for (name, bytes) in files {
            let Some(id) = name.strip_suffix(".json").filter(|id| id.starts_with("p-")) else { continue };
            match RingEntry::parse(id, bytes) {
                Ok(entry) => {
                    entries.insert(id, entry);
                }
                Err(error) => update.damaged.push(error),
            }
        }
        let found = !entries.is_empty() || !update.damaged.is_empty();
        let mut opened = self.opened();
        for entry in entries.values().take(MAX_ENTRIES) {
            if let Err(error) = self.open_entry(entry, &mut opened) {
                update.damaged.push(error);
            }
        }
        for (i, secret) in self.wrapping() {
            let Secret::Passphrase(passphrase) = secret else { continue };
            if opened.of(i).is_some() {
                continue;
            }
            if opened.entries.is_empty() && found && !self.0.allow_new_passphrase {
                return Err(mistyped(&update));
            }
            let (entry, kek) = RingEntry::create(passphrase, self.0.rounds)?;
            update.store.push((format!("{}.json", kek.id), to_json(&entry)?));
            opened.entries.insert(kek.id.clone(), (i, entry, kek));
        }
        Ok(update)
    }

    /// Wraps the key of a new backup: the files to store in its `keys/`, name and content.
    pub fn wrap(&self, set: &SetName, id: BackupId, key: &BackupKey) -> Result<Vec<(String, Bytes)>> {
        let opened = self.opened();
        let mut files = BTreeMap::new();
        for (i, secret) in self.wrapping() {
            let (name, bytes) = match secret {
                Secret::Key(kek) => kek.wrap(set, id, key, None)?,
                Secret::Passphrase(_) => {
                    let (entry, kek) = opened.of(i).ok_or_else(|| {
                        Error::new(ErrorKind::Internal, "wrap key").message("the keyring was not prepared")
                    })?;
                    kek.wrap(set, id, key, Some(entry))?
                }
            };
            files.insert(name, bytes);
        }
        Ok(files.into_iter().collect())
    }

    /// Opens the key of a backup. `files` are those of its `keys/`, with their names.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WrongKey`] when none of the files was made for a key of this ring, naming both;
    /// [`ErrorKind::Corrupt`] when one was, but is damaged or belongs to another backup.
    pub fn unwrap(&self, set: &SetName, id: BackupId, files: &[(String, Bytes)]) -> Result<BackupKey> {
        let mut damage = None;
        let named: Vec<(&str, &Bytes)> =
            files.iter().filter_map(|(name, bytes)| Some((name.strip_suffix(".json")?, bytes))).collect();
        // What needs no passphrase first: it costs nothing.
        for (key_id, bytes) in &named {
            let Some(kek) = self.known(key_id) else { continue };
            match WrapFile::parse(key_id, bytes).and_then(|file| kek.unwrap(set, id, &file)) {
                Ok(key) => return Ok(key),
                Err(error) => damage = Some(error),
            }
        }
        let mut attempts = 0;
        for (key_id, bytes) in &named {
            if !key_id.starts_with("p-") || !self.has_passphrase() || self.known(key_id).is_some() {
                continue;
            }
            attempts += 1;
            if attempts > MAX_ATTEMPTS {
                break;
            }
            match self.unwrap_by_passphrase(set, id, key_id, bytes) {
                Ok(Some(key)) => return Ok(key),
                Ok(None) => {}
                Err(error) => damage = Some(error),
            }
        }
        Err(damage.unwrap_or_else(|| self.no_key(set, id, &named)))
    }

    fn unwrap_by_passphrase(
        &self,
        set: &SetName,
        id: BackupId,
        key_id: &str,
        bytes: &[u8],
    ) -> Result<Option<BackupKey>> {
        let file = WrapFile::parse(key_id, bytes)?;
        let entry = file.passphrase.as_ref().ok_or_else(|| {
            Error::corrupt("open backup key", "the wrapped key lacks its keyring entry").with("key", key_id)
        })?;
        self.open_entry(entry, &mut self.opened())?;
        self.known(key_id).map(|kek| kek.unwrap(set, id, &file)).transpose()
    }

    fn no_key(&self, set: &SetName, id: BackupId, found: &[(&str, &Bytes)]) -> Error {
        let list = |ids: Vec<&str>| if ids.is_empty() { "none".to_owned() } else { ids.join(" ") };
        let mut ours = self.key_ids();
        if self.has_passphrase() {
            ours.push("passphrase".to_owned());
        }
        Error::new(ErrorKind::WrongKey, "open backup key")
            .message("no key of the keyring opens this backup; add the key or passphrase it was made with")
            .with("set", set)
            .with("id", id)
            .with("backup_keys", list(found.iter().map(|(id, _)| *id).collect()))
            .with("our_keys", list(ours.iter().map(String::as_str).collect()))
    }

    /// Tries all passphrases on an entry and remembers the outcome.
    fn open_entry(&self, entry: &RingEntry, opened: &mut Opened) -> Result<()> {
        let id = entry.id();
        for (i, secret) in self.0.secrets.iter().enumerate() {
            let Secret::Passphrase(passphrase) = secret else { continue };
            if opened.entries.contains_key(&id) {
                break;
            }
            if opened.failed.contains(&(i, id.clone())) {
                continue;
            }
            match entry.open(passphrase)? {
                Some(kek) => {
                    opened.entries.insert(id.clone(), (i, entry.clone(), kek));
                }
                None => {
                    opened.failed.insert((i, id.clone()));
                }
            }
        }
        Ok(())
    }

    /// The key of this id, if it is ours and open.
    fn known(&self, key_id: &str) -> Option<Kek> {
        let raw = self.0.secrets.iter().find_map(|secret| match secret {
            Secret::Key(kek) if kek.id == key_id => Some(kek.clone()),
            _ => None,
        });
        raw.or_else(|| self.opened().entries.get(key_id).map(|(_, _, kek)| kek.clone()))
    }

    pub(crate) fn has_passphrase(&self) -> bool {
        self.0.secrets.iter().any(|s| matches!(s, Secret::Passphrase(_)))
    }

    /// The secrets that wrap new backups, with their places.
    fn wrapping(&self) -> impl Iterator<Item = (usize, &Secret)> {
        let count = if self.0.wrap_with_all { self.0.secrets.len() } else { 1 };
        self.0.secrets.iter().enumerate().take(count)
    }

    /// The entries that the passphrase in this place opened so far: key id and rounds.
    pub(super) fn entries_of(&self, passphrase: usize) -> Vec<(String, u32)> {
        let opened = self.opened();
        let ours = opened.entries.iter().filter(|(_, entry)| entry.0 == passphrase);
        ours.map(|(id, entry)| (id.clone(), entry.1.rounds())).collect()
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        // Every change is one insertion: what a panicking thread left is whole.
        self.0.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mistyped(update: &RingUpdate) -> Error {
    let error = Error::new(ErrorKind::WrongKey, "open keyring").message(
        "the passphrase opens no entry of this repository's keyring; correct it, or permit a new one with \
         `allow_new_passphrase`",
    );
    if update.damaged.is_empty() { error } else { error.with("damaged_entries", update.damaged.len()) }
}

impl Opened {
    /// The entry that the passphrase in this place wraps with: the one with the lowest id, to be the same every time.
    fn of(&self, passphrase: usize) -> Option<(&RingEntry, &Kek)> {
        self.entries.values().find(|e| e.0 == passphrase).map(|(_, entry, kek)| (entry, kek))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for id in self.key_ids() {
            list.entry(&format_args!("{id}"));
        }
        if self.has_passphrase() {
            list.entry(&format_args!("passphrase"));
        }
        list.finish()
    }
}
