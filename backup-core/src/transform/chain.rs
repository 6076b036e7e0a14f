//! Several transforms one after the other: [`Chain`].

mod run;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use run::{ChainDecoder, ChainEncoder};

use super::{AesGcm, CodecContext, Frame, Gzip, Identity, Located, Stage, Transform, TransformSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Keyring, Signatures};
use crate::workers::Workers;

/// The transforms of a repository or of a stored artifact, in the order plain bytes pass them when written.
///
/// At most one compresses and at most one encrypts, in this order: encrypted bytes do not compress, and a chain that
/// would try is refused.
///
/// ```
/// use std::sync::Arc;
/// use backup_core::{Chain, Gzip};
/// let chain = Chain::new(vec![Arc::new(Gzip::default())])?;
/// assert_eq!(chain.extension(), ".gz");
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Chain {
    layers: Vec<Layer>,
}

/// A transform with the parameters its bytes are, or will be, written with.
#[derive(Clone)]
struct Layer {
    transform: Arc<dyn Transform>,
    spec: TransformSpec,
}

/// Where a range of an artifact's plain bytes is in its stored bytes: what to read, and how a
/// [`ChainDecoder`] makes exactly that range of it.
///
/// Read `0..prefix` first (unless it is empty), then `stored`, and push both in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRange {
    /// How many of the very first stored bytes the decoder needs before those of `stored`. 0 when `stored` begins
    /// at 0.
    pub prefix: u64,
    /// The stored bytes to read.
    pub stored: Range<u64>,
    /// The plain bytes that come out.
    pub plain: Range<u64>,
    /// For every layer, first to last, where its part of the range is in its output. `None`: from the beginning.
    layers: Vec<Option<Located>>,
}

impl Chain {
    /// A chain of `transforms` in writing order. None at all leaves bytes as they are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] when the order cannot work.
    pub fn new(transforms: Vec<Arc<dyn Transform>>) -> Result<Self> {
        let layers = transforms.into_iter().map(|transform| Layer { spec: transform.spec(), transform });
        Self::of_layers(layers.collect())
    }

    /// The chain that a manifest names. `available` are configured transforms (keys, third-party ones); the
    /// compressions of this crate are known besides.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for an id that is neither configured nor built in, [`ErrorKind::WrongKey`] for
    /// encryption without a configured keyring, [`ErrorKind::InvalidInput`] for an impossible order.
    pub fn from_specs(specs: &[TransformSpec], available: &[Arc<dyn Transform>]) -> Result<Self> {
        let layer = |spec: &TransformSpec| {
            let configured = available.iter().find(|t| t.spec().id == spec.id).cloned();
            let transform = configured.or_else(|| built_in(&spec.id)).ok_or_else(|| unknown(spec))?;
            Ok(Layer { transform, spec: spec.clone() })
        };
        Self::of_layers(specs.iter().map(layer).collect::<Result<_>>()?)
    }

    fn of_layers(layers: Vec<Layer>) -> Result<Self> {
        for pair in layers.windows(2) {
            let [first, second] = pair else { continue };
            let why = match (first.transform.stage(), second.transform.stage()) {
                (Stage::Compress, Stage::Encrypt) => continue,
                (Stage::Encrypt, Stage::Compress) => {
                    "encrypted bytes do not compress: put the compression before the encryption"
                }
                (Stage::Compress, Stage::Compress) => "one compression is enough: remove the other",
                (Stage::Encrypt, Stage::Encrypt) => "one encryption is enough: remove the other",
            };
            return Err(Error::invalid("build transform chain", why)
                .with("first", &first.spec.id)
                .with("second", &second.spec.id));
        }
        Ok(Self { layers })
    }

    /// The transforms as the manifest records them, in writing order.
    pub fn specs(&self) -> Vec<TransformSpec> {
        self.layers.iter().map(|l| l.spec.clone()).collect()
    }

    /// What is appended to the name of a stored object: `".zst.enc"`; nothing for an empty chain.
    pub fn extension(&self) -> String {
        let parts = self.layers.iter().map(|l| l.transform.extension()).filter(|e| !e.is_empty());
        parts.fold(String::new(), |all, part| all + "." + part)
    }

    /// Whether stored bytes are unreadable without a key.
    pub fn is_encrypted(&self) -> bool {
        self.layers.iter().any(|l| l.transform.stage() == Stage::Encrypt)
    }

    /// Whether stored bytes are the plain bytes.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The keys its encryption works with.
    pub fn keyring(&self) -> Option<&Keyring> {
        self.layers.iter().find_map(|l| l.transform.keyring())
    }

    /// Whose signatures seal manifests, where its encryption has no keyring.
    pub fn signatures(&self) -> Option<&Signatures> {
        self.layers.iter().find_map(|l| l.transform.signatures())
    }

    /// Whether what it encodes can be decoded with what it holds.
    pub fn can_decode(&self) -> bool {
        self.layers.iter().all(|l| l.transform.can_decode())
    }

    /// Most bytes that one encoder or decoder of the chain holds.
    pub fn memory(&self, workers: &Workers) -> usize {
        self.layers.iter().map(|l| l.transform.memory(workers)).sum()
    }

    /// An encoder for one object.
    pub fn encoder(&self, cx: &CodecContext<'_>) -> Result<ChainEncoder> {
        let codecs = self.layers.iter().map(|l| Ok((l.transform.encoder(cx)?, l.transform.stage())));
        Ok(ChainEncoder::new(codecs.collect::<Result<_>>()?))
    }

    /// A decoder for one whole object.
    ///
    /// `plain_size` is what the manifest says: the decoder stops with [`ErrorKind::Corrupt`] as soon as more comes
    /// out, and when less came out at the end. Without it a small hostile object may decode to a very large one.
    pub fn decoder(&self, cx: &CodecContext<'_>, plain_size: Option<u64>) -> Result<ChainDecoder> {
        let codecs = self.layers.iter().map(|l| l.transform.decoder(&l.spec, cx, None));
        Ok(ChainDecoder::whole(codecs.collect::<Result<_>>()?, plain_size))
    }

    /// A decoder that makes exactly the plain bytes of `range`.
    pub fn range_decoder(&self, cx: &CodecContext<'_>, range: &ChainRange) -> Result<ChainDecoder> {
        let mut codecs = Vec::with_capacity(self.layers.len());
        for (layer, at) in self.layers.iter().zip(&range.layers) {
            codecs.push((layer.transform.decoder(&layer.spec, cx, at.as_ref())?, at.as_ref()));
        }
        Ok(ChainDecoder::part(codecs, range.plain.clone()))
    }

    /// Where the plain bytes `plain` are. `frames` are those of [`ChainEncoder::finish`], `stored_size` is the size
    /// of the stored object. Where a layer can only be read from its beginning, the range reaches from there.
    pub fn locate(&self, plain: Range<u64>, frames: &[Frame], stored_size: u64) -> ChainRange {
        // The size of each layer's output, from the last, where it is known, to the first.
        let mut sizes = vec![None; self.layers.len()];
        let mut size = Some(stored_size);
        for (slot, layer) in sizes.iter_mut().zip(&self.layers).rev() {
            *slot = size;
            size = size.and_then(|s| layer.transform.plain_size(&layer.spec, s));
        }

        let mut wanted = plain.clone();
        let mut prefix = 0;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (i, (layer, size)) in self.layers.iter().zip(&sizes).enumerate() {
            let frames = if layer.transform.stage() == Stage::Compress { frames } else { &[] };
            let outermost = i + 1 == self.layers.len();
            let located = layer
                .transform
                .locate(&layer.spec, wanted.clone(), frames, *size)
                // A header of an inner layer would be a second range to ask of the layer around it.
                .filter(|at| outermost || at.prefix == 0 || at.encoded.start == 0);
            wanted = if let Some(at) = &located {
                prefix = if at.encoded.start == 0 { 0 } else { at.prefix };
                at.encoded.clone()
            } else {
                prefix = 0;
                0..size.unwrap_or(u64::MAX)
            };
            layers.push(located);
        }
        let stored = wanted.start.min(stored_size)..wanted.end.min(stored_size);
        ChainRange { prefix, stored, plain, layers }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.layers.iter().map(|l| &l.transform)).finish()
    }
}

/// Transforms that need no configuration to decode.
fn built_in(id: &str) -> Option<Arc<dyn Transform>> {
    match id {
        Gzip::ID => Some(Arc::new(Gzip::default())),
        #[cfg(feature = "zstd")]
        super::Zstd::ID => Some(Arc::new(super::Zstd::default())),
        Identity::ID => Some(Arc::new(Identity)),
        _ => None,
    }
}

fn unknown(spec: &TransformSpec) -> Error {
    let refuse = |kind, why: &'static str| Error::new(kind, "open transform chain").message(why);
    let error = match spec.id.as_ref() {
        AesGcm::ID => refuse(
            ErrorKind::WrongKey,
            "the backup is encrypted; configure the encryption with a keyring to read it",
        ),
        "age" => refuse(
            ErrorKind::WrongKey,
            "the backup is encrypted to age recipients; give the repository an `Age` with an identity (feature `age`)",
        ),
        _ => refuse(
            ErrorKind::Unsupported,
            "the backup was written with a transform that is neither configured nor built in",
        ),
    };
    error.with("transform", &spec.id)
}
