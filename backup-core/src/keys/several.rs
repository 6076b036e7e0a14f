//! Several keyrings and several wraps: what rotation, replication and key checks need beyond a single backup.

use bytes::Bytes;
use zeroize::Zeroizing;

use super::BackupKey;
use super::keyring::{Keyring, Secret};
use super::ring_entry::RingEntry;
use super::wrap::WrapFile;
use crate::error::{ErrorKind, Result};
use crate::name::{BackupId, SetName};

/// A key as a recovery sheet has it.
pub(crate) struct PaperKey {
    pub(crate) description: String,
    pub(crate) secret: Zeroizing<String>,
}

impl Keyring {
    /// Every key, described, and as a person types it in again.
    pub(crate) fn for_paper(&self) -> Vec<PaperKey> {
        let paper = |(i, secret): (usize, &Secret)| match secret {
            Secret::Key(kek) => PaperKey {
                description: format!("key {}: 256 bits, as 64 hexadecimal digits", kek.id),
                secret: Zeroizing::new(
                    kek.raw.as_ref().map(|raw| hex::encode(raw.as_slice())).unwrap_or_default(),
                ),
            },
            Secret::Passphrase(text) => PaperKey {
                description: {
                    let entries: Vec<_> = self
                        .entries_of(i)
                        .into_iter()
                        .map(|(id, rounds)| format!("{id} ({rounds} rounds of PBKDF2-HMAC-SHA256)"))
                        .collect();
                    format!("passphrase {}, which opens {}", i + 1, entries.join(", "))
                },
                secret: Zeroizing::new(match std::str::from_utf8(text) {
                    Ok(text) => text.to_owned(),
                    Err(_) => format!("not text; its bytes in hexadecimal: {}", hex::encode(text)),
                }),
            },
        };
        self.0.secrets.iter().enumerate().map(paper).collect()
    }

    /// Opens one wrap; `None` when it is well-formed but made for a key that is not in this ring.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] for a damaged one, or one of another backup.
    pub(crate) fn open_wrap(
        &self,
        set: &SetName,
        id: BackupId,
        wrap: &(String, Bytes),
    ) -> Result<Option<BackupKey>> {
        match self.unwrap(set, id, std::slice::from_ref(wrap)) {
            Ok(key) => Ok(Some(key)),
            Err(error) if error.kind() == ErrorKind::WrongKey => {
                let name = wrap.0.strip_suffix(".json").unwrap_or(&wrap.0);
                WrapFile::parse(name, &wrap.1).map(|_| None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this is an undamaged file of a `keyring/` directory.
    pub(crate) fn is_ring_entry(name: &str, bytes: &[u8]) -> bool {
        name.strip_suffix(".json").is_some_and(|id| RingEntry::parse(id, bytes).is_ok())
    }

    /// A ring that wraps like this one and also opens what `other` opens.
    pub(crate) fn joined(&self, other: &Self) -> Self {
        // The wrapping keys stay the first ones, so with `wrap_with_all` only this ring may be asked to wrap.
        let secrets = self.0.secrets.iter().chain(&other.0.secrets).cloned().collect();
        Self::assemble(secrets, false, self.0.allow_new_passphrase, self.0.rounds)
    }

    /// Each key in a ring of its own, with a name for reports.
    pub(crate) fn each(&self) -> Vec<(String, Self)> {
        let ring = |secret: &Secret| Self::assemble(vec![secret.clone()], false, false, self.0.rounds);
        let name = |(i, secret): (usize, &Secret)| match secret {
            Secret::Key(kek) => kek.id.clone(),
            Secret::Passphrase(_) => format!("passphrase {}", i + 1),
        };
        self.0.secrets.iter().enumerate().map(|(i, secret)| (name((i, secret)), ring(secret))).collect()
    }
}
