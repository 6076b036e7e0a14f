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
use crate::transform::{Chain, Emit};

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
        let (blocks, job) = match self.prepare(range) {
            Ok(prepared) => prepared,
            Err(error) => return futures::stream::iter([Err(error)]).boxed(),
        };
        let blocks = self.stored.spawn(blocks);
        let reader = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = reader.decode(&job, blocks, &to) {
                // A receiver that is gone does not want the error either.
                let _ = to.blocking_send(Err(error));
            }
        });
        futures::stream::unfold(from, |mut from| async move { from.recv().await.map(|item| (item, from)) }).boxed()
    }

    /// Which stored bytes are needed, and what to do with what they decode to.
    fn prepare(&self, range: Option<Range<u64>>) -> Result<(Vec<Range<u64>>, Job)> {
        let whole = 0..self.plain_size;
        let range = range.unwrap_or_else(|| whole.clone());
        let from_start = || (vec![0..self.stored.size], Job { range: range.clone(), at: None });
        if range == whole || self.chain.is_identity() {
            if self.chain.is_identity() && range != whole {
                let job = Job { range: 0..range.end - range.start, at: Some(ChainStart::Identity) };
                return Ok((vec![range], job));
            }
            return Ok(from_start());
        }
        let located =
            self.chain.locate(range.clone(), &self.stored.index.frames, self.stored.size)?;
        Ok(match located {
            None => from_start(),
            Some(located) => {
                let mut blocks = Vec::new();
                if located.prefix() > 0 && located.stored().start > 0 {
                    blocks.push(0..located.prefix());
                }
                blocks.push(located.stored());
                let start = located.plain_start();
                let job = Job {
                    range: range.start - start..range.end - start,
                    at: Some(ChainStart::Located(located)),
                };
                (blocks, job)
            }
        })
    }

    fn decode(&self, job: &Job, mut blocks: mpsc::Receiver<Result<Bytes>>, to: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let complete = job.at.is_none();
        let hash = complete && job.range == (0..self.plain_size);
        let mut out = Window {
            range: job.range.clone(),
            offset: 0,
            limit: if complete { self.plain_size } else { u64::MAX },
            hasher: (hash && self.plain_sha256.is_some()).then(Hasher::new),
            to,
            watch: &self.stored.watch,
        };
        let cx = self.scope.context();
        let mut decoder = match &job.at {
            None => self.chain.decoder(&cx, None)?,
            Some(ChainStart::Located(located)) => self.chain.decoder(&cx, Some(located))?,
            Some(ChainStart::Identity) => {
                while let Some(block) = blocks.blocking_recv() {
                    out.data(block?)?;
                }
                return out.finish(None);
            }
        };
        while let Some(block) = blocks.blocking_recv() {
            decoder.push(block?, &mut out)?;
            if !complete && out.offset >= out.range.end {
                // Everything asked for was verified and decoded; the rest of the unit is of no interest.
                return Ok(());
            }
        }
        decoder.finish(&mut out)?;
        if complete && out.offset != self.plain_size {
            return Err(Error::corrupt("decode artifact", "the plain bytes are fewer than the manifest says")
                .with("artifact", &self.scope.name));
        }
        out.finish(self.plain_sha256)
    }
}

impl ArtifactBytes for PlainReader {
    fn open(&self, range: Option<Range<u64>>) -> BoxFuture<'static, Result<ByteStream>> {
        let stream = self.stream(range);
        Box::pin(async move { Ok(stream) })
    }
}

/// What to decode.
struct Job {
    /// The part of the decoder's output to hand on.
    range: Range<u64>,
    /// Where the decoder begins; `None` is the beginning.
    at: Option<ChainStart>,
}

enum ChainStart {
    Identity,
    Located(crate::transform::ChainLocated),
}

/// Cuts the wanted range out of a decoder's output.
struct Window<'a> {
    range: Range<u64>,
    offset: u64,
    limit: u64,
    hasher: Option<Hasher>,
    to: &'a mpsc::Sender<Result<Bytes>>,
    watch: &'a Watch,
}

impl Window<'_> {
    fn finish(self, expected: Option<Digest>) -> Result<()> {
        if let (Some(hasher), Some(expected)) = (self.hasher, expected) {
            if hasher.finish() != expected {
                return Err(Error::corrupt("decode artifact", "the plain bytes differ from what was backed up"));
            }
        }
        if self.offset < self.range.end {
            return Err(Error::corrupt("decode artifact", "the plain bytes end too early"));
        }
        Ok(())
    }
}

impl Emit for Window<'_> {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        let start = self.offset;
        self.offset += bytes.len() as u64;
        if self.offset > self.limit {
            return Err(Error::corrupt("decode artifact", "the plain bytes are more than the manifest says"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        let cut = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
        let mut wanted = bytes.slice(cut(self.range.start)..cut(self.range.end).max(cut(self.range.start)));
        self.watch.plain(wanted.len());
        while !wanted.is_empty() {
            let piece = wanted.split_to(wanted.len().min(PIECE));
            self.to.blocking_send(Ok(piece)).map_err(|_| Error::cancelled("decode artifact"))?;
        }
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}
