//! The last line of a manifest: what makes its bytes trustworthy.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Manifest;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::BackupKey;
use crate::name::{BackupId, SetName};

/// How a manifest is sealed, over the exact bytes before its last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "seal", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Seal {
    /// HMAC-SHA256 under HKDF-SHA256(backup key, empty salt, `"manifest"`).
    HmacSha256 {
        /// 64 hexadecimal digits.
        value: String,
    },
    /// A plain digest: finds damage, not forgery. Written where the repository has no keys.
    Sha256 {
        /// The digest.
        value: Digest,
    },
}

/// Serialises and seals a manifest.
pub(crate) fn seal(manifest: &Manifest, key: Option<&BackupKey>) -> Result<Bytes> {
    let internal = |e| Error::new(ErrorKind::Internal, "write manifest").caused_by(e);
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(internal)?;
    bytes.push(b'\n');
    let line = match key {
        Some(key) => Seal::HmacSha256 { value: hex::encode(key.seal(&bytes)?) },
        None => Seal::Sha256 { value: Digest::of(&bytes) },
    };
    serde_json::to_writer(&mut bytes, &line).map_err(internal)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// Checks the seal and the place of a manifest object, then parses it.
///
/// With a key, only a seal under that key will do: a plain digest in its place is a stripped seal.
pub(crate) fn open(bytes: &[u8], key: Option<&BackupKey>, set: &SetName, id: BackupId) -> Result<Manifest> {
    let torn = || Error::corrupt("read manifest", "the manifest has no seal line; it is not whole");
    let body = bytes.strip_suffix(b"\n").ok_or_else(torn)?;
    let cut = body.iter().rposition(|&b| b == b'\n').ok_or_else(torn)? + 1;
    let (document, line) = body.split_at(cut);
    let line: Seal = serde_json::from_slice(line).map_err(|e| torn().caused_by(e))?;
    match (&line, key) {
        (Seal::HmacSha256 { value }, Some(key)) => {
            let tag = hex::decode(value).map_err(|e| torn().caused_by(e))?;
            key.verify_seal(document, &tag).map_err(|_| broken())?;
        }
        (Seal::HmacSha256 { .. }, None) => {
            return Err(Error::new(ErrorKind::WrongKey, "read manifest").message(
                "the manifest is sealed with a key; give the repository the keyring it was made with",
            ));
        }
        (Seal::Sha256 { value }, None) => {
            if Digest::of(document) != *value {
                return Err(broken());
            }
        }
        (Seal::Sha256 { .. }, Some(_)) => {
            return Err(Error::corrupt(
                "read manifest",
                "the manifest is not sealed with a key although this backup has one; do not trust it",
            ));
        }
    }
    let manifest = Manifest::parse(document)?;
    if manifest.set != *set || manifest.id != id {
        return Err(Error::corrupt(
            "read manifest",
            "the manifest belongs to another backup; it was moved or copied here",
        )
        .with("says", format_args!("{}/{}", manifest.set, manifest.id)));
    }
    Ok(manifest)
}

fn broken() -> Error {
    Error::corrupt("read manifest", "the seal does not match; the manifest was changed or damaged")
}
