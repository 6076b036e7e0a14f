//! [`LocalWriter`]: the asynchronous face of a staged file.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::{Bytes, Error, ErrorKind, ObjectInfo, Result, SinkWriter};

use super::blocking;
use super::staging::Staged;

/// Small chunks are gathered up to this many bytes, so that a trip to a blocking thread (about 10 µs) is paid
/// per buffer and not per chunk. Larger chunks are written from where they are.
pub(super) const BUFFER: usize = 256 * 1024;

/// Writes a staged file on blocking threads, one operation at a time.
pub(super) struct LocalWriter {
    /// `None` after a failed write, or one whose future was dropped: the file is gone or about to be.
    staged: Option<Staged>,
    buffer: Vec<u8>,
}

impl LocalWriter {
    pub(super) fn new(staged: Staged) -> Self {
        Self { staged: Some(staged), buffer: Vec::new() }
    }

    /// Writes the buffer, then `chunk`. On failure the staged file is dropped, and so removed.
    async fn flush(&mut self, chunk: Bytes) -> Result<()> {
        let mut staged = self.staged.take().ok_or_else(given_up)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let (staged, buffer) = blocking(move || {
            if !buffer.is_empty() {
                staged.write(&buffer)?;
                buffer.clear();
            }
            if !chunk.is_empty() {
                staged.write(&chunk)?;
            }
            Ok((staged, buffer))
        })
        .await?;
        self.staged = Some(staged);
        self.buffer = buffer;
        Ok(())
    }
}

fn given_up() -> Error {
    Error::new(ErrorKind::Cancelled, "put object")
        .message("an earlier write of this object failed or was given up; start the object again")
}

impl fmt::Debug for LocalWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.staged {
            Some(staged) => write!(f, "LocalWriter({}, {} bytes)", staged.key(), staged.size()),
            None => f.write_str("LocalWriter(given up)"),
        }
    }
}

#[backup_core::async_trait]
impl SinkWriter for LocalWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        if self.staged.is_none() {
            return Err(given_up());
        }
        if self.buffer.len() + chunk.len() <= BUFFER && chunk.len() < BUFFER {
            self.buffer.extend_from_slice(&chunk);
            return Ok(());
        }
        if chunk.len() >= BUFFER / 2 {
            return self.flush(chunk).await;
        }
        self.flush(Bytes::new()).await?;
        self.buffer.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectInfo> {
        let mut staged = self.staged.take().ok_or_else(given_up)?;
        let buffer = std::mem::take(&mut self.buffer);
        // A caller who stops waiting during the sync (which may take long) has given the object up; the thread
        // notices before it gives the name.
        let given_up = GivenUp(Arc::default());
        let flag = Arc::clone(&given_up.0);
        let done = blocking(move || {
            staged.write(&buffer)?;
            staged.publish(&flag)
        })
        .await;
        drop(given_up);
        done
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        let staged = self.staged.take();
        // Removing a large file takes milliseconds.
        blocking(move || {
            drop(staged);
            Ok(())
        })
        .await
    }
}

/// Sets its flag when dropped.
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
