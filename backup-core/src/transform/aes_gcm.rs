//! AES-256-GCM in segments: [`AesGcm`].
//!
//! The format is specified to the byte in `docs/format.md`. In short: an immutable header with a random
//! salt and a commitment to the key; segments of 64 KiB plain bytes, each sealed with its number and whether it is the
//! last as nonce (the STREAM construction) and the header as associated data.

mod decode;
mod encode;
mod header;

use std::ops::Range;

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
        SEGMENT as usize + encode::BATCH
    }

    fn encoder(&self, cx: &CodecContext<'_>) -> Result<Box<dyn Codec>> {
        Ok(Box::new(encode::Encoder::new(cx, SEGMENT)?))
    }

    fn decoder(
        &self,
        _spec: &TransformSpec,
        cx: &CodecContext<'_>,
        at: Option<&Located>,
    ) -> Result<Box<dyn Codec>> {
        Ok(Box::new(decode::Decoder::new(cx, at)?))
    }

    fn locate(
        &self,
        spec: &TransformSpec,
        plain: Range<u64>,
        _frames: &[Frame],
        encoded_size: Option<u64>,
    ) -> Option<Located> {
        let layout = Layout::of(spec)?;
        let segments = layout.segments(encoded_size?)?;
        let first = (plain.start / layout.segment).min(segments - 1);
        let behind = plain.end.div_ceil(layout.segment).clamp(first + 1, segments);
        let to_end = behind == segments;
        let end = if to_end { encoded_size? } else { layout.start_of(behind)? };
        Some(Located {
            prefix: header::LEN as u64,
            encoded: layout.start_of(first)?..end,
            to_end,
            plain_start: first * layout.segment,
        })
    }

    fn plain_size(&self, spec: &TransformSpec, encoded_size: u64) -> Option<u64> {
        let segments = Layout::of(spec)?.segments(encoded_size)?;
        encoded_size.checked_sub(header::LEN as u64)?.checked_sub(segments * header::TAG as u64)
    }

    fn keyring(&self) -> Option<&Keyring> {
        Some(&self.keyring)
    }
}

/// Where segments are in an object with the header this library writes.
struct Layout {
    /// Plain bytes in a segment; at least 1.
    segment: u64,
}

impl Layout {
    fn of(spec: &TransformSpec) -> Option<Self> {
        let segment = match spec.parameters.get("segment") {
            None => u64::from(SEGMENT),
            Some(number) => number.as_u64()?,
        };
        (1..=header::MAX_SEGMENT as u64).contains(&segment).then_some(Self { segment })
    }

    /// How many segments an object of `size` bytes has: at least one, which holds at least a tag.
    fn segments(&self, size: u64) -> Option<u64> {
        let body = size.checked_sub(header::LEN as u64)?;
        (body >= header::TAG as u64).then(|| body.div_ceil(self.segment + header::TAG as u64))
    }

    fn start_of(&self, segment: u64) -> Option<u64> {
        segment.checked_mul(self.segment + header::TAG as u64)?.checked_add(header::LEN as u64)
    }
}
