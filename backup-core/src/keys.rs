//! Keys: the random key of each backup, and the keyring that opens it.

use std::fmt;

use ring::hkdf;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// The random 256-bit key of one backup. Everything encrypted or sealed in that backup uses keys derived from it.
#[derive(Clone)]
pub struct BackupKey(Zeroizing<[u8; 32]>);

impl BackupKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), key.as_mut_slice()).map_err(
            |_| Error::new(ErrorKind::Io, "make random key").message("the system has no random numbers"),
        )?;
        Ok(Self(key))
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

/// Placeholder until the keyring is written.
#[derive(Clone, Debug)]
pub struct Keyring;
