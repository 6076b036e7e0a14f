//! The archives on their way out: chunks, offsets, and where one archive ends and the next begins.

use std::os::fd::OwnedFd;
use std::pin::pin;

use backup_core::{ArtifactFormat, ArtifactMeta, Bytes, CancellationToken, Error, ErrorKind, Result};
use futures::future::{Either, select};
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::tar::write::END;

/// Bytes of a chunk.
const CHUNK: usize = 512 * 1024;
/// Chunks that may wait for the reader of a stream.
const QUEUE: usize = 2;
/// Archive names: `files-00001`.
const PREFIX: &str = "files";

/// An archive, announced to the snapshot: what it is, and its bytes.
pub(crate) type Announced = (ArtifactMeta, mpsc::Receiver<Result<Bytes>>);

/// Writes archives, one after the other. Belongs to a thread that may block.
#[derive(Debug)]
pub(crate) struct Output {
    artifacts: mpsc::Sender<Announced>,
    /// The open archive.
    open: Option<Open>,
    number: u32,
    /// Plain bytes after which the next archive is begun.
    bound: u64,
    /// Whether later runs may take over its archives.
    independent: bool,
    handle: Handle,
    cancelled: CancellationToken,
}

#[derive(Debug)]
struct Open {
    name: String,
    chunks: mpsc::Sender<Result<Bytes>>,
    buffer: Vec<u8>,
    /// Bytes written so far, those in the buffer included.
    offset: u64,
}

impl Output {
    pub(crate) fn new(
        artifacts: mpsc::Sender<Announced>,
        bound: u64,
        handle: Handle,
        cancelled: CancellationToken,
    ) -> Self {
        Self { artifacts, open: None, number: 0, bound, independent: false, handle, cancelled }
    }

    /// Declares that later runs may take over its archives.
    pub(crate) fn independent(mut self) -> Self {
        self.independent = true;
        self
    }

    /// Leaves the names of these archives to them.
    pub(crate) fn spare<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let numbers =
            names.into_iter().filter_map(|name| name.strip_prefix(PREFIX)?.strip_prefix('-')?.parse().ok());
        self.number = numbers.fold(self.number, u32::max);
    }

    /// The runtime, and what stops the run.
    pub(crate) fn context(&self) -> (Handle, CancellationToken) {
        (self.handle.clone(), self.cancelled.clone())
    }

    /// Whether the open archive is to be ended before a member of `length` bytes.
    pub(crate) fn is_full(&self, length: u64) -> bool {
        let end = END.len() as u64;
        let full = |open: &Open| {
            open.offset > 0 && open.offset.saturating_add(length).saturating_add(end) > self.bound
        };
        self.open.as_ref().is_some_and(full)
    }

    /// The name of the open archive.
    pub(crate) fn name(&self) -> Option<&str> {
        self.open.as_ref().map(|open| open.name.as_str())
    }

    /// Yields an archive that is taken over: nobody reads its stream.
    pub(crate) fn earlier(&mut self, meta: ArtifactMeta) -> Result<()> {
        let (_, stream) = mpsc::channel(1);
        let artifacts = self.artifacts.clone();
        if self.blocking(async move { artifacts.send((meta, stream)).await.is_ok() })? {
            Ok(())
        } else {
            Err(stopped())
        }
    }

    /// Begins a member, in the open archive or a new one. Returns the archive's name and the member's offset.
    pub(crate) fn begin_member(&mut self) -> Result<(String, u64)> {
        let open = self.archive()?;
        Ok((open.name.clone(), open.offset))
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let open = self.archive()?;
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - open.buffer.len()));
            open.buffer.extend_from_slice(now);
            open.offset += now.len() as u64;
            bytes = later;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Appends `count` zero bytes.
    pub(crate) fn write_zeros(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let open = self.archive()?;
            let room = CHUNK - open.buffer.len();
            let now = usize::try_from(count).unwrap_or(room).min(room);
            open.buffer.resize(open.buffer.len() + now, 0);
            open.offset += now as u64;
            count -= now as u64;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Appends up to `most` bytes of a file from `at`, straight into the chunk, and shows them to `see`. Returns how
    /// many there were: zero at the file's end. The outer error is the run's, the inner one the file's.
    pub(crate) fn write_from(
        &mut self,
        file: &OwnedFd,
        at: u64,
        most: u64,
        see: impl FnOnce(&[u8]),
    ) -> Result<Result<u64, Errno>> {
        let open = self.archive()?;
        let before = open.buffer.len();
        loop {
            match pread(file, spare_capacity(&mut open.buffer), at) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Ok(Err(errno)),
            }
        }
        // The chunk may have more room than the file was announced with.
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        open.buffer.truncate(before.saturating_add(most));
        let fresh = open.buffer.get(before..).unwrap_or_default();
        let count = fresh.len() as u64;
        see(fresh);
        open.offset += count;
        self.flush_if_full()?;
        Ok(Ok(count))
    }

    /// An error if the run was stopped.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.is_cancelled() { Err(stopped()) } else { Ok(()) }
    }

    /// Ends the last archive. There is always one, even if it is empty.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if self.number == 0 {
            self.archive()?;
        }
        self.end_archive()
    }

    /// Ends the open stream with an error, if one is open; gives the error back otherwise.
    pub(crate) fn fail(&mut self, error: Error) -> Option<Error> {
        let Some(open) = self.open.take() else { return Some(error) };
        let chunks = open.chunks;
        drop(self.blocking(async move { chunks.send(Err(error)).await.is_ok() }));
        None
    }

    fn archive(&mut self) -> Result<&mut Open> {
        if self.open.is_none() {
            self.number += 1;
            let name = format!("{PREFIX}-{:05}", self.number);
            let (chunks, stream) = mpsc::channel(QUEUE);
            let mut meta = ArtifactMeta::new(name.clone(), ArtifactFormat::TAR);
            meta.independent = self.independent;
            let artifacts = self.artifacts.clone();
            if !self.blocking(async move { artifacts.send((meta, stream)).await.is_ok() })? {
                return Err(stopped());
            }
            self.open = Some(Open { name, chunks, buffer: Vec::with_capacity(CHUNK), offset: 0 });
        }
        self.open.as_mut().ok_or_else(|| Error::new(ErrorKind::Internal, "write archive"))
    }

    /// Ends the open archive, if there is one.
    pub(crate) fn end_archive(&mut self) -> Result<()> {
        if self.open.is_none() {
            return Ok(());
        }
        self.write(&END)?;
        self.flush()?;
        self.open = None;
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.buffer.len() >= CHUNK) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut open.buffer, Vec::with_capacity(CHUNK)));
        let chunks = open.chunks.clone();
        if self.blocking(async move { chunks.send(Ok(chunk)).await.is_ok() })? {
            Ok(())
        } else {
            Err(stopped())
        }
    }

    /// Waits for `task`, or for the run to be stopped.
    fn blocking<T>(&self, task: impl Future<Output = T>) -> Result<T> {
        let task = pin!(task);
        let cancelled = pin!(self.cancelled.cancelled());
        match self.handle.block_on(select(cancelled, task)) {
            Either::Left(_) => Err(stopped()),
            Either::Right((value, _)) => Ok(value),
        }
    }
}

/// Nobody wants the archives any more.
pub(crate) fn stopped() -> Error {
    Error::cancelled("read directory tree")
}
