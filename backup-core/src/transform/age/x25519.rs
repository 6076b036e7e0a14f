//! X25519 recipients and identities of age (age-encryption.org/v1, "The X25519 recipient type").

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};
use zeroize::{Zeroize as _, Zeroizing};

use super::bech32;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Secret32, equal_in_constant_time, hkdf_sha256, random};

/// Bytes of the key of a file.
pub(super) const FILE_KEY: usize = 16;
/// Bytes of a wrapped file key: itself and a tag.
pub(super) const WRAPPED: usize = FILE_KEY + 16;

const INFO: &[u8] = b"age-encryption.org/v1/X25519";
const RECIPIENT_PREFIX: &str = "age";
const IDENTITY_PREFIX: &str = "age-secret-key-";

pub(super) type FileKey = Zeroizing<[u8; FILE_KEY]>;

/// A public key that backups are encrypted to: `age1…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Recipient([u8; 32]);

/// The private key of a recipient: `AGE-SECRET-KEY-1…`. `Debug` shows its recipient.
#[derive(Clone)]
pub(super) struct Identity {
    secret: Secret32,
    public: Recipient,
}

impl Recipient {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let other = ["age1pq1", "age1tag1", "age1tagpq1", "age1yubikey1", "ssh-"];
        if other.iter().any(|prefix| text.starts_with(prefix)) {
            return Err(Error::new(ErrorKind::Unsupported, "read age key")
                .message("only X25519 recipients of age are supported; make one with `age-keygen`"));
        }
        Ok(Self(*bech32::decode(RECIPIENT_PREFIX, text)?))
    }

    /// Wraps a file key with a new ephemeral key; gives the ephemeral share and the body of the stanza.
    pub(super) fn wrap(&self, file_key: &FileKey) -> Result<([u8; 32], [u8; WRAPPED])> {
        let ephemeral = Zeroizing::new(random::<32>()?);
        let share = x25519(*ephemeral, X25519_BASEPOINT_BYTES);
        let key = wrapping_key(&ephemeral, &self.0, &share, &self.0)?.ok_or_else(|| {
            Error::invalid(
                "encrypt to age recipient",
                "the recipient is no usable key; make a new one with `age-keygen`",
            )
            .with("recipient", self)
        })?;
        let mut body = [0; WRAPPED];
        let (text, tag) = body.split_at_mut(FILE_KEY);
        text.copy_from_slice(file_key.as_slice());
        let made = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; NONCE_LEN]), Aad::empty(), text)
            .map_err(|_| internal())?;
        tag.copy_from_slice(made.as_ref());
        Ok((share, body))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode(RECIPIENT_PREFIX, &self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Identity {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let secret = bech32::decode(IDENTITY_PREFIX, text.trim())?;
        let public = Recipient(x25519(*secret, X25519_BASEPOINT_BYTES));
        Ok(Self { secret, public })
    }

    pub(super) fn recipient(&self) -> Recipient {
        self.public
    }

    /// As age writes it.
    pub(super) fn expose(&self) -> Zeroizing<String> {
        let mut text = bech32::encode(IDENTITY_PREFIX, &self.secret);
        text.make_ascii_uppercase();
        text
    }

    /// Opens the file key in a stanza; `None` when the stanza is for another recipient.
    pub(super) fn unwrap(&self, share: &[u8; 32], body: &[u8; WRAPPED]) -> Result<Option<FileKey>> {
        let Some(key) = wrapping_key(&self.secret, share, share, &self.public.0)? else { return Ok(None) };
        let mut body = *body;
        let opened = key
            .open_in_place(Nonce::assume_unique_for_key([0; NONCE_LEN]), Aad::empty(), &mut body)
            .ok()
            .and_then(|plain| <[u8; FILE_KEY]>::try_from(&*plain).ok())
            .map(Zeroizing::new);
        body.zeroize();
        Ok(opened)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// The key that wraps a file key: from a scalar and a point, for a share and a recipient. `None`: a point of small
/// order, with which everybody could compute it.
fn wrapping_key(
    secret: &[u8; 32],
    point: &[u8; 32],
    share: &[u8; 32],
    recipient: &[u8; 32],
) -> Result<Option<LessSafeKey>> {
    let shared = Zeroizing::new(x25519(*secret, *point));
    if equal_in_constant_time(shared.as_slice(), &[0; 32]) {
        return Ok(None);
    }
    let mut salt = [0; 64];
    salt[..32].copy_from_slice(share);
    salt[32..].copy_from_slice(recipient);
    let mut key = Secret32::default();
    hkdf_sha256(shared.as_slice(), &salt, &[INFO], key.as_mut_slice())?;
    Ok(Some(cipher(&key)?))
}

/// ChaCha20-Poly1305 under `key`.
pub(super) fn cipher(key: &Secret32) -> Result<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).map(LessSafeKey::new).map_err(|_| internal())
}

fn internal() -> Error {
    Error::new(ErrorKind::Internal, "encrypt to age recipient").message("ChaCha20-Poly1305 refused its input")
}
