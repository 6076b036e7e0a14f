//! Plain bytes to segments.

use bytes::{Bytes, BytesMut};

use super::{SegmentCipher, TAG};
use crate::error::Result;
use crate::transform::{Codec, Emit};

/// Segments are sealed and passed on in batches of about this many bytes.
pub(in crate::transform) const BATCH: usize = 1 << 20;

/// Encrypts one object.
pub(in crate::transform) struct Encoder<C> {
    cipher: C,
    /// Plain bytes of the segment being filled. A full one is kept until more follows: it may be the last.
    filling: BytesMut,
    number: u64,
    begun: bool,
}

impl<C: SegmentCipher> Encoder<C> {
    pub(in crate::transform) fn new(cipher: C) -> Self {
        Self { cipher, filling: BytesMut::new(), number: 0, begun: false }
    }

    fn begin(&mut self, out: &mut dyn Emit) -> Result<()> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        out.data(Bytes::copy_from_slice(self.cipher.header()))
    }

    /// Appends a segment made of `head` and `tail` to `batch`.
    fn seal(&mut self, head: &[u8], tail: &[u8], last: bool, batch: &mut BytesMut) -> Result<()> {
        let start = batch.len();
        batch.extend_from_slice(head);
        batch.extend_from_slice(tail);
        let tag = self.cipher.seal(self.number, last, &mut batch[start..])?;
        batch.extend_from_slice(&tag);
        self.number += 1;
        Ok(())
    }
}

impl<C: SegmentCipher> Codec for Encoder<C> {
    fn push(&mut self, mut input: Bytes, out: &mut dyn Emit) -> Result<()> {
        self.begin(out)?;
        let segment = self.cipher.segment();
        // How many segments certainly have something behind them.
        let mut whole = (self.filling.len() + input.len()).saturating_sub(1) / segment;
        while whole > 0 {
            let now = whole.min((BATCH / segment).max(1));
            let mut batch = BytesMut::with_capacity(now * (segment + TAG));
            for _ in 0..now {
                let head = std::mem::take(&mut self.filling);
                let tail = input.split_to(segment - head.len());
                self.seal(&head, &tail, false, &mut batch)?;
                self.filling = head;
                self.filling.clear();
            }
            whole -= now;
            out.data(batch.freeze())?;
        }
        if self.filling.capacity() < segment && !input.is_empty() {
            self.filling.reserve(segment - self.filling.len());
        }
        self.filling.extend_from_slice(&input);
        Ok(())
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        self.begin(out)?;
        let last = std::mem::take(&mut self.filling);
        let mut batch = BytesMut::with_capacity(last.len() + TAG);
        self.seal(&last, &[], true, &mut batch)?;
        out.data(batch.freeze())
    }
}
