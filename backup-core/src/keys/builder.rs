//! [`KeyringBuilder`].

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::keyring::{Keyring, Secret};
use super::material::{parse_key, read_env, read_file};
use super::ring_entry::ROUNDS;
use super::wrap::Kek;
use crate::error::{Error, Result};

/// Builds a [`Keyring`]. Files and variables are read by [`build`](Self::build), which reports what is wrong.
#[derive(Default)]
pub struct KeyringBuilder {
    origins: Vec<Origin>,
    wrap_with_all: bool,
    allow_new_passphrase: bool,
    rounds: Option<u32>,
}

enum Origin {
    Key(Zeroizing<[u8; 32]>),
    KeyFile(PathBuf),
    KeyEnv(String),
    Passphrase(Zeroizing<String>),
    PassphraseFile(PathBuf),
    PassphraseEnv(String),
}

impl KeyringBuilder {
    /// Adds a 256-bit key.
    pub fn key(self, key: [u8; 32]) -> Self {
        self.add(Origin::Key(Zeroizing::new(key)))
    }

    /// Adds the key in a file that only its owner may read: 32 raw bytes, 64 hexadecimal digits, or base64.
    pub fn key_file(self, path: impl Into<PathBuf>) -> Self {
        self.add(Origin::KeyFile(path.into()))
    }

    /// Adds the key in an environment variable: 64 hexadecimal digits, or base64.
    pub fn key_env(self, variable: impl Into<String>) -> Self {
        self.add(Origin::KeyEnv(variable.into()))
    }

    /// Adds a passphrase: any text that is not empty. Its strength is the backup's strength.
    pub fn passphrase(self, passphrase: impl Into<String>) -> Self {
        self.add(Origin::Passphrase(Zeroizing::new(passphrase.into())))
    }

    /// Adds the passphrase in a file that only its owner may read. A line end at its end does not belong to it.
    pub fn passphrase_file(self, path: impl Into<PathBuf>) -> Self {
        self.add(Origin::PassphraseFile(path.into()))
    }

    /// Adds the passphrase in an environment variable.
    pub fn passphrase_env(self, variable: impl Into<String>) -> Self {
        self.add(Origin::PassphraseEnv(variable.into()))
    }

    /// Lets every key of the ring open new backups, instead of the first one alone.
    pub fn wrap_with_all(mut self) -> Self {
        self.wrap_with_all = true;
        self
    }

    /// Permits a passphrase on a repository that has others already. Without this, a passphrase that opens nothing
    /// there is taken for a mistyped one when a backup begins.
    pub fn allow_new_passphrase(mut self) -> Self {
        self.allow_new_passphrase = true;
        self
    }

    /// PBKDF2 rounds for new passphrase entries, from 600,000 (the default) to 10,000,000.
    pub fn pbkdf2_rounds(mut self, rounds: u32) -> Self {
        self.rounds = Some(rounds);
        self
    }

    fn add(mut self, origin: Origin) -> Self {
        self.origins.push(origin);
        self
    }

    /// Reads files and variables, and makes the keyring.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for no key at all, for text that is no key, for an empty
    /// passphrase, or for an unset variable; [`PermissionDenied`](crate::ErrorKind::PermissionDenied) for a file that
    /// other users may read.
    pub fn build(self) -> Result<Keyring> {
        if self.origins.is_empty() {
            return Err(Error::invalid("build keyring", "a keyring needs at least one key or passphrase"));
        }
        let rounds = self.rounds.unwrap_or(*ROUNDS.start());
        if !ROUNDS.contains(&rounds) {
            return Err(Error::invalid("build keyring", "PBKDF2 rounds are between 600,000 and 10,000,000")
                .with("rounds", rounds));
        }
        let secrets = self.origins.into_iter().map(Origin::load).collect::<Result<_>>()?;
        Ok(Keyring::assemble(secrets, self.wrap_with_all, self.allow_new_passphrase, rounds))
    }
}

impl fmt::Debug for KeyringBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyringBuilder({} keys)", self.origins.len())
    }
}

impl Origin {
    fn load(self) -> Result<Secret> {
        match self {
            Self::Key(key) => Ok(Secret::Key(Kek::from_raw(&key)?)),
            Self::KeyFile(path) => {
                let key = parse_key(&read_file(&path)?).map_err(|e| e.with("path", path.display()))?;
                Ok(Secret::Key(Kek::from_raw(&key)?))
            }
            Self::KeyEnv(name) => {
                let key = parse_key(read_env(&name)?.as_bytes()).map_err(|e| e.with("variable", &name))?;
                Ok(Secret::Key(Kek::from_raw(&key)?))
            }
            Self::Passphrase(text) => passphrase(text.as_bytes()),
            Self::PassphraseFile(path) => {
                let bytes = read_file(&path)?;
                let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                let text = text.strip_suffix(b"\r").unwrap_or(text);
                passphrase(text).map_err(|e| e.with("path", path.display()))
            }
            Self::PassphraseEnv(name) => {
                passphrase(read_env(&name)?.as_bytes()).map_err(|e| e.with("variable", &name))
            }
        }
    }
}

fn passphrase(text: &[u8]) -> Result<Secret> {
    if text.is_empty() {
        return Err(Error::invalid("build keyring", "the passphrase is empty"));
    }
    Ok(Secret::Passphrase(Zeroizing::new(text.to_vec())))
}
