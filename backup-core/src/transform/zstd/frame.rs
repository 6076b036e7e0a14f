//! The outer structure of zstd frames (RFC 8878, section 3.1): enough to know where a frame ends.

use zstd::zstd_safe;

use crate::error::{Error, ErrorKind, Result};

/// Largest window that is accepted, as in `zstd` itself without `--long`.
pub(super) const MAX_WINDOW_LOG: u32 = 27;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The low four bits of the first byte of a skippable frame may be anything.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
const CHECKSUM: usize = 4;
const BLOCK_HEADER: usize = 3;
const BLOCK_RLE: u32 = 1;
const BLOCK_RESERVED: u32 = 3;

/// What begins at some place of a zstd stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// A frame of compressed data.
    Frame(Header),
    /// A frame to be skipped, of this many bytes altogether.
    Skippable(u64),
}

/// A frame header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Its own length in bytes, magic number included.
    pub(super) len: usize,
    /// Plain bytes in the frame, where it says so.
    pub(super) content: Option<u64>,
    /// Whether a checksum follows the last block.
    pub(super) checksum: bool,
}

/// Reads what begins at the beginning of `bytes`; `None` when more of it is needed.
pub(super) fn begin(bytes: &[u8]) -> Result<Option<Begin>> {
    let is = |magic: [u8; 4], mask: u8| {
        bytes.iter().zip(magic).enumerate().all(|(i, (a, b))| if i == 0 { a & mask == b } else { *a == b })
    };
    if is(SKIPPABLE_MAGIC, 0xf0) {
        let size = bytes.get(4..).and_then(<[u8]>::first_chunk::<4>);
        return Ok(size.map(|size| Begin::Skippable(8 + u64::from(u32::from_le_bytes(*size)))));
    }
    if !is(MAGIC, 0xff) {
        return Err(corrupt("this is not zstd data, or something else follows its end"));
    }
    let Some(descriptor) = bytes.get(4).copied() else { return Ok(None) };
    if descriptor & 0b1000 != 0 {
        return Err(corrupt("the zstd frame header uses a reserved bit"));
    }
    let single_segment = descriptor & 0b10_0000 != 0;
    if descriptor & 0b11 != 0 {
        return Err(Error::new(ErrorKind::Unsupported, "decompress zstd")
            .message("the frame was compressed with a dictionary, which this library never uses"));
    }
    let window_len = usize::from(!single_segment);
    let content_len = match (descriptor >> 6, single_segment) {
        (0, false) => 0,
        (0, true) => 1,
        (1, _) => 2,
        (2, _) => 4,
        _ => 8,
    };
    let len = 5 + window_len + content_len;
    let Some(fields) = bytes.get(5..len) else { return Ok(None) };
    let (window, content) = fields.split_at(window_len);
    let content = (content_len > 0).then(|| {
        let mut number = [0; 8];
        number[..content_len].copy_from_slice(content);
        // The two-byte form begins where the one-byte form ends.
        u64::from_le_bytes(number).saturating_add(if content_len == 2 { 256 } else { 0 })
    });
    let window = window.first().map_or(content.unwrap_or(0), |b| {
        let base = 1u64 << (10 + (b >> 3));
        base + base / 8 * u64::from(b & 7)
    });
    if window > 1 << MAX_WINDOW_LOG {
        return Err(Error::new(ErrorKind::LimitExceeded, "decompress zstd")
            .message(
                "the frame wants a window of more than 2^27 bytes; recompress it without --long or --ultra",
            )
            .with("window", window));
    }
    Ok(Some(Begin::Frame(Header { len, content, checksum: descriptor & 0b100 != 0 })))
}

/// Walks over the blocks of a frame as they arrive.
#[derive(Debug)]
pub(super) struct BlockScan {
    /// Bytes of the frame that were walked over.
    at: usize,
    checksum: bool,
    last_seen: bool,
}

impl BlockScan {
    /// Begins after `header`.
    pub(super) fn new(header: &Header) -> Self {
        Self { at: header.len, checksum: header.checksum, last_seen: false }
    }

    /// The length of the whole frame that `bytes` begin with, or at least how many bytes are needed to go on.
    pub(super) fn walk(&mut self, bytes: &[u8]) -> Result<Scanned> {
        while !self.last_seen {
            let Some(head) = bytes.get(self.at..).and_then(<[u8]>::first_chunk::<BLOCK_HEADER>) else {
                return Ok(Scanned::Needs(self.at + BLOCK_HEADER));
            };
            let word = u32::from_le_bytes([head[0], head[1], head[2], 0]);
            let size = match (word >> 1) & 0b11 {
                BLOCK_RLE => 1,
                BLOCK_RESERVED => return Err(corrupt("a zstd block has a type that does not exist")),
                _ => (word >> 3) as usize,
            };
            self.at += BLOCK_HEADER + size;
            self.last_seen = word & 1 != 0;
        }
        let end = self.at + if self.checksum { CHECKSUM } else { 0 };
        Ok(if bytes.len() >= end { Scanned::Whole(end) } else { Scanned::Needs(end) })
    }
}

/// What [`BlockScan::walk`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// The frame is complete and has this many bytes.
    Whole(usize),
    /// At least this many bytes are needed.
    Needs(usize),
}

fn corrupt(why: &'static str) -> Error {
    Error::corrupt("decompress zstd", why)
}

/// An error from a code of the zstd library.
pub(super) fn failed(kind: ErrorKind, operation: &'static str, code: usize) -> Error {
    Error::new(kind, operation).message(zstd_safe::get_error_name(code))
}
