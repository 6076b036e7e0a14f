//! The codec's side of the pipeline: plain pieces in, stored blocks out, everything hashed on the way.

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::index::{BLOCK, BlockIndex};
use super::progress::Watch;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::keys::BackupKey;
use crate::name::{BackupId, SetName};
use crate::transform::{Chain, CodecContext, Emit};
use crate::workers::{Ordered, Workers};

/// Stored blocks that may wait for the sinks.
pub(crate) const QUEUE: usize = 2;

/// Whose bytes are encoded or decoded: what a [`CodecContext`] borrows, owned.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) set: SetName,
    pub(crate) id: BackupId,
    pub(crate) name: String,
    pub(crate) key: Option<BackupKey>,
    pub(crate) workers: Workers,
}

impl Scope {
    pub(crate) fn context(&self) -> CodecContext<'_> {
        CodecContext {
            set: &self.set,
            id: self.id,
            artifact: &self.name,
            key: self.key.as_ref(),
            workers: &self.workers,
        }
    }
}

/// What is known of a stream once it was encoded to its end.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) plain_size: u64,
    pub(crate) plain_sha256: Digest,
    pub(crate) stored_size: u64,
    pub(crate) stored_sha256: Digest,
    pub(crate) index: BlockIndex,
}

/// Encodes everything from `input`. To be run on a thread that may block.
pub(crate) fn encode(
    chain: &Chain,
    scope: &Scope,
    mut input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Bytes>,
    watch: &Watch,
) -> Result<Encoded> {
    let mut encoder = chain.encoder(&scope.context())?;
    let mut blocks = Blocks::new(&scope.workers, output, watch);
    // Without a transform the stored bytes are the plain bytes: one hash serves both.
    let mut plain = (!chain.is_empty()).then(Hasher::new);
    let mut plain_size = 0;
    while let Some(piece) = input.blocking_recv() {
        plain_size += piece.len() as u64;
        if let Some(hasher) = &mut plain {
            hasher.update(&piece);
        }
        encoder.push(piece, &mut blocks)?;
    }
    let frames = encoder.finish(&mut blocks)?;
    let (stored_size, stored_sha256, digests) = blocks.finish()?;
    Ok(Encoded {
        plain_size,
        plain_sha256: plain.map_or(stored_sha256, Hasher::finish),
        stored_size,
        stored_sha256,
        index: BlockIndex::new(digests, frames),
    })
}

/// Cuts the encoder's output into blocks, hashes them and sends them on.
struct Blocks<'a> {
    gathered: BytesMut,
    whole: Hasher,
    size: u64,
    hashing: Ordered<Digest>,
    digests: Vec<Digest>,
    output: mpsc::Sender<Bytes>,
    watch: &'a Watch,
}

impl<'a> Blocks<'a> {
    fn new(workers: &Workers, output: mpsc::Sender<Bytes>, watch: &'a Watch) -> Self {
        Self {
            gathered: BytesMut::new(),
            whole: Hasher::new(),
            size: 0,
            hashing: Ordered::new(workers, Ordered::<Digest>::useful_limit(workers)),
            digests: Vec::new(),
            output,
            watch,
        }
    }

    fn block(&mut self, block: Bytes) -> Result<()> {
        let shared = block.clone();
        self.digests.extend(self.hashing.submit(move || Digest::of(&shared))?);
        self.whole.update(&block);
        self.size += block.len() as u64;
        self.watch.stored(block.len());
        // The receiver is gone when the run was given up; the reason is reported there.
        self.output.blocking_send(block).map_err(|_| Error::cancelled("encode artifact"))
    }

    fn finish(mut self) -> Result<(u64, Digest, Vec<Digest>)> {
        if !self.gathered.is_empty() {
            let last = self.gathered.split().freeze();
            self.block(last)?;
        }
        while let Some(digest) = self.hashing.wait()? {
            self.digests.push(digest);
        }
        Ok((self.size, self.whole.finish(), self.digests))
    }
}

impl Emit for Blocks<'_> {
    fn data(&mut self, mut bytes: Bytes) -> Result<()> {
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        while !bytes.is_empty() {
            if self.gathered.is_empty() && bytes.len() >= block {
                let whole = bytes.split_to(block);
                self.block(whole)?;
                continue;
            }
            if self.gathered.is_empty() {
                self.gathered.reserve(block);
            }
            let room = block - self.gathered.len();
            self.gathered.extend_from_slice(&bytes.split_to(bytes.len().min(room)));
            if self.gathered.len() == block {
                let full = std::mem::take(&mut self.gathered).freeze();
                self.block(full)?;
            }
        }
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}
