//! The last line of a manifest: what makes its bytes trustworthy.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Manifest;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{BackupKey, Signatures, SigningKey, VerifyingKey};
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
    /// Ed25519 (RFC 8032) by the producer's signing key, where the producer holds no key that opens its backups.
    Ed25519 {
        /// The public key, 64 hexadecimal digits. It only tells which trusted key to check with.
        key: String,
        /// The signature, 128 hexadecimal digits.
        value: String,
    },
    /// A plain digest: finds damage, not forgery. Written where the repository has no keys.
    Sha256 {
        /// The digest.
        value: Digest,
    },
}

/// What a manifest is sealed with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sealer<'a> {
    Key(&'a BackupKey),
    Signature(&'a SigningKey),
    Nothing,
}

/// What is sealed before the bytes of a note on a finished artifact. A manifest begins with a brace: neither can be
/// taken for the other.
const FINISHED: &[u8] = b"finished\n";

/// Serialises and seals a manifest.
pub(crate) fn seal(manifest: &Manifest, sealer: Sealer<'_>) -> Result<Bytes> {
    sealed(&[], manifest, sealer)
}

/// Serialises and seals the note that an artifact is finished: a manifest of that artifact alone.
pub(crate) fn seal_finished(note: &Manifest, sealer: Sealer<'_>) -> Result<Bytes> {
    sealed(FINISHED, note, sealer)
}

fn sealed(domain: &[u8], manifest: &Manifest, sealer: Sealer<'_>) -> Result<Bytes> {
    let internal = |e| Error::new(ErrorKind::Internal, "write manifest").caused_by(e);
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(internal)?;
    bytes.push(b'\n');
    let message = [domain, &bytes].concat();
    let line = match sealer {
        Sealer::Key(key) => Seal::HmacSha256 { value: hex::encode(key.seal(&message)?) },
        Sealer::Signature(key) => {
            Seal::Ed25519 { key: key.verifying_key().to_string(), value: hex::encode(key.sign(&message)?) }
        }
        Sealer::Nothing => Seal::Sha256 { value: Digest::of(&message) },
    };
    serde_json::to_writer(&mut bytes, &line).map_err(internal)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// The document and the seal of a manifest object.
fn split(bytes: &[u8]) -> Result<(&[u8], Seal)> {
    let body = bytes.strip_suffix(b"\n").ok_or_else(torn)?;
    let cut = body.iter().rposition(|&b| b == b'\n').ok_or_else(torn)? + 1;
    let (document, line) = body.split_at(cut);
    Ok((document, serde_json::from_slice(line).map_err(|e| torn().caused_by(e))?))
}

/// Whether a manifest object claims to be sealed by a signature, so that no key of the backup is needed to open it.
pub(crate) fn is_signed(bytes: &[u8]) -> bool {
    matches!(split(bytes), Ok((_, Seal::Ed25519 { .. })))
}

/// Checks the seal and the place of a manifest object, then parses it.
///
/// With a key, only a seal under that key will do: a plain digest in its place is a stripped seal. The same goes for
/// `signatures`: where somebody is trusted, what nobody signed is refused.
pub(crate) fn open(
    bytes: &[u8],
    key: Option<&BackupKey>,
    signatures: Option<&Signatures>,
    set: &SetName,
    id: BackupId,
) -> Result<Manifest> {
    let (document, line) = split(bytes)?;
    check(document, &line, key, signatures)?;
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

/// Checks the seal of the note on a finished artifact, then parses it. Its id is that of the run that stored the
/// artifact, wherever the note was taken since.
pub(crate) fn open_finished(
    bytes: &[u8],
    key: Option<&BackupKey>,
    signatures: Option<&Signatures>,
    set: &SetName,
) -> Result<Manifest> {
    let (document, line) = split(bytes)?;
    check(&[FINISHED, document].concat(), &line, key, signatures)?;
    let note = Manifest::parse(document)?;
    if note.set == *set {
        Ok(note)
    } else {
        Err(Error::corrupt("read note", "the note belongs to another set").with("says", &note.set))
    }
}

/// Checks that `line` seals `message`.
fn check(
    message: &[u8],
    line: &Seal,
    key: Option<&BackupKey>,
    signatures: Option<&Signatures>,
) -> Result<()> {
    match (line, key) {
        (Seal::Ed25519 { key, value }, _) => verify(message, key, value, signatures)?,
        (Seal::HmacSha256 { value }, Some(key)) => {
            let tag = hex::decode(value).map_err(|e| torn().caused_by(e))?;
            key.verify_seal(message, &tag).map_err(|_| broken())?;
        }
        (Seal::HmacSha256 { .. }, None) => {
            return Err(Error::new(ErrorKind::WrongKey, "read manifest").message(
                "the manifest is sealed with a key; give the repository the keyring it was made with",
            ));
        }
        (Seal::Sha256 { .. }, None) if signatures.is_some() => {
            return Err(Error::new(ErrorKind::Unencrypted, "read manifest").message(
                "this repository trusts signing keys, but the manifest is not signed; \
                 open it with a repository without keys if you know where it comes from",
            ));
        }
        (Seal::Sha256 { value }, None) => {
            if Digest::of(message) != *value {
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
    Ok(())
}

/// Checks a signature.
fn verify(document: &[u8], key: &str, value: &str, signatures: Option<&Signatures>) -> Result<()> {
    let wrong_key = |why: &'static str| {
        Error::new(ErrorKind::WrongKey, "read manifest").message(why).with("signed_by", key)
    };
    let claimed = VerifyingKey::parse(key).map_err(|e| torn().caused_by(e))?;
    let signature = hex::decode(value).map_err(|e| torn().caused_by(e))?;
    let signatures = signatures.ok_or_else(|| {
        wrong_key("the manifest is sealed by a signing key; give the repository the verifying key to trust")
    })?;
    if !signatures.trusted().contains(&claimed) {
        return Err(wrong_key(
            "the manifest is sealed by a signing key that is not trusted; trust it only if you know whose it is",
        ));
    }
    if claimed.verify(document, &signature) { Ok(()) } else { Err(broken()) }
}

fn torn() -> Error {
    Error::corrupt("read manifest", "the manifest has no seal line; it is not whole")
}

fn broken() -> Error {
    Error::corrupt("read manifest", "the seal does not match; the manifest was changed or damaged")
}
