//! Encryption to `age` recipients: [`Age`].
//!
//! Every object is an age file of its own (age-encryption.org/v1) that the `age` command opens. In short: a text header
//! that wraps a random key for each recipient, then segments of 64 KiB plain bytes under ChaCha20-Poly1305, each sealed
//! with its number and whether it is the last as nonce.

mod bech32;
mod builder;
mod header;
mod x25519;

use std::fmt;
use std::ops::Range;

use zeroize::Zeroizing;

use super::segments::{BATCH, Decoder, Encoder, Layout};
use super::{Codec, CodecContext, Frame, Located, Stage, Transform, TransformSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::Signatures;
use crate::workers::Workers;
use x25519::{Identity, Recipient};

pub use builder::AgeBuilder;

/// Encryption to the public keys of `age` recipients, with manifests sealed by the producer's signing key.
///
/// A producer holds recipients and a signing key, and cannot read what it wrote; whoever restores holds an identity and
/// trusts the producer's verifying key. Both are told by [`builder`](Self::builder). Objects cannot be given to other
/// recipients later: not without an identity, and not without changing them, so to replace a recipient, make new
/// backups.
///
/// ```
/// use backup_core::{Age, SigningKey};
/// let signing = SigningKey::generate()?;
/// let producer = Age::builder()
///     .recipient("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")
///     .sign_with(signing.clone())
///     .build()?;
/// let reader = Age::builder().identity_file("/root/identity.txt").trust(signing.verifying_key());
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Age {
    recipients: Vec<Recipient>,
    identities: Vec<Identity>,
    signatures: Signatures,
}

impl Age {
    /// Its id in manifests.
    pub const ID: &'static str = "age";

    /// Begins to say who encrypts to whom.
    pub fn builder() -> AgeBuilder {
        AgeBuilder::default()
    }

    /// The recipients of new backups, as age writes them.
    pub fn recipients(&self) -> Vec<String> {
        self.recipients.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Debug for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Age")
            .field("recipients", &self.recipients)
            .field("identities", &self.identities)
            .field("signatures", &self.signatures)
            .finish()
    }
}

impl Transform for Age {
    fn spec(&self) -> TransformSpec {
        TransformSpec::new(Self::ID).with("header", header::len(self.recipients.len()))
    }

    fn extension(&self) -> &'static str {
        "age"
    }

    fn stage(&self) -> Stage {
        Stage::Encrypt
    }

    fn memory(&self, _workers: &Workers) -> usize {
        header::SEGMENT + BATCH
    }

    fn encoder(&self, cx: &CodecContext<'_>) -> Result<Box<dyn Codec>> {
        if self.recipients.is_empty() {
            return Err(Error::invalid("encrypt", "there is no age recipient: this repository only reads")
                .with("artifact", cx.artifact));
        }
        Ok(Box::new(Encoder::new(header::FileCipher::create(&self.recipients)?)))
    }

    fn decoder(
        &self,
        _spec: &TransformSpec,
        cx: &CodecContext<'_>,
        at: Option<&Located>,
    ) -> Result<Box<dyn Codec>> {
        if self.identities.is_empty() {
            return Err(Error::new(ErrorKind::WrongKey, "decrypt")
                .message("this repository has no age identity: it makes backups that it cannot read")
                .with("artifact", cx.artifact));
        }
        let (identities, artifact) = (self.identities.clone(), cx.artifact.to_owned());
        Ok(Box::new(Decoder::new(header::HeaderOpener { identities, artifact }, at)))
    }

    fn locate(
        &self,
        spec: &TransformSpec,
        plain: Range<u64>,
        _frames: &[Frame],
        encoded_size: Option<u64>,
    ) -> Option<Located> {
        layout(spec)?.locate(&plain, encoded_size?)
    }

    fn plain_size(&self, spec: &TransformSpec, encoded_size: u64) -> Option<u64> {
        layout(spec)?.plain_size(encoded_size)
    }

    fn signatures(&self) -> Option<&Signatures> {
        Some(&self.signatures)
    }

    fn can_decode(&self) -> bool {
        !self.identities.is_empty()
    }

    fn each_key(&self) -> Vec<(String, Box<dyn Transform>)> {
        let alone = |identity: &Identity| -> Box<dyn Transform> {
            Box::new(Self { identities: vec![identity.clone()], ..self.clone() })
        };
        self.identities.iter().map(|i| (i.recipient().to_string(), alone(i))).collect()
    }

    fn for_paper(&self) -> Vec<(String, Zeroizing<String>)> {
        let own = self.identities.iter().map(Identity::recipient);
        let foreign = self.recipients.iter().filter(|r| own.clone().all(|own| own != **r));
        let foreign =
            foreign.map(|r| (format!("{r}, whose identity is kept elsewhere"), Zeroizing::default()));
        self.identities.iter().map(|i| (i.recipient().to_string(), i.expose())).chain(foreign).collect()
    }
}

/// Where segments are in a file with a header of the length that the manifest says.
fn layout(spec: &TransformSpec) -> Option<Layout> {
    let header = spec.parameters.get("header")?.as_u64()?;
    let known = (header::len(1) as u64..=header::MAX_LEN as u64).contains(&header);
    known.then_some(Layout { header, segment: header::SEGMENT as u64 })
}
