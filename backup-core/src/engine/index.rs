//! The block index of a stored object: a digest per block, and where frames begin.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::transform::Frame;

/// Stored bytes covered by one digest of the index.
pub(crate) const BLOCK: u64 = 1024 * 1024;
/// Objects above this stored size get an index; the digest of a smaller one covers it whole.
pub(crate) const INDEX_ABOVE: u64 = 4 * 1024 * 1024;
/// Largest index a reader accepts: enough for 4 TiB in one object.
pub(crate) const INDEX_LIMIT: u64 = 512 * 1024 * 1024;

/// Digests of the blocks of a stored object, and its frame boundaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockIndex {
    format: u32,
    /// Stored bytes per block; the last block may be shorter.
    pub(crate) block_size: u64,
    /// SHA-256 of each block.
    pub(crate) blocks: Vec<Digest>,
    /// Frame boundaries, ascending.
    pub(crate) frames: Vec<Frame>,
}

impl BlockIndex {
    pub(crate) fn new(blocks: Vec<Digest>, frames: Vec<Frame>) -> Self {
        Self { format: 1, block_size: BLOCK, blocks, frames }
    }

    /// The index of a small object: one block, whose digest the manifest has.
    pub(crate) fn single(size: u64, digest: Digest) -> Self {
        Self { format: 1, block_size: size.max(1), blocks: vec![digest], frames: Vec::new() }
    }

    pub(crate) fn to_bytes(&self) -> Result<Bytes> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .map_err(|e| Error::new(ErrorKind::Internal, "write index").caused_by(e))
    }

    /// Parses the index of an object of `stored_size` bytes.
    pub(crate) fn parse(bytes: &[u8], stored_size: u64) -> Result<Self> {
        let bad = |why: &'static str| Error::corrupt("read index", why);
        let index: Self =
            serde_json::from_slice(bytes).map_err(|e| bad("the index cannot be read").caused_by(e))?;
        if index.format != 1 {
            return Err(Error::new(ErrorKind::Unsupported, "read index").with("format", index.format));
        }
        if !(64 * 1024..=4 * BLOCK).contains(&index.block_size) {
            return Err(bad("the block size is out of bounds"));
        }
        if index.blocks.len() as u64 != stored_size.div_ceil(index.block_size) {
            return Err(bad("the number of blocks does not fit the size of the object"));
        }
        if !index.frames.is_sorted_by(|a, b| a.plain < b.plain && a.encoded < b.encoded) {
            return Err(bad("the frames are not in order"));
        }
        Ok(index)
    }
}
