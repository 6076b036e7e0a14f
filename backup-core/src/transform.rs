//! What happens to bytes between source and sink: [`Transform`] and its [`Codec`]s.

mod aes_gcm;
#[cfg(feature = "age")]
mod age;
mod chain;
mod frames;
mod gzip;
mod identity;
mod segments;
#[cfg(feature = "zstd")]
mod zstd;

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::keys::{BackupKey, Keyring, Signatures};
use crate::name::{BackupId, SetName};
use crate::workers::Workers;

pub use aes_gcm::AesGcm;
#[cfg(feature = "age")]
pub use age::{Age, AgeBuilder};
pub use chain::{Chain, ChainDecoder, ChainEncoder, ChainRange};
pub use gzip::Gzip;
pub use identity::Identity;
#[cfg(feature = "zstd")]
pub use zstd::Zstd;

/// A reversible change of a byte stream: compression or encryption. Knows both directions.
pub trait Transform: Debug + Send + Sync {
    /// The id and non-secret parameters that go into the manifest. The decoder gets them back.
    fn spec(&self) -> TransformSpec;

    /// File extension of its output, without the dot: `"zst"`.
    fn extension(&self) -> &'static str;

    /// Where in a chain it may stand.
    fn stage(&self) -> Stage;

    /// Most bytes one of its codecs holds at a time, beside what passes through. Counted against the run's budget.
    fn memory(&self, workers: &Workers) -> usize;

    /// A codec that encodes.
    fn encoder(&self, cx: &CodecContext<'_>) -> Result<Box<dyn Codec>>;

    /// A codec that decodes what an encoder with this `spec` wrote, from its beginning, or from [`Located`].
    fn decoder(
        &self,
        spec: &TransformSpec,
        cx: &CodecContext<'_>,
        at: Option<&Located>,
    ) -> Result<Box<dyn Codec>>;

    /// Where in the encoded bytes the plain bytes `plain` are. `frames` are the boundaries this transform's encoder
    /// emitted, `encoded_size` is the size of its whole output. `None`: only a read from the beginning will do.
    fn locate(
        &self,
        spec: &TransformSpec,
        plain: Range<u64>,
        frames: &[Frame],
        encoded_size: Option<u64>,
    ) -> Option<Located> {
        let _ = (spec, plain, frames, encoded_size);
        None
    }

    /// Size of the whole input, given the size of the whole output, where that is fixed arithmetic.
    fn plain_size(&self, spec: &TransformSpec, encoded_size: u64) -> Option<u64> {
        let _ = (spec, encoded_size);
        None
    }

    /// The keys it works with. A transform that returns some makes its repository an encrypted one.
    fn keyring(&self) -> Option<&Keyring> {
        None
    }

    /// Whose signatures seal manifests, for an encryption that has no [`keyring`](Self::keyring).
    fn signatures(&self) -> Option<&Signatures> {
        None
    }

    /// Whether this configuration holds what decodes its own output. An encryption to public keys alone does not.
    fn can_decode(&self) -> bool {
        true
    }

    /// For each private key it holds beside a [`keyring`](Self::keyring): its public name, and this transform with that
    /// key alone. Key checks try them one by one.
    fn each_key(&self) -> Vec<(String, Box<dyn Transform>)> {
        Vec::new()
    }

    /// For each key beside a [`keyring`](Self::keyring): its public name, and the secret as a person would type it; empty
    /// where it is not held here. For the recovery sheet.
    fn for_paper(&self) -> Vec<(String, Zeroizing<String>)> {
        Vec::new()
    }
}

/// The order of a chain: compression, then encryption. Encrypted bytes do not compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Makes bytes fewer.
    Compress,
    /// Makes bytes unreadable.
    Encrypt,
}

/// A transform as the manifest records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransformSpec {
    /// `"gzip"`, `"zstd"`, `"aes-256-gcm"`.
    pub id: Cow<'static, str>,
    /// Non-secret parameters a decoder or a reader of the manifest may want.
    #[serde(flatten)]
    pub parameters: Map<String, Value>,
}

impl TransformSpec {
    /// A spec without parameters.
    pub fn new(id: &'static str) -> Self {
        Self { id: Cow::Borrowed(id), parameters: Map::new() }
    }

    /// Adds a parameter.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.parameters.insert(name.to_owned(), value.into());
        self
    }
}

/// Encodes or decodes one stream. Does no input or output and runs on a thread where it may compute and block.
pub trait Codec: Send {
    /// Takes input, passes on what is ready.
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()>;

    /// The input is complete. A decoder whose input stops too early returns [`ErrorKind::Corrupt`].
    fn finish(self: Box<Self>, out: &mut dyn Emit) -> Result<()>;
}

/// Receives the output of a codec.
pub trait Emit {
    /// The next output bytes.
    fn data(&mut self, bytes: Bytes) -> Result<()>;

    /// The next output byte begins a unit that decodes alone; it holds the plain bytes from `plain_offset` on.
    fn boundary(&mut self, plain_offset: u64) -> Result<()>;
}

impl Emit for Vec<u8> {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.extend_from_slice(&bytes);
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}

/// A boundary as the index keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Offset in the transform's input.
    pub plain: u64,
    /// Offset in the transform's output.
    pub encoded: u64,
}

/// Where a range of plain bytes is in the encoded bytes, and how a decoder begins there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Bytes at the very beginning of the encoded stream that the decoder must be pushed first (a header).
    /// When `encoded` begins at 0 they are part of it and not pushed twice.
    pub prefix: u64,
    /// The encoded bytes to push then. Begins and ends at unit boundaries, or at the end of the stream.
    pub encoded: Range<u64>,
    /// Whether `encoded` reaches the end of the stream, so that the decoder must see a proper end.
    pub to_end: bool,
    /// The plain offset of the first byte the decoder will yield: at or before the range asked for.
    pub plain_start: u64,
}

/// What a codec may know of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct CodecContext<'a> {
    /// The set of the backup.
    pub set: &'a SetName,
    /// The backup.
    pub id: BackupId,
    /// The artifact, or the name of another object of the backup that goes through the chain.
    pub artifact: &'a str,
    /// The backup's key, where it has one.
    pub key: Option<&'a BackupKey>,
    /// Threads for computing.
    pub workers: &'a Workers,
}

impl<'a> CodecContext<'a> {
    /// The backup's key, or an error that says one is needed.
    pub fn require_key(&self) -> Result<&'a BackupKey> {
        self.key.ok_or_else(|| {
            Error::new(ErrorKind::WrongKey, "open backup key")
                .message("this object is encrypted and no key was opened; give the repository a keyring")
                .with("artifact", self.artifact)
        })
    }
}
