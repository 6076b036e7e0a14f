//! Objects of a header and sealed segments: what the encryptions have in common.
//!
//! Every segment is sealed alone, with its number and whether it is the last in its nonce (the STREAM construction), so
//! that an object that was cut off, extended or reordered fails at the segment concerned, and ranges can be read.

mod decode;
mod encode;

use std::ops::Range;

use super::Located;
use crate::error::{Error, Result};

pub(super) use decode::Decoder;
pub(super) use encode::{BATCH, Encoder};

/// Length of the tag behind each segment: that of GCM and of Poly1305.
pub(super) const TAG: usize = 16;

/// Seals and opens the segments of one object.
pub(super) trait SegmentCipher: Send {
    /// Everything before the first segment.
    fn header(&self) -> &[u8];

    /// Plain bytes in every segment but the last.
    fn segment(&self) -> usize;

    /// Encrypts `plain` in place and returns the tag.
    fn seal(&self, number: u64, last: bool, plain: &mut [u8]) -> Result<[u8; TAG]>;

    /// Decrypts a segment, tag included, in place. `false`: it is not what was written there.
    fn unseal(&self, number: u64, last: bool, sealed: &mut [u8]) -> Result<bool>;
}

/// Reads the header of an object.
pub(super) trait Opener: Send {
    /// What it opens to.
    type Cipher: SegmentCipher;

    /// Reads a header from the beginning of `bytes` and compares the key; `None` when more bytes are needed.
    fn open(&self, bytes: &[u8]) -> Result<Option<Self::Cipher>>;

    /// The error for damage to this object.
    fn corrupt(&self, why: &'static str) -> Error;
}

/// Where segments are in an object.
pub(super) struct Layout {
    /// Bytes of the header.
    pub(super) header: u64,
    /// Plain bytes in a segment; at least 1.
    pub(super) segment: u64,
}

impl Layout {
    /// Size of the plain bytes in an object of `size` bytes.
    pub(super) fn plain_size(&self, size: u64) -> Option<u64> {
        let tags = self.segments(size)?.checked_mul(TAG as u64)?;
        size.checked_sub(self.header)?.checked_sub(tags)
    }

    /// Where the plain bytes `plain` are in an object of `size` bytes.
    pub(super) fn locate(&self, plain: &Range<u64>, size: u64) -> Option<Located> {
        let segments = self.segments(size)?;
        let first = (plain.start / self.segment).min(segments - 1);
        let behind = plain.end.div_ceil(self.segment).clamp(first + 1, segments);
        let to_end = behind == segments;
        Some(Located {
            prefix: self.header,
            encoded: self.start_of(first)?..if to_end { size } else { self.start_of(behind)? },
            to_end,
            plain_start: first * self.segment,
        })
    }

    /// How many segments an object of `size` bytes has: at least one, which holds at least a tag.
    fn segments(&self, size: u64) -> Option<u64> {
        let body = size.checked_sub(self.header)?;
        (body >= TAG as u64).then(|| body.div_ceil(self.segment + TAG as u64))
    }

    fn start_of(&self, segment: u64) -> Option<u64> {
        segment.checked_mul(self.segment + TAG as u64)?.checked_add(self.header)
    }
}
