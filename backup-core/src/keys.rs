//! Keys: the random key of each backup, and the keyring that opens it.
//!
//! `docs/format.md` specifies every derivation and file to the byte.

mod builder;
mod keyring;
mod material;
mod ring_entry;
mod several;
mod signing;
mod wrap;

use std::fmt;

use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

pub use builder::KeyringBuilder;
pub use keyring::{Keyring, RingUpdate};
#[cfg(feature = "age")]
pub(crate) use material::{read_env, read_file};
pub use signing::{Signatures, SigningKey, VerifyingKey};

/// 32 secret bytes that are wiped when dropped.
pub(crate) type Secret32 = Zeroizing<[u8; 32]>;

/// What the key of manifest seals is derived for.
const SEAL_INFO: &[u8] = b"manifest";

/// The random 256-bit key of one backup. Everything encrypted or sealed in that backup uses keys derived from it.
#[derive(Clone)]
pub struct BackupKey(Secret32);

impl BackupKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        Ok(Self(random_secret()?))
    }

    /// Takes an opened key.
    pub(crate) fn from_bytes(bytes: Secret32) -> Self {
        Self(bytes)
    }

    /// The secret bytes, to be wrapped.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether two keys are the same one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        equal_in_constant_time(self.0.as_slice(), other.0.as_slice())
    }

    /// Derives bytes by HKDF-SHA256 (RFC 5869): this key as input, `salt`, and `info` (its parts joined).
    pub fn derive(&self, salt: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<()> {
        hkdf_sha256(self.0.as_slice(), salt, info, out)
    }

    /// The seal of `bytes`: HMAC-SHA256 under HKDF(this key, empty salt, `"manifest"`).
    pub fn seal(&self, bytes: &[u8]) -> Result<[u8; 32]> {
        let mut seal = [0; 32];
        seal.copy_from_slice(hmac::sign(&self.seal_key()?, bytes).as_ref());
        Ok(seal)
    }

    /// Checks a [`seal`](Self::seal) in constant time.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when the bytes are not those that were sealed under this key.
    pub fn verify_seal(&self, bytes: &[u8], seal: &[u8]) -> Result<()> {
        hmac::verify(&self.seal_key()?, bytes, seal).map_err(|_| {
            Error::corrupt("verify seal", "the seal does not fit: the sealed bytes were changed")
        })
    }

    fn seal_key(&self) -> Result<hmac::Key> {
        let mut key = Secret32::default();
        self.derive(&[], &[SEAL_INFO], key.as_mut_slice())?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()))
    }
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey(secret)")
    }
}

/// HKDF-SHA256 (RFC 5869).
pub(crate) fn hkdf_sha256(input: &[u8], salt: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<()> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let failed = |_| Error::new(ErrorKind::Internal, "derive key").message("HKDF refused the length");
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(input)
        .expand(info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(failed)
}

fn fill_random(bytes: &mut [u8]) -> Result<()> {
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes)
        .map_err(|_| Error::new(ErrorKind::Io, "make random key").message("the system has no random numbers"))
}

/// Random bytes of the operating system, for salts and nonces.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// A random secret, filled in where it stays.
fn random_secret() -> Result<Secret32> {
    let mut bytes = Secret32::default();
    fill_random(bytes.as_mut_slice())?;
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
/// Compares their HMACs, because ring offers its constant-time comparison for those.
pub(crate) fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, a);
    hmac::verify(&key, b, hmac::sign(&key, a).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_fits_only_its_bytes_and_its_key() {
        let key = BackupKey::generate().unwrap();
        let seal = key.seal(b"manifest").unwrap();
        key.verify_seal(b"manifest", &seal).unwrap();
        assert_eq!(key.verify_seal(b"Manifest", &seal).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(key.verify_seal(b"manifest", &seal[..31]).is_err());
        assert!(BackupKey::generate().unwrap().verify_seal(b"manifest", &seal).is_err());
    }

    #[test]
    fn hkdf_is_that_of_rfc_5869() {
        // Appendix A.1.
        let input = [0x0b; 22];
        let salt = hex::decode("000102030405060708090a0b0c").unwrap();
        let info = hex::decode("f0f1f2f3f4f5f6f7f8f9").unwrap();
        let mut out = [0; 42];
        hkdf_sha256(&input, &salt, &[&info[..3], &info[3..]], &mut out).unwrap();
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        assert_eq!(hex::encode(out), expected);
    }

    #[test]
    fn secrets_are_compared_whole() {
        assert!(equal_in_constant_time(&[7; 32], &[7; 32]));
        let mut other = [7; 32];
        other[31] = 8;
        assert!(!equal_in_constant_time(&[7; 32], &other));
    }

    #[test]
    fn a_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", BackupKey::generate().unwrap()), "BackupKey(secret)");
    }
}
