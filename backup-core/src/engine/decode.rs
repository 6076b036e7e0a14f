//! From verified stored blocks back to plain bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::encode::Scope;
use super::progress::Watch;
use super::read::StoredReader;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::reader::ArtifactBytes;
use crate::source::ByteStream;
use crate::transform::{Chain, ChainRange, Emit};

/// Plain pieces that may wait for the target.
const QUEUE: usize = 4;
/// Largest plain piece handed on, in bytes.
const PIECE: usize = 256 * 1024;

/// The plain side of a stored object.
#[derive(Clone, Debug)]
pub(crate) struct PlainReader {
    pub(crate) stored: StoredReader,
    pub(crate) chain: Arc<Chain>,
    pub(crate) scope: Scope,
    pub(crate) plain_size: u64,
    /// SHA-256 of all plain bytes, checked when everything is read.
    pub(crate) plain_sha256: Option<Digest>,
}

impl PlainReader {
    /// The plain bytes in `range`, or all of them. Must be called within a tokio runtime.
    pub(crate) fn stream(&self, range: Option<Range<u64>>) -> ByteStream {
        let (to, from) = mpsc::channel(QUEUE);
        let part = range
            .filter(|range| *range != (0..self.plain_size))
            .map(|range| self.chain.locate(range, &self.stored.index.frames, self.stored.size));
        let mut wanted = Vec::new();
        match &part {
            None => wanted.push(0..self.stored.size),
            Some(part) => {
                if part.prefix > 0 {
                    wanted.push(0..part.prefix);
                }
                wanted.push(part.stored.clone());
            }
        }
        let mut blocks = self.stored.spawn(wanted);
        let reader = self.clone();
        tokio::spawn(async move {
            // No thread waits for a sink that is slow to begin.
            let first = tokio::select! {
                first = blocks.recv() => first,
                () = to.closed() => return,
            };
            tokio::task::spawn_blocking(move || {
                if let Err(error) = reader.decode(part.as_ref(), first, blocks, &to) {
                    // A receiver that is gone does not want the error either.
                    let _ = to.blocking_send(Err(error));
                }
            });
        });
        futures::stream::unfold(from, |mut from| async move { from.recv().await.map(|item| (item, from)) })
            .boxed()
    }

    fn decode(
        &self,
        part: Option<&ChainRange>,
        first: Option<Result<Bytes>>,
        mut blocks: mpsc::Receiver<Result<Bytes>>,
        to: &mpsc::Sender<Result<Bytes>>,
    ) -> Result<()> {
        let expected = self.plain_sha256.filter(|_| part.is_none());
        let mut out = Pieces { hasher: expected.map(|_| Hasher::new()), to, watch: &self.stored.watch };
        let cx = self.scope.context();
        let mut decoder = match part {
            None => self.chain.decoder(&cx, Some(self.plain_size))?,
            Some(part) => self.chain.range_decoder(&cx, part)?,
        };
        let mut next = first;
        while let Some(block) = next {
            decoder.push(block?, &mut out)?;
            next = blocks.blocking_recv();
        }
        decoder.finish(&mut out)?;
        if out.hasher.map(Hasher::finish) != expected {
            return Err(Error::corrupt("decode artifact", "the plain bytes differ from what was backed up")
                .with("artifact", &self.scope.name));
        }
        Ok(())
    }
}

impl ArtifactBytes for PlainReader {
    fn open(&self, range: Option<Range<u64>>) -> BoxFuture<'static, Result<ByteStream>> {
        let stream = self.stream(range);
        Box::pin(async move { Ok(stream) })
    }
}

/// Sends plain bytes on, in pieces, and hashes them.
struct Pieces<'a> {
    hasher: Option<Hasher>,
    to: &'a mpsc::Sender<Result<Bytes>>,
    watch: &'a Watch,
}

impl Emit for Pieces<'_> {
    fn data(&mut self, mut bytes: Bytes) -> Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.watch.plain(bytes.len());
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.to.blocking_send(Ok(piece)).map_err(|_| Error::cancelled("decode artifact"))?;
        }
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}
