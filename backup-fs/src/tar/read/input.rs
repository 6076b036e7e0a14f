//! The bytes of an archive, pulled chunk by chunk.

use backup_core::{Bytes, Error, Result};

use super::OPERATION;
use super::field::BLOCK;

/// Where chunks come from. `None` is the end.
pub(crate) trait Chunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>>;
}

impl<F: FnMut() -> Result<Option<Bytes>>> Chunks for F {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        self()
    }
}

pub(super) struct Input<C> {
    chunks: C,
    current: Bytes,
    position: u64,
}

impl<C: Chunks> Input<C> {
    pub(super) fn new(chunks: C) -> Self {
        Self { chunks, current: Bytes::new(), position: 0 }
    }

    /// Bytes taken so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Makes sure there is something in `current`; `false` at the end of the stream.
    fn fill(&mut self) -> Result<bool> {
        while self.current.is_empty() {
            match self.chunks.next_chunk()? {
                Some(chunk) => self.current = chunk,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Between 1 and `limit` bytes, without copying them.
    pub(super) fn take(&mut self, limit: usize) -> Result<Bytes> {
        if !self.fill()? {
            return Err(truncated());
        }
        let piece = self.current.split_to(limit.min(self.current.len()));
        self.position += piece.len() as u64;
        Ok(piece)
    }

    /// The next block, or `None` if the stream ends exactly here.
    pub(super) fn block_or_end(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if !self.fill()? {
            return Ok(None);
        }
        self.block().map(Some)
    }

    pub(super) fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        let mut rest = &mut block[..];
        while !rest.is_empty() {
            let piece = self.take(rest.len())?;
            let (filled, after) = rest.split_at_mut(piece.len());
            filled.copy_from_slice(&piece);
            rest = after;
        }
        Ok(block)
    }

    /// `size` bytes. The buffer grows as they arrive.
    pub(super) fn read_vec(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut left = size;
        while left > 0 {
            let piece = self.take(usize::try_from(left).unwrap_or(usize::MAX))?;
            left -= piece.len() as u64;
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<()> {
        while bytes > 0 {
            bytes -= self.take(usize::try_from(bytes).unwrap_or(usize::MAX))?.len() as u64;
        }
        Ok(())
    }

    /// Reads to the end. Whatever follows the end of an archive would be seen by some readers and not by others.
    pub(super) fn only_zeros_follow(&mut self) -> Result<()> {
        while self.fill()? {
            if self.current.iter().any(|&b| b != 0) {
                return Err(Error::corrupt(OPERATION, "data follows the end of the archive"));
            }
            self.position += self.current.len() as u64;
            self.current.clear();
        }
        Ok(())
    }
}

pub(super) fn truncated() -> Error {
    Error::corrupt(OPERATION, "the archive ends in the middle of a member: it was cut off")
}
