//! [`AgeBuilder`].

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Age;
use super::header::MAX_RECIPIENTS;
use super::x25519::{Identity, Recipient};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Signatures, SigningKey, VerifyingKey, read_env, read_file};

/// Most identities that are tried on a file.
const MAX_IDENTITIES: usize = 64;

/// Builds an [`Age`]. Files and variables are read by [`build`](Self::build), which reports what is wrong. `Debug` shows
/// no secret.
#[derive(Default)]
pub struct AgeBuilder {
    recipients: Vec<Text>,
    identities: Vec<Text>,
    signatures: Signatures,
}

/// Where lines with keys come from.
enum Text {
    Given(Zeroizing<String>),
    File(PathBuf),
    Env(String),
}

impl AgeBuilder {
    /// Encrypts new backups to this recipient: `age1…`. Give several, and any one of their identities will do.
    pub fn recipient(mut self, recipient: impl Into<String>) -> Self {
        self.recipients.push(Text::Given(Zeroizing::new(recipient.into())));
        self
    }

    /// Encrypts new backups to the recipients in this file, one in a line; `#` begins a comment.
    pub fn recipients_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.recipients.push(Text::File(path.into()));
        self
    }

    /// Reads backups with this identity: `AGE-SECRET-KEY-1…`.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identities.push(Text::Given(Zeroizing::new(identity.into())));
        self
    }

    /// Reads backups with the identities in a file as `age-keygen` writes it, which only its owner may read.
    pub fn identity_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.identities.push(Text::File(path.into()));
        self
    }

    /// Reads backups with the identity in an environment variable.
    pub fn identity_env(mut self, variable: impl Into<String>) -> Self {
        self.identities.push(Text::Env(variable.into()));
        self
    }

    /// Seals the manifests of new backups with this key, and trusts it.
    pub fn sign_with(mut self, key: SigningKey) -> Self {
        self.signatures = self.signatures.sign_with(key);
        self
    }

    /// Trusts manifests that are sealed with this key.
    pub fn trust(mut self, key: VerifyingKey) -> Self {
        self.signatures = self.signatures.trust(key);
        self
    }

    /// Reads files and variables, and builds.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for recipients without a signing key or the other way round, for neither
    /// recipients nor identities, for no trusted key at all, or for text that is no key;
    /// [`Unsupported`](ErrorKind::Unsupported) for recipients of other kinds than X25519;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) for an identity file that other users may read.
    pub fn build(self) -> Result<Age> {
        let refuse = |why: &'static str| Err(Error::invalid("build age encryption", why));
        let mut recipients = Vec::new();
        for text in &self.recipients {
            let read = |path: &Path| {
                let bytes = std::fs::read(path).map_err(|e| Error::io("read recipients file", e));
                bytes.map(Zeroizing::new).map_err(|e| e.with("path", path.display()))
            };
            text.lines(read, |line| {
                recipients.push(Recipient::parse(line)?);
                Ok(())
            })?;
        }
        let mut identities = Vec::new();
        for text in &self.identities {
            text.lines(read_file, |line| {
                identities.push(Identity::parse(line)?);
                Ok(())
            })?;
        }
        recipients.sort_unstable();
        recipients.dedup();
        if recipients.is_empty() && identities.is_empty() {
            return refuse("give recipients to write, or an identity to read");
        }
        if recipients.is_empty() != self.signatures.signing_key().is_none() {
            return refuse("to write, give both recipients and a signing key; to read, neither of them");
        }
        if self.signatures.trusted().is_empty() {
            return refuse("nothing says which manifests to trust; give the producer's verifying key");
        }
        if recipients.len() > MAX_RECIPIENTS || identities.len() > MAX_IDENTITIES {
            return Err(Error::new(ErrorKind::LimitExceeded, "build age encryption")
                .message("there are too many recipients or identities"));
        }
        Ok(Age { recipients, identities, signatures: self.signatures })
    }
}

impl Text {
    /// Calls `each` for every line that is neither empty nor a comment.
    fn lines(
        &self,
        read: impl Fn(&Path) -> Result<Zeroizing<Vec<u8>>>,
        mut each: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let bytes = match self {
            Self::Given(text) => Zeroizing::new(text.as_bytes().to_vec()),
            Self::File(path) => read(path)?,
            Self::Env(name) => Zeroizing::new(read_env(name)?.as_bytes().to_vec()),
        };
        let named = |error: Error| match self {
            Self::Given(_) => error,
            Self::File(path) => error.with("path", path.display()),
            Self::Env(name) => error.with("variable", name),
        };
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| named(Error::invalid("read age key", "a file of age keys is text")))?;
        let mut found = false;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            found = true;
            each(line).map_err(named)?;
        }
        if found { Ok(()) } else { Err(named(Error::invalid("read age key", "there is no key in it"))) }
    }
}

impl fmt::Debug for AgeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgeBuilder")
            .field("recipients", &self.recipients.len())
            .field("identities", &self.identities.len())
            .field("signatures", &self.signatures)
            .finish()
    }
}
