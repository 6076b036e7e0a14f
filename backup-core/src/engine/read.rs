//! Reading a stored object back: verified block by block, from whichever copy is intact.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::index::{BLOCK, BlockIndex, INDEX_LIMIT};
use super::progress::Watch;
use super::retry::{Patience, Tries};
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

    /// Starts sending the whole object.
    pub(crate) fn whole(&self) -> mpsc::Receiver<Result<Bytes>> {
        self.spawn(std::iter::once(0..self.size).collect())
    }

    async fn send_range(&self, range: Range<u64>, to: &mpsc::Sender<Result<Bytes>>) -> Result<bool> {
        let block_size = self.index.block_size;
        if block_size > INDEX_LIMIT {
            // Whoever wrote the manifest says so; nobody who means well stores such an object without an index.
            return Err(Error::new(ErrorKind::LimitExceeded, "read object")
                .message("an object this large needs a block index, and the manifest names none; do not trust this copy")
                .with("key", &self.key)
                .with("bytes", block_size));
        }
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
        let mut hopeful: Vec<_> = (0..self.copies.len())
            .map(|turn| (first + turn) % self.copies.len())
            .filter_map(|copy| self.copies.get(copy).map(|sink| (copy, sink)))
            .map(|(copy, sink)| (copy, sink, self.patience.tries(sink.id(), &self.watch)))
            .collect();
        // Round by round: with another copy at hand no copy is waited for, but none that may recover is given up
        // before all the others have failed, too.
        while !hopeful.is_empty() {
            let mut failed: Vec<(usize, &Arc<dyn Sink>, Tries<'_>, Error)> = Vec::new();
            for (copy, sink, tries) in hopeful {
                match self.block_from(open, copy, sink, number, end).await {
                    Ok(block) => {
                        self.preferred.store(copy, Relaxed);
                        for (_, sink, _, error) in &failed {
                            self.damaged(sink, error);
                        }
                        return Ok(block);
                    }
                    Err(error) => {
                        *open = None;
                        failed.push((copy, sink, tries, error));
                    }
                }
            }
            let waits = failed.into_iter().map(|(copy, sink, mut tries, error)| async move {
                tries.again(error).await.map(|()| (copy, sink, tries)).map_err(|error| (sink, error))
            });
            hopeful = Vec::new();
            for waited in futures::future::join_all(waits).await {
                match waited {
                    Ok(again) => hopeful.push(again),
                    Err((sink, error)) => {
                        self.damaged(sink, &error);
                        failures.push(error);
                    }
                }
            }
        }
        Err(self.unreadable(failures, number))
    }

    /// The error for a block that no copy gave.
    fn unreadable(&self, mut failures: Vec<Error>, number: u64) -> Error {
        // The most telling first: damage, then whatever else went wrong, then absence.
        failures.sort_by_key(|error| match error.kind() {
            ErrorKind::Corrupt => 0,
            ErrorKind::NotFound => 2,
            _ => 1,
        });
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else {
            return Error::new(ErrorKind::NotFound, "read object")
                .message("no sink holds a copy of this object")
                .with("key", &self.key);
        };
        if self.copies.len() == 1 {
            return first.with("key", &self.key);
        }
        let mut error = Error::new(first.kind(), "read object")
            .message(
                "no copy holds this block undamaged; restore the rest with a selection, or another backup",
            )
            .with("key", &self.key)
            .with("block", number);
        for failure in failures {
            error = error.with("also", failure.chain());
        }
        error.caused_by(first)
    }

    fn damaged(&self, sink: &Arc<dyn Sink>, error: &Error) {
        self.watch.event(&Event::CopyDamaged { sink: sink.id(), key: &self.key, error });
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
        // A declared length beyond a usual block is believed only as the bytes come in.
        let capacity = length.min(usize::try_from(BLOCK).unwrap_or(length));
        let mut block =
            if self.rest.len() >= length { BytesMut::new() } else { BytesMut::with_capacity(capacity) };
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
