//! Entries of the keyring on a sink: `keyring/<key-id>.json`, a random key that a passphrase opens.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use ring::aead::NONCE_LEN;
use ring::pbkdf2;
use serde::{Deserialize, Serialize};

use super::wrap::{Kek, SEALED, check_format, from_hex, from_json, open_secret, seal_secret};
use super::{Secret32, length_prefixed, random, random_secret};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Rounds that are accepted. The lower bound is OWASP's recommendation for PBKDF2-HMAC-SHA256 (Password Storage
/// Cheat Sheet); the upper keeps a hostile file from occupying the processor for minutes.
pub(super) const ROUNDS: RangeInclusive<u32> = 600_000..=10_000_000;

const FORMAT: u32 = 1;
const KDF: &str = "pbkdf2-hmac-sha256";
const CIPHER: &str = "aes-256-gcm";
const LABEL: &[u8] = b"backup keyring entry v1";
const SALT: usize = 32;

/// A random key, sealed under a key derived from a passphrase. Never changes once written.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct RingEntry {
    format: u32,
    kdf: String,
    rounds: u32,
    cipher: String,
    salt: String,
    nonce: String,
    sealed: String,
}

impl RingEntry {
    /// Makes a new random key that `passphrase` opens.
    pub(super) fn create(passphrase: &[u8], rounds: u32) -> Result<(Self, Kek)> {
        let (salt, nonce) = (random::<SALT>()?, random::<NONCE_LEN>()?);
        let key = random_secret()?;
        let sealed =
            seal_secret(&stretch(passphrase, rounds, &salt)?, nonce, &associated_data(rounds, &salt)?, &key)?;
        let entry = Self {
            format: FORMAT,
            kdf: KDF.to_owned(),
            rounds,
            cipher: CIPHER.to_owned(),
            salt: hex::encode(salt),
            nonce: hex::encode(nonce),
            sealed: hex::encode(sealed),
        };
        let kek = Kek::named(entry.id(), &key)?;
        Ok((entry, kek))
    }

    /// Reads the file `keyring/<key_id>.json`.
    pub(super) fn parse(key_id: &str, bytes: &[u8]) -> Result<Self> {
        let entry: Self = from_json("open keyring", key_id, bytes)?;
        entry.check_format(key_id)?;
        if entry.id() == key_id {
            return Ok(entry);
        }
        Err(Error::corrupt("open keyring", "a keyring entry is damaged: its content does not fit its name")
            .with("key", key_id))
    }

    /// Its key id: a fingerprint of its content. Damage is told from a wrong passphrase by it.
    pub(super) fn id(&self) -> String {
        let content = format!(
            "{}\n{}\n{}\n{}\n{}\n{}\n",
            self.kdf, self.rounds, self.cipher, self.salt, self.nonce, self.sealed
        );
        let digest = Digest::of(content.as_bytes()).to_string();
        format!("p-{}", &digest[..16])
    }

    /// Rounds of PBKDF2.
    pub(super) fn rounds(&self) -> u32 {
        self.rounds
    }

    fn check_format(&self, id: &str) -> Result<()> {
        check_format("open keyring", id, self.format, &[(&self.kdf, KDF), (&self.cipher, CIPHER)])
    }

    /// Opens the key; `None` when the passphrase is another one. Slow: some tenths of a second.
    pub(super) fn open(&self, passphrase: &[u8]) -> Result<Option<Kek>> {
        let id = self.id();
        self.check_format(&id)?;
        if !ROUNDS.contains(&self.rounds) {
            return Err(Error::new(ErrorKind::LimitExceeded, "open keyring")
                .message("a keyring entry wants a number of PBKDF2 rounds outside of 600,000 to 10,000,000")
                .with("key", &id)
                .with("rounds", self.rounds));
        }
        let damaged = || Error::corrupt("open keyring", "a keyring entry is damaged").with("key", &id);
        let salt: [u8; SALT] = from_hex(&self.salt).ok_or_else(damaged)?;
        let nonce = from_hex(&self.nonce).ok_or_else(damaged)?;
        let sealed: [u8; SEALED] = from_hex(&self.sealed).ok_or_else(damaged)?;
        let key = stretch(passphrase, self.rounds, &salt)?;
        match open_secret(&key, nonce, &associated_data(self.rounds, &salt)?, sealed)? {
            Some(key) => Ok(Some(Kek::named(id, &key)?)),
            None => Ok(None),
        }
    }
}

fn associated_data(rounds: u32, salt: &[u8]) -> Result<Vec<u8>> {
    length_prefixed(&[LABEL, &rounds.to_be_bytes(), salt])
}

/// PBKDF2-HMAC-SHA256 (RFC 8018).
fn stretch(passphrase: &[u8], rounds: u32, salt: &[u8]) -> Result<Secret32> {
    let rounds = NonZeroU32::new(rounds).filter(|r| ROUNDS.contains(&r.get())).ok_or_else(|| {
        Error::invalid("derive key from passphrase", "the number of rounds is out of bounds")
    })?;
    let mut key = Secret32::default();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, passphrase, key.as_mut_slice());
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_hostile_rounds_is_refused_before_anything_is_computed() {
        let (entry, _) = RingEntry::create(b"x", *ROUNDS.start()).unwrap();
        for rounds in [0, 1, ROUNDS.start() - 1, ROUNDS.end() + 1, u32::MAX] {
            let hostile = RingEntry { rounds, ..entry.clone() };
            // It is named like its content, so that nothing else is wrong with it.
            let file = serde_json::to_vec(&hostile).unwrap();
            let parsed = RingEntry::parse(&hostile.id(), &file).unwrap();
            assert_eq!(parsed.open(b"x").err().map(|e| e.kind()), Some(ErrorKind::LimitExceeded), "{rounds}");
        }
        assert!(entry.open(b"x").unwrap().is_some());
        assert!(entry.open(b"y").unwrap().is_none());
    }
}
