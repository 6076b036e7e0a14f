//! Runs a visitor over an RDB on a thread of its own, while the bytes flow on.

use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;

use crate::rdb::{RdbReader, Visitor};

/// Chunks that may wait: with chunks of a quarter MiB, 2 MiB.
const WAITING: usize = 8;

/// Feeds a reader and its visitor. Dropped, it lets the thread end by itself.
pub(crate) struct Feed<V> {
    chunks: Option<Sender<Bytes>>,
    reading: Option<JoinHandle<Result<V>>>,
}

impl<V: Visitor + Send + 'static> Feed<V> {
    pub(crate) fn start(mut reader: RdbReader, mut visitor: V) -> Self {
        let (chunks, mut waiting) = channel::<Bytes>(WAITING);
        let reading = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = waiting.blocking_recv() {
                let used = reader.push(&chunk, &mut visitor)?;
                if used < chunk.len() {
                    return Err(Error::corrupt("read RDB", "bytes follow the end of the RDB"));
                }
            }
            reader.finish()?;
            Ok(visitor)
        });
        Self { chunks: Some(chunks), reading: Some(reading) }
    }

    /// Passes bytes on; waits while the reader is behind. Fails as soon as it is known that they are damaged.
    pub(crate) async fn push(&mut self, chunk: Bytes) -> Result<()> {
        let sent = match &self.chunks {
            Some(chunks) => chunks.send(chunk).await.is_ok(),
            None => false,
        };
        // The receiver is gone only when reading failed.
        if sent { Ok(()) } else { self.finish().await.map(|_| ()) }
    }

    /// The bytes are over. The visitor, if they were a whole and sound RDB.
    pub(crate) async fn finish(&mut self) -> Result<V> {
        self.chunks = None;
        match self.reading.take() {
            Some(reading) => reading.await.map_err(|e| {
                Error::new(ErrorKind::Internal, "read RDB").message("the reading thread ended").caused_by(e)
            })?,
            None => Err(Error::new(ErrorKind::Internal, "read RDB").message("the RDB was already over")),
        }
    }
}

/// A place for a result that one task leaves and another takes.
#[derive(Debug)]
pub(crate) struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Slot<T> {
    pub(crate) fn empty() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    pub(crate) fn put(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
