//! Where backups are kept: [`Sink`].

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::SinkId;
use crate::source::{ByteStream, Warning};

/// Largest object for which [`PutMode::CreateNew`] is promised, in bytes.
pub const CREATE_NEW_LIMIT: u64 = 16 * 1024 * 1024;

/// A place that keeps objects by key.
///
/// # Contract
///
/// * An object is invisible to `open`, `head` and `list` until [`SinkWriter::finish`] returned `Ok`; then it is
///   whole and durable. Dropping or aborting a writer leaves nothing visible.
/// * [`PutMode::CreateNew`] has exactly one winner, across processes; the others get
///   [`ErrorKind::AlreadyExists`] from `create` or `finish`, and the object is the winner's.
/// * `open` of a range that begins beyond the end, or of a missing object, is an error; a range that ends beyond
///   the end is cut.
/// * `list` yields every object strictly below the prefix by whole segments (`a/b` lists `a/b/c`, never `a/bc`),
///   the root lists everything; in any order. Keys it cannot parse are skipped: foreign files may lie around.
/// * A list that ends without an error is complete: it has every object that was there, whole, from its beginning to its
///   end. **A silently short list is forbidden.** What cannot be read, a page that is lost, a token that leads
///   nowhere, is an `Err`, the last item: prune, sweep and replicate take what is not listed for absent.
/// * `delete` of an absent object is `Ok`. Of one that the store keeps until a time it is
///   [`ErrorKind::PermissionDenied`], with that time in the context as `retain_until` (RFC 3339).
/// * Errors name a full ([`ErrorKind::StorageFull`]) and a read-only ([`ErrorKind::ReadOnly`]) place, and
///   tell by [`Error::is_retryable`] whether the same call may succeed when repeated.
/// * `Debug`, errors and the id show no secret.
#[async_trait]
pub trait Sink: Debug + Send + Sync {
    /// The name of this sink in reports and options. Unique in a repository.
    fn id(&self) -> &SinkId;

    /// Begins an object.
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>>;

    /// Reads an object, or the bytes of it in `range`.
    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream>;

    /// What is known of an object.
    async fn head(&self, key: &Key) -> Result<ObjectInfo>;

    /// The objects below `prefix`: all of them, or an error as the last item.
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>>;

    /// Removes an object; absent is `Ok`.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Most bytes one open writer holds at a time. The engine counts it against the run's byte budget.
    fn writer_memory(&self) -> usize {
        256 * 1024
    }

    /// Names what would take this sink with it when it is lost: a file system, a bucket. Two sinks of one repository that
    /// name the same are warned of. `None`: not known.
    fn failure_domain(&self) -> Option<String> {
        None
    }

    /// Tries out what the sink must be able to do (create-new, list, range reads) and reports what is denied
    /// or unwise. The default does nothing.
    async fn probe(&self) -> Result<Vec<Warning>> {
        Ok(Vec::new())
    }

    /// Free and total space, where the place has such a thing.
    async fn space(&self) -> Result<Option<Space>> {
        Ok(None)
    }

    /// Removes what unfinished uploads older than `older_than` left behind, and returns how many.
    async fn sweep(&self, older_than: Duration) -> Result<u64> {
        let _ = older_than;
        Ok(0)
    }

    /// Asks the store to make an archived object readable. `Ok` means asked, not done.
    async fn thaw(&self, key: &Key) -> Result<()> {
        let _ = key;
        Ok(())
    }

    /// Moves an object to another storage class of the store, in the store's own spelling, and keeps its bytes, tags
    /// and lock. `Ok(false)`: it lies there already.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where there are no classes, which is the default.
    async fn change_class(&self, key: &Key, class: &str) -> Result<bool> {
        let _ = class;
        Err(Error::new(ErrorKind::Unsupported, "change storage class")
            .message("this sink has no storage classes")
            .with("key", key))
    }

    /// Where an object lies in its store, for [`copy_from`](Self::copy_from) of another sink. Does not look whether
    /// it exists. `None`, the default: the store copies nothing by itself.
    fn address(&self, key: &Key) -> Option<StoreAddress> {
        let _ = key;
        None
    }

    /// Has the store copy `size` bytes from `from` to `to`, without moving them through here; what was at `to` is
    /// replaced. `Ok(None)`, the default: it cannot (another store, a create-new); copy it yourself.
    ///
    /// A copy is no proof: the caller compares [`StoreCopy::sha256`], or reads back.
    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        let _ = (from, size, to, options);
        Ok(None)
    }
}

/// A shared sink is a sink: for those that are chosen at run time.
#[async_trait]
impl<S: Sink + ?Sized> Sink for std::sync::Arc<S> {
    fn id(&self) -> &SinkId {
        (**self).id()
    }
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        (**self).create(key, options).await
    }
    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        (**self).open(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        (**self).head(key).await
    }
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        (**self).list(prefix)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        (**self).delete(key).await
    }
    fn writer_memory(&self) -> usize {
        (**self).writer_memory()
    }
    fn failure_domain(&self) -> Option<String> {
        (**self).failure_domain()
    }
    async fn probe(&self) -> Result<Vec<Warning>> {
        (**self).probe().await
    }
    async fn space(&self) -> Result<Option<Space>> {
        (**self).space().await
    }
    async fn sweep(&self, older_than: Duration) -> Result<u64> {
        (**self).sweep(older_than).await
    }
    async fn thaw(&self, key: &Key) -> Result<()> {
        (**self).thaw(key).await
    }
    async fn change_class(&self, key: &Key, class: &str) -> Result<bool> {
        (**self).change_class(key, class).await
    }
    fn address(&self, key: &Key) -> Option<StoreAddress> {
        (**self).address(key)
    }
    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        (**self).copy_from(from, size, to, options).await
    }
}

/// An object being written.
#[async_trait]
pub trait SinkWriter: Debug + Send {
    /// Takes the next bytes. This await is the backpressure. After an error for which
    /// [`Error::is_retryable`] holds, the chunk was not taken and the same chunk may be offered again; after any other
    /// the writer can only be aborted or dropped.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// Makes the object whole, durable and visible, or leaves nothing visible.
    async fn finish(self: Box<Self>) -> Result<ObjectInfo>;

    /// Gives the object up and removes what was staged.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// How to put an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    /// Whether an existing object may be replaced.
    pub mode: PutMode,
    /// What the object is, so that a store can choose a storage class.
    pub kind: ObjectKind,
    /// Expected size in bytes, to choose part sizes. An estimate unless `kind` is small.
    pub size_hint: Option<u64>,
    /// The store should refuse to delete the object before this time, where it can.
    pub retain_until: Option<DateTime<Utc>>,
}

impl PutOptions {
    /// Options for an object of `kind` that may replace another.
    pub fn overwrite(kind: ObjectKind) -> Self {
        Self { mode: PutMode::Overwrite, kind, size_hint: None, retain_until: None }
    }

    /// Options for an object of `kind` that must not exist yet.
    pub fn create_new(kind: ObjectKind) -> Self {
        Self { mode: PutMode::CreateNew, ..Self::overwrite(kind) }
    }

    /// Sets the expected size in bytes.
    pub fn size_hint(mut self, bytes: Option<u64>) -> Self {
        self.size_hint = bytes;
        self
    }

    /// Asks the store to refuse deletion before `until`.
    pub fn retain_until(mut self, until: Option<DateTime<Utc>>) -> Self {
        self.retain_until = until;
        self
    }
}

/// Whether an existing object may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// The object must not exist; promised for at most [`CREATE_NEW_LIMIT`] bytes.
    CreateNew,
    /// An existing object is replaced atomically.
    Overwrite,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ObjectKind {
    /// A manifest: small, read often.
    Manifest,
    /// An artifact: large, read to restore.
    Data,
    /// A block index, or the details of a backup: read before any artifact, and so never to be archived.
    Index,
    /// Anything else small: pending marker, key wrap, `RESTORE.txt`.
    Note,
}

/// What a sink knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written, as the store has it. Informative only.
    pub modified: Option<DateTime<Utc>>,
    /// Whether it can be read now.
    pub availability: Availability,
}

impl ObjectInfo {
    /// A readable object.
    pub fn new(key: Key, size: u64) -> Self {
        Self { key, size, modified: None, availability: Availability::Ready }
    }
}

/// Whether an object can be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Availability {
    /// Now.
    Ready,
    /// After [`Sink::thaw`] and a wait.
    Archived,
    /// It was asked for; not yet.
    Thawing,
}

/// Where an object lies in a store that can copy by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAddress {
    /// The store: equal for two sinks only where one may reach what the other holds. Shows no secret.
    pub store: String,
    /// The object, as that store spells it.
    pub object: String,
}

/// A copy that a store made by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCopy {
    /// The digest of the copy, where the store computed it over the bytes it wrote: never one it remembered of the
    /// original.
    pub sha256: Option<Digest>,
}

/// Space of a sink, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still write.
    pub available: u64,
    /// The size of the place.
    pub total: u64,
}

/// Writes a small object at once.
pub async fn put_bytes(sink: &dyn Sink, key: &Key, bytes: Bytes, options: PutOptions) -> Result<ObjectInfo> {
    let size = bytes.len() as u64;
    let mut writer = sink.create(key, options.size_hint(Some(size))).await?;
    if let Err(error) = writer.write(bytes).await {
        let _ = writer.abort().await;
        return Err(error);
    }
    writer.finish().await
}

/// Reads an object of at most `limit` bytes whole.
pub async fn read_bytes(sink: &dyn Sink, key: &Key, limit: u64) -> Result<Bytes> {
    let mut stream = sink.open(key, None).await?;
    let mut all = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if all.len() as u64 + chunk.len() as u64 > limit {
            return Err(Error::new(ErrorKind::LimitExceeded, "read object")
                .message("the object is larger than anything this library writes there")
                .with("key", key)
                .with("limit", limit));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
