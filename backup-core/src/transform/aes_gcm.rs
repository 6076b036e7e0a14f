//! AES-256-GCM in segments: [`AesGcm`].
//!
//! The format is specified to the byte in `docs/format.md`. In short: an immutable header with a random
//! salt and a commitment to the key; segments of 64 KiB plain bytes, each sealed with its number and whether it is the
//! last as nonce (the STREAM construction) and the header as associated data.

mod header;

use std::ops::Range;

use super::segments::{BATCH, Decoder, Encoder, Layout};
use super::{Codec, CodecContext, Frame, Located, Stage, Transform, TransformSpec};
use crate::error::Result;
use crate::keys::Keyring;
use crate::workers::Workers;

/// Plain bytes in a segment of the objects this library writes.
const SEGMENT: u32 = 64 << 10;

/// AES-256-GCM under a key derived, per object, from the backup's random key.
///
/// A wrong key is noticed before anything is decrypted; a changed, cut off, reordered or extended object before any
/// of the segments concerned is passed on.
#[derive(Clone, Debug)]
pub struct AesGcm {
    keyring: Keyring,
}

impl AesGcm {
    /// Its id in manifests.
    pub const ID: &'static str = "aes-256-gcm";

    /// Encryption whose backup keys are wrapped by `keyring`.
    pub fn new(keyring: Keyring) -> Self {
        Self { keyring }
    }
}

impl Transform for AesGcm {
    fn spec(&self) -> TransformSpec {
        TransformSpec::new(Self::ID).with("segment", SEGMENT)
    }

    fn extension(&self) -> &'static str {
        "enc"
    }

    fn stage(&self) -> Stage {
        Stage::Encrypt
    }

    fn memory(&self, _workers: &Workers) -> usize {
        // What waits to become a segment, and one batch of segments.
        SEGMENT as usize + BATCH
    }

    fn encoder(&self, cx: &CodecContext<'_>) -> Result<Box<dyn Codec>> {
        Ok(Box::new(Encoder::new(header::ObjectCipher::create(cx, SEGMENT)?)))
    }

    fn decoder(
        &self,
        _spec: &TransformSpec,
        cx: &CodecContext<'_>,
        at: Option<&Located>,
    ) -> Result<Box<dyn Codec>> {
        Ok(Box::new(Decoder::new(header::HeaderOpener::new(cx)?, at)))
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

    fn keyring(&self) -> Option<&Keyring> {
        Some(&self.keyring)
    }
}

/// Where segments are in an object with the header this library writes.
fn layout(spec: &TransformSpec) -> Option<Layout> {
    let segment = match spec.parameters.get("segment") {
        None => u64::from(SEGMENT),
        Some(number) => number.as_u64()?,
    };
    let known = (1..=header::MAX_SEGMENT as u64).contains(&segment);
    known.then_some(Layout { header: header::LEN as u64, segment })
}
