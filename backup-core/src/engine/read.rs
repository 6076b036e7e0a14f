//! Reading a stored object back: verified block by block, from whichever copy is intact.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::index::BlockIndex;
use super::progress::Watch;
use super::retry::Patience;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::observer::Event;
use crate::sink::Sink;
use crate::source::ByteStream;

/// Verified blocks that may wait for the decoder.
const QUEUE: usize = 2;

/// A stored object of which several sinks hold the same bytes.
#[derive(Clone, Debug)]
pub(crate) struct StoredReader {
    pub(crate) copies: Arc<[Arc<dyn Sink>]>,
    pub(crate) key: Key,
    pub(crate) size: u64,
    pub(crate) index: Arc<BlockIndex>,
    pub(crate) patience: Patience,
    pub(crate) watch: Watch,
    /// The copy that worked last: where the next block is looked for first.
    preferred: Arc<AtomicUsize>,
}

impl StoredReader {
    pub(crate) fn new(
        copies: Arc<[Arc<dyn Sink>]>,
        key: Key,
        size: u64,
        index: Arc<BlockIndex>,
        patience: Patience,
        watch: Watch,
    ) -> Self {
        Self { copies, key, size, index, patience, watch, preferred: Arc::default() }
    }

    /// Sends the verified bytes of `ranges` (ascending, within the object) to `to`, one range after the other. Ends
    /// quietly when the receiver is gone.
    pub(crate) async fn send(&self, ranges: &[Range<u64>], to: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        for range in ranges {
            if !self.send_range(range.clone(), to).await? {
                break;
            }
        }
        Ok(())
    }

    /// Starts sending in a task of its own.
    pub(crate) fn spawn(&self, ranges: Vec<Range<u64>>) -> mpsc::Receiver<Result<Bytes>> {
        let (to, from) = mpsc::channel(QUEUE);
        let reader = self.clone();
        tokio::spawn(async move {
            let work = async {
                if let Err(error) = reader.send(&ranges, &to).await {
                    let _ = to.send(Err(error)).await;
                }
            };
            // A receiver that went away ends the task even while a sink is slow.
            tokio::select! {
                () = work => {}
                () = to.closed() => {}
            }
        });
        from
    }

    async fn send_range(&self, range: Range<u64>, to: &mpsc::Sender<Result<Bytes>>) -> Result<bool> {
        let block_size = self.index.block_size;
        if range.start > range.end || range.end > self.size {
            return Err(
                Error::corrupt("read object", "a range lies outside the object").with("key", &self.key)
            );
        }
        let mut number = range.start / block_size;
        let end = range.end.div_ceil(block_size);
        // An empty object still has to prove that it is empty and there.
        if self.size == 0 {
            self.block_from_any(&mut None, 0, 0).await?;
            return Ok(true);
        }
        let mut open: Option<OpenCopy> = None;
        while number < end {
            let block = self.block_from_any(&mut open, number, end).await?;
            let start = number * block_size;
            let cut = |offset: u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            let piece = block.slice(cut(range.start).min(block.len())..cut(range.end).min(block.len()));
            if to.send(Ok(piece)).await.is_err() {
                return Ok(false);
            }
            number += 1;
        }
        Ok(true)
    }

    /// Block `number`, verified, from the open copy or any other.
    async fn block_from_any(&self, open: &mut Option<OpenCopy>, number: u64, end: u64) -> Result<Bytes> {
        let first = self.preferred.load(Relaxed);
        let mut failures: Vec<Error> = Vec::new();
        for turn in 0..self.copies.len() {
            let copy = (first + turn) % self.copies.len();
            let Some(sink) = self.copies.get(copy) else { continue };
            let mut tries = self.patience.tries(sink.id(), &self.watch);
            loop {
                match self.block_from(open, copy, sink, number, end).await {
                    Ok(block) => {
                        self.preferred.store(copy, Relaxed);
                        return Ok(block);
                    }
                    Err(error) => {
                        *open = None;
                        // With another copy at hand, do not wait for this one.
                        let last_hope = turn + 1 == self.copies.len();
                        let error = if last_hope { error } else { error.retryable(false) };
                        if let Err(error) = tries.again(error).await {
                            self.watch.event(&Event::CopyDamaged {
                                sink: sink.id(),
                                key: &self.key,
                                error: &error,
                            });
                            failures.push(error);
                            break;
                        }
                    }
                }
            }
        }
        if let ([_], Some(only)) = (&*self.copies, failures.last_mut()) {
            let only = std::mem::replace(only, Error::new(ErrorKind::Internal, "read object"));
            return Err(only.with("key", &self.key));
        }
        let mut error = Error::corrupt(
            "read object",
            "no copy holds this block undamaged; restore the rest with a selection, or another backup",
        )
        .with("key", &self.key)
        .with("block", number);
        let last = failures.pop();
        for failure in failures {
            error = error.with("also", failure.chain());
        }
        Err(match last {
            Some(last) => error.caused_by(last),
            None => Error::new(ErrorKind::NotFound, "read object")
                .message("no sink holds a copy of this object")
                .with("key", &self.key),
        })
    }

    async fn block_from(
        &self,
        open: &mut Option<OpenCopy>,
        copy: usize,
        sink: &Arc<dyn Sink>,
        number: u64,
        end: u64,
    ) -> Result<Bytes> {
        let start = number * self.index.block_size;
        let length = self.index.block_size.min(self.size - start);
        if !open.as_ref().is_some_and(|o| o.copy == copy && o.offset == start) {
            let stop = (end * self.index.block_size).min(self.size);
            // A whole object is read without a range: then a copy that is too long is noticed, too.
            let range = (start > 0 || stop < self.size).then_some(start..stop);
            let stream = self.patience.bound(sink.open(&self.key, range)).await?;
            *open = Some(OpenCopy { copy, offset: start, stream, rest: Bytes::new() });
        }
        let Some(open) = open.as_mut() else { return Err(Error::new(ErrorKind::Internal, "read object")) };
        let block = open.take(length, self.patience).await?;
        if start + length == self.size && open.has_more(self.patience).await? {
            return Err(Error::corrupt("read object", "the object is longer than the manifest says"));
        }
        let expected = usize::try_from(number).ok().and_then(|n| self.index.blocks.get(n)).copied();
        let hashed = block.clone();
        let actual = tokio::task::spawn_blocking(move || Digest::of(&hashed))
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "hash block").caused_by(e))?;
        if expected != Some(actual) {
            return Err(
                Error::corrupt("read object", "the bytes differ from what was written").with("block", number)
            );
        }
        Ok(block)
    }
}

/// A copy being read in order.
struct OpenCopy {
    copy: usize,
    /// Where the next byte lies in the object.
    offset: u64,
    stream: ByteStream,
    rest: Bytes,
}

impl OpenCopy {
    async fn take(&mut self, length: u64, patience: Patience) -> Result<Bytes> {
        let length = usize::try_from(length).map_err(|_| {
            Error::new(ErrorKind::LimitExceeded, "read object").message("a block is too large")
        })?;
        let mut block =
            if self.rest.len() >= length { BytesMut::new() } else { BytesMut::with_capacity(length) };
        loop {
            let wanted = length - block.len();
            if block.is_empty() && self.rest.len() >= length {
                self.offset += length as u64;
                return Ok(self.rest.split_to(length));
            }
            let piece = self.rest.split_to(wanted.min(self.rest.len()));
            block.extend_from_slice(&piece);
            if block.len() == length {
                self.offset += length as u64;
                return Ok(block.freeze());
            }
            match patience.bound(async { self.stream.next().await.transpose() }).await? {
                Some(bytes) => self.rest = bytes,
                None => {
                    return Err(Error::corrupt(
                        "read object",
                        "the object is shorter than the manifest says",
                    ));
                }
            }
        }
    }

    async fn has_more(&mut self, patience: Patience) -> Result<bool> {
        while self.rest.is_empty() {
            match patience.bound(async { self.stream.next().await.transpose() }).await? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}
