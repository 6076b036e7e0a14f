//! Compression contexts, one per thread, and what they cost.

use std::cell::RefCell;

use bytes::Bytes;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use super::frame::failed;
use crate::error::{Error, ErrorKind, Result};

struct Compressor {
    level: i32,
    context: CCtx<'static>,
    scratch: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Bytes a compression context needs for blocks of one mebibyte, rounded up; `ZSTD_sizeof_CCtx` as measured with
/// zstd 1.5.7 (a test compares).
pub(super) fn size(level: i32) -> usize {
    let mebibytes = match level {
        ..=3 => 2,
        4..=5 => 4,
        6..=8 => 8,
        9..=12 => 24,
        _ => 40,
    };
    mebibytes << 20
}

/// Compresses `plain` to one frame with content size and checksum.
pub(super) fn compress(plain: &[u8], level: i32) -> Result<Bytes> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|c| c.level != level) {
            *slot = Some(new_compressor(level)?);
        }
        let Some(Compressor { context, scratch, .. }) = slot else { return Err(out_of_memory()) };
        scratch.clear();
        scratch.reserve(zstd_safe::compress_bound(plain.len()));
        context
            .compress2(scratch, plain)
            .map_err(|code| failed(ErrorKind::Internal, "compress zstd", code))?;
        // A copy of the exact size: the scratch keeps its capacity, the frame holds no more than it needs.
        Ok(Bytes::copy_from_slice(scratch))
    })
}

fn new_compressor(level: i32) -> Result<Compressor> {
    let mut context = CCtx::try_create().ok_or_else(out_of_memory)?;
    for parameter in [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)] {
        context.set_parameter(parameter).map_err(|code| failed(ErrorKind::Internal, "set up zstd", code))?;
    }
    Ok(Compressor { level, context, scratch: Vec::new() })
}

/// Decompresses one whole frame of exactly `size` plain bytes.
pub(super) fn decompress(frame: &[u8], size: usize) -> Result<Bytes> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(DCtx::try_create().ok_or_else(out_of_memory)?);
        }
        let Some(context) = slot else { return Err(out_of_memory()) };
        let mut plain = Vec::with_capacity(size);
        context
            .decompress(&mut plain, frame)
            .map_err(|code| failed(ErrorKind::Corrupt, "decompress zstd", code))?;
        if plain.len() != size {
            return Err(Error::corrupt("decompress zstd", "a frame does not hold as many bytes as it says"));
        }
        Ok(plain.into())
    })
}

fn out_of_memory() -> Error {
    Error::new(ErrorKind::LimitExceeded, "set up zstd").message("there is no memory for a zstd context")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_not_larger_than_what_is_counted_for_it() {
        let block: Vec<u8> = (0u32..1 << 18).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        for level in 1..=19 {
            let mut compressor = new_compressor(level).unwrap();
            compressor.scratch.reserve(zstd_safe::compress_bound(block.len()));
            compressor.context.compress2(&mut compressor.scratch, &block).unwrap();
            let real = compressor.context.sizeof();
            assert!(real <= size(level), "level {level}: {real}");
        }
    }
}
