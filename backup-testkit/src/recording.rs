//! [`RecordingSink`]: any sink, with every operation written down.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backup_core::{
    ByteStream, Bytes, Key, ObjectInfo, PutOptions, Result, Sink, SinkId, SinkWriter, Space, StoreAddress,
    StoreCopy, Warning, async_trait,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::Operation;

/// One operation on one key. Writes and reads are counted with the `Create` or `Open` that began them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was done.
    pub operation: Operation,
    /// To which key (a prefix for lists, the root for operations on the whole sink).
    pub key: Key,
    /// The range, for an `Open` of one.
    pub range: Option<Range<u64>>,
    /// Bytes written through a `Create`, read through an `Open`, entries given by a `List`, up to now.
    pub amount: u64,
}

/// Passes every call on to a sink and records it: how often, with which key, how many bytes.
///
/// Cloning gives another handle to the same records.
#[derive(Clone, Debug)]
pub struct RecordingSink {
    inner: Arc<dyn Sink>,
    records: Records,
}

#[derive(Clone, Debug, Default)]
struct Records(Arc<Mutex<Vec<Record>>>);

impl Records {
    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, operation: Operation, key: &Key, range: Option<Range<u64>>) -> Entry {
        let mut records = self.lock();
        records.push(Record { operation, key: key.clone(), range, amount: 0 });
        Entry { records: self.clone(), index: records.len() - 1 }
    }
}

/// The place of a record, to add to its amount. After [`RecordingSink::clear`] it adds to nothing.
#[derive(Debug)]
struct Entry {
    records: Records,
    index: usize,
}

impl Entry {
    fn add(&self, amount: usize) {
        if let Some(record) = self.records.lock().get_mut(self.index) {
            record.amount += amount as u64;
        }
    }
}

impl RecordingSink {
    /// Records what is done to `inner` from now on.
    pub fn new(inner: impl Sink + 'static) -> Self {
        Self { inner: Arc::new(inner), records: Records::default() }
    }

    /// All records, in the order the operations began.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// Forgets the records. Streams and writers still open must not be used on.
    pub fn clear(&self) {
        self.records.lock().clear();
    }

    /// How many calls of `operation` there were.
    pub fn count(&self, operation: Operation) -> usize {
        self.records.lock().iter().filter(|record| record.operation == operation).count()
    }

    /// Bytes read from all objects.
    pub fn bytes_read(&self) -> u64 {
        self.bytes(Operation::Open, |_| true)
    }

    /// Bytes read from objects whose key `of` accepts.
    pub fn bytes_read_of(&self, of: impl Fn(&Key) -> bool) -> u64 {
        self.bytes(Operation::Open, of)
    }

    /// Bytes written to all objects, finished or not.
    pub fn bytes_written(&self) -> u64 {
        self.bytes(Operation::Create, |_| true)
    }

    fn bytes(&self, operation: Operation, of: impl Fn(&Key) -> bool) -> u64 {
        let records = self.records.lock();
        records.iter().filter(|r| r.operation == operation && of(&r.key)).map(|r| r.amount).sum()
    }
}

#[async_trait]
impl Sink for RecordingSink {
    fn id(&self) -> &SinkId {
        self.inner.id()
    }

    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        let entry = self.records.push(Operation::Create, key, None);
        let inner = self.inner.create(key, options).await?;
        Ok(Box::new(RecordingWriter { inner, key: key.clone(), entry }))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let entry = self.records.push(Operation::Open, key, range.clone());
        let stream = self.inner.open(key, range).await?;
        Ok(stream.inspect_ok(move |chunk| entry.add(chunk.len())).boxed())
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.records.push(Operation::Head, key, None);
        self.inner.head(key).await
    }

    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        let entry = self.records.push(Operation::List, prefix, None);
        self.inner.list(prefix).inspect_ok(move |_| entry.add(1)).boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.records.push(Operation::Delete, key, None);
        self.inner.delete(key).await
    }

    fn writer_memory(&self) -> usize {
        self.inner.writer_memory()
    }

    fn failure_domain(&self) -> Option<String> {
        self.inner.failure_domain()
    }

    async fn probe(&self) -> Result<Vec<Warning>> {
        self.records.push(Operation::Probe, &Key::root(), None);
        self.inner.probe().await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.records.push(Operation::Space, &Key::root(), None);
        self.inner.space().await
    }

    async fn sweep(&self, older_than: Duration) -> Result<u64> {
        self.records.push(Operation::Sweep, &Key::root(), None);
        self.inner.sweep(older_than).await
    }

    async fn thaw(&self, key: &Key) -> Result<()> {
        self.records.push(Operation::Thaw, key, None);
        self.inner.thaw(key).await
    }

    async fn change_class(&self, key: &Key, class: &str) -> Result<bool> {
        self.records.push(Operation::ChangeClass, key, None);
        self.inner.change_class(key, class).await
    }

    fn address(&self, key: &Key) -> Option<StoreAddress> {
        self.inner.address(key)
    }

    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        self.records.push(Operation::CopyFrom, to, None);
        self.inner.copy_from(from, size, to, options).await
    }
}

#[derive(Debug)]
struct RecordingWriter {
    inner: Box<dyn SinkWriter>,
    key: Key,
    entry: Entry,
}

#[async_trait]
impl SinkWriter for RecordingWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let size = chunk.len();
        self.inner.write(chunk).await?;
        self.entry.add(size);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo> {
        self.entry.records.push(Operation::Finish, &self.key, None);
        self.inner.finish().await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.entry.records.push(Operation::Abort, &self.key, None);
        self.inner.abort().await
    }
}
