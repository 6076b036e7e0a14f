//! Ed25519 keys (RFC 8032) that seal manifests where the producer holds no secret that opens its backups.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::material::{parse_key, read_env, read_file};
use super::{Secret32, random_secret};
use crate::error::{Error, ErrorKind, Result};

/// What stands before the 32 bytes of a key in its DER (RFC 8410, sections 4 and 7), as `openssl genpkey` writes it.
const PRIVATE_DER: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const PUBLIC_DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The private key with which a producer signs its manifests. It opens nothing. Cheap to clone; `Debug` shows only its
/// [`VerifyingKey`].
///
/// ```sh
/// openssl genpkey -algorithm ed25519 -out signing.key && chmod 600 signing.key
/// openssl pkey -in signing.key -pubout -out signing.pub
/// ```
#[derive(Clone)]
pub struct SigningKey {
    seed: Secret32,
    public: VerifyingKey,
}

impl SigningKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        Self::of(random_secret()?)
    }

    /// The key whose secret is `seed`.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self> {
        Self::of(Zeroizing::new(seed))
    }

    /// The key in a file that only its owner may read: PEM as OpenSSL writes it, or the seed as 32 raw bytes, 64
    /// hexadecimal digits or base64.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&read_file(path)?).map_err(|e| e.with("path", path.display()))
    }

    /// The key in an environment variable, in one of the text forms of [`from_file`](Self::from_file).
    pub fn from_env(variable: &str) -> Result<Self> {
        Self::parse(read_env(variable)?.as_bytes()).map_err(|e| e.with("variable", variable))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        match pem(bytes, "PRIVATE KEY", &PRIVATE_DER)? {
            Some(seed) => Self::of(seed),
            None => Self::of(parse_key(bytes)?),
        }
    }

    fn of(seed: Secret32) -> Result<Self> {
        let public = VerifyingKey::of(&pair(&seed)?)?;
        Ok(Self { seed, public })
    }

    /// The public key that checks what this one signs.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.public
    }

    /// The signature of `bytes`.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<[u8; 64]> {
        let mut signature = [0; 64];
        signature.copy_from_slice(pair(&self.seed)?.sign(bytes).as_ref());
        Ok(signature)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

/// The public key that checks the signatures of a producer. `Display` writes its 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// Reads a key: 64 hexadecimal digits, base64, or PEM as OpenSSL writes it.
    pub fn parse(text: &str) -> Result<Self> {
        let key = match pem(text.as_bytes(), "PUBLIC KEY", &PUBLIC_DER)? {
            Some(key) => key,
            None => parse_key(text.as_bytes())?,
        };
        Ok(Self(*key))
    }

    /// The key in a file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read verifying key", e));
        text.and_then(|text| Self::parse(&text)).map_err(|e| e.with("path", path.display()))
    }

    fn of(pair: &Ed25519KeyPair) -> Result<Self> {
        pair.public_key().as_ref().try_into().map(Self).map_err(|_| refused())
    }

    /// Whether `signature` is that of `bytes`.
    pub(crate) fn verify(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, signature).is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

/// Who may seal manifests by signature: the producer's own key, where this is a producer, and the keys that are trusted.
#[derive(Clone, Debug, Default)]
pub struct Signatures {
    signing: Option<SigningKey>,
    trusted: Vec<VerifyingKey>,
}

impl Signatures {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Signs with `key`, and trusts it.
    pub fn sign_with(mut self, key: SigningKey) -> Self {
        let public = key.verifying_key();
        self.signing = Some(key);
        self.trust(public)
    }

    /// Trusts `key`. Give every key that signed a backup that is still to be read.
    pub fn trust(mut self, key: VerifyingKey) -> Self {
        if !self.trusted.contains(&key) {
            self.trusted.push(key);
        }
        self
    }

    /// The key that seals new manifests.
    pub fn signing_key(&self) -> Option<&SigningKey> {
        self.signing.as_ref()
    }

    /// The keys whose seals are accepted.
    pub fn trusted(&self) -> &[VerifyingKey] {
        &self.trusted
    }

    /// These, and those that `other` trusts.
    pub(crate) fn and_trust(self, other: &Self) -> Self {
        other.trusted.iter().fold(self, |all, key| all.trust(*key))
    }
}

fn pair(seed: &Secret32) -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| refused())
}

fn refused() -> Error {
    Error::new(ErrorKind::Internal, "read signing key").message("Ed25519 refused its key")
}

/// The 32 bytes of a PEM document of this kind; `None` when `bytes` are no PEM at all.
fn pem(bytes: &[u8], label: &str, prefix: &[u8]) -> Result<Option<Secret32>> {
    let Some(text) = std::str::from_utf8(bytes).ok().map(str::trim).filter(|t| t.starts_with("-----BEGIN"))
    else {
        return Ok(None);
    };
    let wrong = || {
        Error::invalid("read signing key", "this is not the PEM of an Ed25519 key of the kind expected here")
            .with("expected", label)
    };
    let body = text
        .strip_prefix("-----BEGIN ")
        .and_then(|t| t.strip_prefix(label))
        .and_then(|t| t.strip_prefix("-----"))
        .and_then(|t| t.strip_suffix("-----"))
        .and_then(|t| t.strip_suffix(label))
        .and_then(|t| t.strip_suffix("-----END "))
        .ok_or_else(wrong)?;
    let mut joined = Zeroizing::new(String::with_capacity(body.len()));
    joined.extend(body.chars().filter(|c| !c.is_ascii_whitespace()));
    let der = base64::engine::general_purpose::STANDARD.decode(joined.as_bytes()).map(Zeroizing::new);
    let der = der.map_err(|_| wrong())?;
    let key = der.strip_prefix(prefix).and_then(|key| <[u8; 32]>::try_from(key).ok()).ok_or_else(wrong)?;
    Ok(Some(Zeroizing::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_openssl_are_read_in_each_of_their_forms() {
        // RFC 8410, section 10.3 and 10.1.
        let private = "-----BEGIN PRIVATE KEY-----\n\
                       MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                       -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
                      MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                      -----END PUBLIC KEY-----\n";
        let key = SigningKey::parse(private.as_bytes()).unwrap();
        assert_eq!(key.verifying_key(), VerifyingKey::parse(public).unwrap());
        assert_eq!(key.verifying_key(), VerifyingKey::parse(&key.verifying_key().to_string()).unwrap());
        let seed = hex::encode(key.seed.as_slice());
        assert_eq!(SigningKey::parse(seed.as_bytes()).unwrap().verifying_key(), key.verifying_key());
        assert!(!format!("{key:?}").contains(&seed));
        for wrong in [public, &private.replace("MC4C", "MC4D"), "-----BEGIN PRIVATE KEY-----", "short"] {
            assert_eq!(SigningKey::parse(wrong.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_signature_fits_only_its_bytes_and_its_key() {
        let key = SigningKey::generate().unwrap();
        let signature = key.sign(b"manifest").unwrap();
        assert!(key.verifying_key().verify(b"manifest", &signature));
        assert!(!key.verifying_key().verify(b"Manifest", &signature));
        assert!(!key.verifying_key().verify(b"manifest", &signature[..63]));
        assert!(!SigningKey::generate().unwrap().verifying_key().verify(b"manifest", &signature));
    }
}
