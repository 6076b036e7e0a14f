//! The writer: one put for what is small, parts for what is not.

mod finish;
mod settle;
mod single;
mod upload;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use backup_core::{
    CREATE_NEW_LIMIT, Error, ErrorKind, Hasher, Key, ObjectInfo, PutMode, PutOptions, Result, SinkWriter,
};
use bytes::Bytes;
use object_store::PutMultipartOptions;
use object_store::path::Path;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::error::Tried;
use crate::parts::{MAX_PARTS, PartPlan};
use crate::shared::Shared;
use crate::sink::already_exists;
use upload::Upload;

/// First allocation of an object of unknown size, in bytes; the next is a whole part.
const SMALL: usize = 64 * 1024;

/// An object being written. Holds at most [`upload_memory`](crate::SinkBuilder::upload_memory): the part being
/// filled, parts that wait, and parts under way (kept until the store has them, to send them again).
pub(crate) struct Writer {
    shared: Arc<Shared>,
    key: Key,
    path: Path,
    options: PutOptions,
    plan: PartPlan,
    /// Says in the object's metadata that it is ours.
    token: String,
    filling: Vec<u8>,
    /// Full parts that wait for the decision between one put and a multipart upload.
    waiting: Vec<Bytes>,
    /// Parts given to `waiting` or the upload so far.
    cut: u64,
    total: u64,
    /// What was written, where only the bytes themselves tell whose an object is.
    written: Option<Hasher>,
    upload: Option<Upload>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Inside a write: seen from another call only when that write was dropped half-way.
    Busy,
    Broken,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("sink", &self.shared.id)
            .field("key", &self.key)
            .field("written", &self.total)
            .finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn begin(shared: Arc<Shared>, key: &Key, options: PutOptions) -> Result<Self> {
        let plan = PartPlan::new(
            shared.part_sizes,
            shared.options.part_size,
            shared.options.upload_memory as u64,
            options.size_hint,
        )?;
        Ok(Self {
            path: shared.place.path(key)?,
            key: key.clone(),
            token: token()?,
            options,
            plan,
            filling: Vec::new(),
            waiting: Vec::new(),
            cut: 0,
            total: 0,
            written: (!shared.options.attributes).then(Hasher::new),
            upload: None,
            state: State::Good,
            shared,
        })
    }

    fn part_size(&self) -> Result<usize> {
        let size = self.plan.size(self.cut).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| {
            Error::new(ErrorKind::LimitExceeded, "write object")
                .message("the object outgrew the parts it may have; give a size hint, or raise `upload_memory` or `part_size`")
                .with("parts", MAX_PARTS)
                .with("written", self.total)
                .with("key", &self.key)
        })
    }

    fn waiting_bytes(&self) -> u64 {
        self.waiting.iter().map(|part| part.len() as u64).sum()
    }

    async fn take(&mut self, mut chunk: Bytes) -> Result<()> {
        while !chunk.is_empty() {
            let part = self.part_size()?;
            if self.filling.is_empty() {
                self.make_room(part).await?;
            }
            self.grow(part, chunk.len());
            let n = chunk.len().min(part - self.filling.len());
            let piece = chunk.split_to(n);
            if let Some(written) = &mut self.written {
                written.update(&piece);
            }
            self.filling.extend_from_slice(&piece);
            self.total += n as u64;
            if self.filling.len() == part {
                self.cut_part();
            }
        }
        Ok(())
    }

    /// Waits until a further part fits into the writer's memory; begins the multipart upload when what waits is
    /// too much for one put.
    async fn make_room(&mut self, part: usize) -> Result<()> {
        let memory = self.shared.options.upload_memory as u64;
        let room = memory.saturating_sub(part as u64);
        if self.upload.is_none() {
            // Only a put can be conditional: a create-new waits until it is certain to be larger than promised.
            let small = match self.options.mode {
                PutMode::CreateNew => CREATE_NEW_LIMIT,
                PutMode::Overwrite => 1,
            };
            if self.waiting_bytes() >= small {
                self.start_upload().await?;
            }
        }
        if let Some(upload) = &mut self.upload {
            upload.wait_below(room).await?;
        }
        Ok(())
    }

    fn grow(&mut self, part: usize, incoming: usize) {
        let needed = self.filling.len() + incoming.min(part - self.filling.len());
        if needed > self.filling.capacity() {
            let hint = self.options.size_hint.and_then(|hint| usize::try_from(hint).ok()).unwrap_or(0);
            let first = hint.clamp(needed, part.max(needed));
            let target = if self.filling.capacity() == 0 && needed <= SMALL && self.cut == 0 {
                first.max(SMALL).min(part)
            } else if self.filling.capacity() == 0 && self.cut == 0 && hint > 0 {
                first
            } else {
                part
            };
            self.filling.reserve_exact(target - self.filling.len());
        }
    }

    fn cut_part(&mut self) {
        let bytes = Bytes::from(std::mem::take(&mut self.filling));
        self.cut += 1;
        match &mut self.upload {
            Some(upload) => upload.push(bytes),
            None => self.waiting.push(bytes),
        }
    }

    async fn start_upload(&mut self) -> Result<()> {
        if self.options.mode == PutMode::CreateNew {
            self.refuse_existing().await?;
        }
        let options = PutMultipartOptions {
            tags: self.shared.tags(),
            attributes: self.shared.attributes(&self.options, &self.token),
            extensions: self.shared.lock(self.options.retain_until).await?,
        };
        let mut upload =
            Upload::start(Arc::clone(&self.shared), &self.key, self.path.clone(), options).await?;
        for part in self.waiting.drain(..) {
            upload.push(part);
        }
        self.upload = Some(upload);
        Ok(())
    }

    /// The best a multipart upload can do about create-new; names of large objects are unique by design.
    async fn refuse_existing(&self) -> Result<()> {
        match self.shared.find(&self.path).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Ok(_) => Err(already_exists("write object", &self.shared, &self.key)),
            Err(e) => Err(self.shared.error("write object", Tried::Enough, &self.key, &e)),
        }
    }

    fn enter(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Busy) {
            State::Good => Ok(()),
            State::Busy | State::Broken => {
                self.state = State::Broken;
                Err(Error::new(ErrorKind::Io, "write object")
                    .message("an earlier write of this object failed or was cut short; begin it anew")
                    .with("key", &self.key))
            }
        }
    }
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.enter()?;
        let taken = self.take(chunk).await;
        self.state = if taken.is_ok() { State::Good } else { State::Broken };
        // Part of the chunk may be in the buffer: it must not be offered again.
        taken.map_err(|e| e.retryable(false))
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectInfo> {
        self.enter()?;
        let info = ObjectInfo::new(self.key.clone(), self.total);
        if self.upload.is_none() && self.waiting.len() > 1 && self.options.mode == PutMode::Overwrite {
            self.start_upload().await?;
        }
        if self.upload.is_none() {
            self.put_whole().await?;
            return Ok(info);
        }
        if !self.filling.is_empty() {
            self.cut_part();
        }
        self.complete_upload().await?;
        Ok(info)
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.state = State::Broken;
        match self.upload.take() {
            Some(upload) => upload.abort().await,
            None => Ok(()),
        }
    }
}

/// A name no other writer has: 128 random bits and a count, in hexadecimal digits.
pub(crate) fn token() -> Result<String> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 16];
    SystemRandom::new().fill(&mut random).map_err(|_| {
        Error::new(ErrorKind::Internal, "write object").message("the system's random generator failed")
    })?;
    Ok(format!("{:032x}{:x}", u128::from_be_bytes(random), COUNT.fetch_add(1, Ordering::Relaxed)))
}
