//! Keys: the random key of each backup, and the keyring that opens it.

use std::fmt;

use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// The random 256-bit key of one backup. Everything encrypted or sealed in that backup uses keys derived from it.
#[derive(Clone)]
pub struct BackupKey(Zeroizing<[u8; 32]>);

impl BackupKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// Takes an opened key.
    pub(crate) fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// The secret bytes, to be wrapped.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives bytes by HKDF-SHA256 (RFC 5869): this key as input, `salt`, and `info` (its parts joined).
    pub fn derive(&self, salt: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<()> {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let failed = |_| Error::new(ErrorKind::Internal, "derive key").message("HKDF refused the length");
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(self.0.as_slice())
            .expand(info, Length(out.len()))
            .and_then(|okm| okm.fill(out))
            .map_err(failed)
    }
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey(secret)")
    }
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).map_err(|_| {
        Error::new(ErrorKind::Io, "make random key").message("the system has no random numbers")
    })?;
    Ok(bytes)
}

/// The parts one after the other, each after its length as 4 bytes big-endian: no two different lists of parts give
/// the same bytes.
pub(crate) fn length_prefixed(parts: &[&[u8]]) -> Result<Vec<u8>> {
    let mut all = Vec::with_capacity(parts.iter().map(|p| p.len() + 4).sum());
    for part in parts {
        let len = u32::try_from(part.len())
            .map_err(|_| Error::invalid("derive key", "a name is longer than 4 GiB"))?;
        all.extend_from_slice(&len.to_be_bytes());
        all.extend_from_slice(part);
    }
    Ok(all)
}

/// Whether two secrets of the same length are equal, in a time that does not depend on where they differ.
///
/// Both are put through HMAC under a key of which one of them knows nothing, and ring compares the results.
pub(crate) fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, a);
    hmac::verify(&key, b, hmac::sign(&key, a).as_ref()).is_ok()
}

/// Placeholder until the keyring is written.
#[derive(Clone, Debug)]
pub struct Keyring;

impl Keyring {
    pub(crate) fn unwrap(
        &self,
        _set: &crate::SetName,
        _id: crate::BackupId,
        _wraps: &[(String, bytes::Bytes)],
    ) -> Result<BackupKey> {
        BackupKey::generate()
    }
}
