//! Key-encryption keys, and the files `keys/<key-id>.json` in which they wrap a backup key.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::ring_entry::RingEntry;
use super::{BackupKey, Secret32, hkdf_sha256, length_prefixed, random};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName};

/// Length of a sealed 32-byte secret: itself and a tag.
pub(super) const SEALED: usize = 48;
/// Largest file of this kind that is read.
pub(super) const MAX_FILE: usize = 64 << 10;

const FORMAT: u32 = 1;
const CIPHER: &str = "aes-256-gcm";
const WRAP_LABEL: &[u8] = b"backup key wrap v1";
const ID_LABEL: &[u8] = b"backup key id v1";

/// A key that wraps backup keys, and its public id.
#[derive(Clone)]
pub(super) struct Kek {
    pub(super) id: String,
    key: Secret32,
    /// What the user gave, for the recovery sheet; random keys of keyring entries have none.
    pub(super) raw: Option<Secret32>,
}

impl Kek {
    /// From a raw key of the user. Its id is a fingerprint that tells nothing of the key.
    pub(super) fn from_raw(raw: &Secret32) -> Result<Self> {
        let mut fingerprint = [0; 8];
        hkdf_sha256(raw.as_slice(), &[], &[ID_LABEL], &mut fingerprint)?;
        let named = Self::named(format!("k-{}", hex::encode(fingerprint)), raw)?;
        Ok(Self { raw: Some(raw.clone()), ..named })
    }

    /// From the random key of a keyring entry.
    pub(super) fn named(id: String, raw: &Secret32) -> Result<Self> {
        let mut key = Secret32::default();
        hkdf_sha256(raw.as_slice(), &[], &[WRAP_LABEL], key.as_mut_slice())?;
        Ok(Self { id, key, raw: None })
    }

    /// Wraps a backup key; gives the name and content of the file.
    pub(super) fn wrap(
        &self,
        set: &SetName,
        id: BackupId,
        key: &BackupKey,
        entry: Option<&RingEntry>,
    ) -> Result<(String, Bytes)> {
        let nonce = random::<NONCE_LEN>()?;
        let sealed = seal_secret(&self.key, nonce, &associated_data(set, id, &self.id)?, key.expose())?;
        let file = WrapFile {
            format: FORMAT,
            key: self.id.clone(),
            cipher: CIPHER.to_owned(),
            nonce: hex::encode(nonce),
            sealed: hex::encode(sealed),
            passphrase: entry.cloned(),
        };
        Ok((format!("{}.json", self.id), to_json(&file)?))
    }

    /// Opens a wrap made for this key.
    pub(super) fn unwrap(&self, set: &SetName, id: BackupId, file: &WrapFile) -> Result<BackupKey> {
        let damaged = || {
            Error::corrupt("open backup key", "the wrapped key is damaged, or belongs to another backup")
                .with("key", &self.id)
                .with("set", set)
                .with("id", id)
        };
        let nonce = from_hex(&file.nonce).ok_or_else(damaged)?;
        let sealed = from_hex(&file.sealed).ok_or_else(damaged)?;
        let aad = associated_data(set, id, &self.id)?;
        Ok(BackupKey::from_bytes(open_secret(&self.key, nonce, &aad, sealed)?.ok_or_else(damaged)?))
    }
}

fn associated_data(set: &SetName, id: BackupId, key_id: &str) -> Result<Vec<u8>> {
    length_prefixed(&[WRAP_LABEL, set.as_str().as_bytes(), id.to_string().as_bytes(), key_id.as_bytes()])
}

/// `keys/<key-id>.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct WrapFile {
    format: u32,
    key: String,
    cipher: String,
    nonce: String,
    sealed: String,
    /// The entry of `keyring/` that opens the wrapping key, so that a backup needs nothing beside itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) passphrase: Option<RingEntry>,
}

impl WrapFile {
    /// Reads a file and compares it with the key id its name says.
    pub(super) fn parse(key_id: &str, bytes: &[u8]) -> Result<Self> {
        let file: Self = from_json("open backup key", key_id, bytes)?;
        check_format("open backup key", key_id, file.format, &[(&file.cipher, CIPHER)])?;
        if file.key != key_id || file.passphrase.as_ref().is_some_and(|entry| entry.id() != key_id) {
            return Err(Error::corrupt(
                "open backup key",
                "the wrapped key is damaged: it names another key",
            )
            .with("key", key_id));
        }
        Ok(file)
    }
}

/// Encrypts a 32-byte secret.
pub(super) fn seal_secret(
    key: &Secret32,
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    secret: &[u8; 32],
) -> Result<[u8; SEALED]> {
    let mut sealed = [0; SEALED];
    let (text, tag) = sealed.split_at_mut(secret.len());
    text.copy_from_slice(secret);
    let made = cipher(key)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), text)
        .map_err(|_| Error::new(ErrorKind::Internal, "wrap key").message("AES-GCM refused a key"))?;
    tag.copy_from_slice(made.as_ref());
    Ok(sealed)
}

/// Decrypts a 32-byte secret; `None` when key, associated data or bytes are not those it was sealed with.
pub(super) fn open_secret(
    key: &Secret32,
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    mut sealed: [u8; SEALED],
) -> Result<Option<Secret32>> {
    let opened = cipher(key)?
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed)
        .ok()
        .and_then(|plain| <[u8; 32]>::try_from(&*plain).ok())
        .map(Zeroizing::new);
    sealed.zeroize();
    Ok(opened)
}

fn cipher(key: &Secret32) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.as_slice())
        .map(LessSafeKey::new)
        .map_err(|_| Error::new(ErrorKind::Internal, "wrap key").message("AES-256 refused its key"))
}

/// Reads exactly `N` bytes from hexadecimal digits.
pub(super) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

pub(super) fn to_json(value: &impl Serialize) -> Result<Bytes> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "write key file").caused_by(e))?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

pub(super) fn from_json<T: for<'de> Deserialize<'de>>(
    operation: &'static str,
    key_id: &str,
    bytes: &[u8],
) -> Result<T> {
    if bytes.len() > MAX_FILE {
        return Err(Error::new(ErrorKind::LimitExceeded, operation)
            .message("a key file is larger than 64 KiB; this library writes less than 2 KiB")
            .with("key", key_id));
    }
    serde_json::from_slice(bytes)
        .map_err(|e| Error::corrupt(operation, "a key file is damaged").with("key", key_id).caused_by(e))
}

/// Refuses formats and algorithms of later versions.
pub(super) fn check_format(
    operation: &'static str,
    key_id: &str,
    format: u32,
    algorithms: &[(&str, &str)],
) -> Result<()> {
    if format == FORMAT && algorithms.iter().all(|(found, known)| found == known) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, operation)
        .message("a key file has a newer format; use a newer version of this library")
        .with("key", key_id))
}
