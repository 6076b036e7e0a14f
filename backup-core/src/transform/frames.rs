//! Independent blocks, coded on all cores and passed on in order.
//!
//! Compression cuts its input into blocks of [`BLOCK`] plain bytes and makes each a unit of the format (a gzip
//! member, a zstd frame). Plain tools read the units one after the other; this library codes them in parallel and
//! begins in the middle.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Emit, Frame, Located};
use crate::error::Result;
use crate::workers::{Ordered, Workers};

/// Plain bytes in a block. Larger blocks compress hardly better; smaller ones cost ratio and make ranges no cheaper,
/// because stored blocks are read whole anyway.
pub(super) const BLOCK: usize = 1 << 20;

/// Most plain bytes of a unit that is decoded in one piece. Longer units (of other programs) are decoded as a stream.
pub(super) const MAX_BLOCK: usize = 4 << 20;

/// Most encoded bytes that are collected to decode a unit in one piece: a block that did not shrink, with room for
/// what the formats add to it.
pub(super) const MAX_ENCODED: usize = MAX_BLOCK + MAX_BLOCK / 8;

/// Output of streamed decoding is passed on in pieces of this many bytes.
pub(super) const STREAM_PIECE: usize = 256 << 10;

/// Codes one block. Runs on a worker; keeps its context in a thread-local.
type BlockCode = Arc<dyn Fn(&[u8]) -> Result<Bytes> + Send + Sync>;

/// A coded block, and the memory its input was in.
struct Done {
    input: Bytes,
    output: Result<Bytes>,
}

/// Cuts a stream into blocks and encodes them.
pub(super) struct BlockEncoder {
    encode: BlockCode,
    jobs: Ordered<Done>,
    filling: BytesMut,
    spare: Vec<BytesMut>,
    /// Plain bytes of the blocks already passed on.
    emitted: u64,
    submitted: bool,
}

impl BlockEncoder {
    pub(super) fn new(
        workers: &Workers,
        encode: impl Fn(&[u8]) -> Result<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self {
            encode: Arc::new(encode),
            jobs: Ordered::new(workers, Ordered::<Done>::useful_limit(workers)),
            filling: BytesMut::new(),
            spare: Vec::new(),
            emitted: 0,
            submitted: false,
        }
    }

    /// Most bytes held in blocks, plain and encoded, by an encoder on `workers`.
    pub(super) fn memory(workers: &Workers) -> usize {
        let jobs = Ordered::<Done>::useful_limit(workers);
        // Per job its input and its output; one block that is being filled; per thread scratch for the output.
        (2 * jobs + 1 + workers.threads()) * BLOCK
    }

    fn submit(&mut self, block: Bytes, out: &mut dyn Emit) -> Result<()> {
        let encode = Arc::clone(&self.encode);
        self.submitted = true;
        let done = self.jobs.submit(move || {
            let output = encode(&block);
            Done { input: block, output }
        })?;
        if let Some(done) = done {
            self.pass_on(done, out)?;
        }
        while let Some(done) = self.jobs.ready()? {
            self.pass_on(done, out)?;
        }
        Ok(())
    }

    fn pass_on(&mut self, done: Done, out: &mut dyn Emit) -> Result<()> {
        let encoded = done.output?;
        out.boundary(self.emitted)?;
        self.emitted += done.input.len() as u64;
        if let Ok(mut buffer) = done.input.try_into_mut() {
            buffer.clear();
            if buffer.capacity() >= BLOCK && self.spare.is_empty() {
                self.spare.push(buffer);
            }
        }
        out.data(encoded)
    }
}

impl super::Codec for BlockEncoder {
    fn push(&mut self, mut input: Bytes, out: &mut dyn Emit) -> Result<()> {
        while !input.is_empty() {
            if self.filling.is_empty() && input.len() >= BLOCK {
                let block = input.split_to(BLOCK);
                self.submit(block, out)?;
                continue;
            }
            if self.filling.capacity() == 0 {
                self.filling = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(BLOCK));
            }
            let part = input.split_to(input.len().min(BLOCK - self.filling.len()));
            self.filling.extend_from_slice(&part);
            if self.filling.len() == BLOCK {
                let block = std::mem::take(&mut self.filling).freeze();
                self.submit(block, out)?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        // An empty stream still is one block: no bytes at all is not a valid file of either format.
        if !self.filling.is_empty() || !self.submitted {
            let block = std::mem::take(&mut self.filling).freeze();
            self.submit(block, out)?;
        }
        while let Some(done) = self.jobs.wait()? {
            self.pass_on(done, out)?;
        }
        Ok(())
    }
}

/// Decodes whole units on all cores.
pub(super) struct BlockDecoder {
    decode: BlockCode,
    jobs: Ordered<Result<Bytes>>,
}

impl BlockDecoder {
    pub(super) fn new(
        workers: &Workers,
        decode: impl Fn(&[u8]) -> Result<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self {
            decode: Arc::new(decode),
            jobs: Ordered::new(workers, Ordered::<Result<Bytes>>::useful_limit(workers)),
        }
    }

    /// Decodes one unit; passes on what is ready.
    pub(super) fn submit(&mut self, unit: Bytes, out: &mut dyn Emit) -> Result<()> {
        let decode = Arc::clone(&self.decode);
        if let Some(plain) = self.jobs.submit(move || decode(&unit))? {
            pass_plain(plain?, out)?;
        }
        while let Some(plain) = self.jobs.ready()? {
            pass_plain(plain?, out)?;
        }
        Ok(())
    }

    /// Waits for all units submitted and passes them on.
    pub(super) fn drain(&mut self, out: &mut dyn Emit) -> Result<()> {
        while let Some(plain) = self.jobs.wait()? {
            pass_plain(plain?, out)?;
        }
        Ok(())
    }
}

fn pass_plain(plain: Bytes, out: &mut dyn Emit) -> Result<()> {
    if plain.is_empty() { Ok(()) } else { out.data(plain) }
}

/// Finds a plain range by the boundaries the encoder emitted.
pub(super) fn locate(plain: &Range<u64>, frames: &[Frame], encoded_size: Option<u64>) -> Option<Located> {
    let after_first = frames.partition_point(|f| f.plain <= plain.start);
    let first = frames.get(after_first.checked_sub(1)?)?;
    let rest = frames.get(after_first..)?;
    let behind = rest.get(rest.partition_point(|f| f.plain < plain.end));
    let end = behind.map(|f| f.encoded).or(encoded_size)?;
    if end < first.encoded {
        return None;
    }
    Some(Located {
        prefix: 0,
        encoded: first.encoded..end,
        to_end: behind.is_none(),
        plain_start: first.plain,
    })
}
