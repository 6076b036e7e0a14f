//! [`MemorySink`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::SinkId;
use crate::sink::{Availability, ObjectInfo, PutMode, PutOptions, Sink, SinkWriter, StoreAddress, StoreCopy};
use crate::source::ByteStream;

/// Largest piece a read stream yields, in bytes.
const CHUNK: usize = 256 * 1024;

/// A sink that keeps its objects in memory. Cloning gives another handle to the same objects.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> backup_core::Result<()> {
/// use backup_core::{Key, MemorySink, ObjectKind, PutOptions, put_bytes, read_bytes};
///
/// let sink = MemorySink::new();
/// let key = Key::parse("books/hello")?;
/// put_bytes(&sink, &key, "good evening".into(), PutOptions::create_new(ObjectKind::Note)).await?;
/// assert_eq!(read_bytes(&sink, &key, 1024).await?, "good evening");
///
/// // A test may look inside, and do damage.
/// assert_eq!(sink.keys(), [key.clone()]);
/// sink.replace(&key, "good morning");
/// assert_eq!(sink.get(&key).unwrap(), "good morning");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemorySink {
    id: SinkId,
    objects: Arc<Objects>,
}

type Objects = Mutex<BTreeMap<Key, Object>>;

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    modified: DateTime<Utc>,
}

impl MemorySink {
    /// An empty sink named `memory:1`, `memory:2` and so on.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self::named(format!("memory:{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// An empty sink with this id.
    pub fn named(id: impl Into<String>) -> Self {
        Self { id: SinkId::new(id), objects: Arc::default() }
    }

    /// The keys of all objects, sorted.
    pub fn keys(&self) -> Vec<Key> {
        lock(&self.objects).keys().cloned().collect()
    }

    /// The bytes of an object.
    pub fn get(&self, key: &Key) -> Option<Bytes> {
        lock(&self.objects).get(key).map(|object| object.bytes.clone())
    }

    /// Sets the bytes of an object behind the library's back, and returns what was there.
    pub fn replace(&self, key: &Key, bytes: impl Into<Bytes>) -> Option<Bytes> {
        let object = Object { bytes: bytes.into(), modified: Utc::now() };
        lock(&self.objects).insert(key.clone(), object).map(|old| old.bytes)
    }

    /// Changes the bytes of an object in place: `sink.damage(&key, |bytes| bytes[0] ^= 1)`. Returns whether it exists.
    pub fn damage(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut objects = lock(&self.objects);
        let Some(object) = objects.get_mut(key) else { return false };
        let mut bytes = object.bytes.to_vec();
        change(&mut bytes);
        object.bytes = bytes.into();
        true
    }

    /// Removes an object behind the library's back, and returns it.
    pub fn remove(&self, key: &Key) -> Option<Bytes> {
        lock(&self.objects).remove(key).map(|object| object.bytes)
    }

    /// Bytes of all objects together.
    pub fn total_bytes(&self) -> u64 {
        lock(&self.objects).values().map(|object| object.bytes.len() as u64).sum()
    }

    /// A copy of everything as it is now, in a sink of its own with another id.
    pub fn fork(&self) -> Self {
        let copy = Self::new();
        let objects = lock(&self.objects).clone();
        *lock(&copy.objects) = objects;
        copy
    }

    fn find(&self, operation: &'static str, key: &Key) -> Result<Object> {
        lock(&self.objects)
            .get(key)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, operation).with("key", key).with("sink", &self.id))
    }
}

impl Default for MemorySink {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySink({}, {} objects)", self.id, lock(&self.objects).len())
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn id(&self) -> &SinkId {
        &self.id
    }

    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        if key.is_root() {
            return Err(Error::invalid("put object", "the root of a sink is not the name of an object"));
        }
        if options.mode == PutMode::CreateNew && lock(&self.objects).contains_key(key) {
            return Err(already_exists(key));
        }
        Ok(Box::new(MemoryWriter {
            key: key.clone(),
            mode: options.mode,
            bytes: BytesMut::new(),
            objects: Arc::clone(&self.objects),
        }))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let object = self.find("read object", key)?;
        let size = object.bytes.len();
        let piece = match range {
            None => object.bytes,
            Some(range) => {
                let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                let (start, end) = (index(range.start), index(range.end).min(size));
                if range.start > range.end || start > size {
                    return Err(Error::invalid("read object", "the range lies outside the object")
                        .with("key", key)
                        .with("range", format_args!("{}..{}", range.start, range.end))
                        .with("size", size));
                }
                object.bytes.slice(start..end)
            }
        };
        Ok(futures::stream::unfold(piece, |mut rest| async move {
            let n = rest.len().min(CHUNK);
            (n > 0).then(|| (Ok(rest.split_to(n)), rest))
        })
        .boxed())
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.find("look up object", key).map(|object| info(key, &object))
    }

    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        let found: Vec<_> = lock(&self.objects)
            .iter()
            .filter(|(key, _)| key.strip_prefix(prefix).is_some())
            .map(|(key, object)| Ok(info(key, object)))
            .collect();
        futures::stream::iter(found).boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.remove(key);
        Ok(())
    }

    fn address(&self, key: &Key) -> Option<StoreAddress> {
        // The objects are the store: clones share it, whatever they are called.
        let store = format!("memory:{:p}", Arc::as_ptr(&self.objects));
        Some(StoreAddress { store, object: key.to_string() })
    }

    async fn copy_from(
        &self,
        from: &StoreAddress,
        _size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        let from_key = Key::parse(from.object.as_str())?;
        if self.address(&from_key).as_ref() != Some(from) || options.mode == PutMode::CreateNew {
            return Ok(None);
        }
        let object = Object { modified: Utc::now(), ..self.find("copy object", &from_key)? };
        lock(&self.objects).insert(to.clone(), object);
        Ok(Some(StoreCopy::default()))
    }
}

fn info(key: &Key, object: &Object) -> ObjectInfo {
    ObjectInfo {
        key: key.clone(),
        size: object.bytes.len() as u64,
        modified: Some(object.modified),
        availability: Availability::Ready,
    }
}

fn already_exists(key: &Key) -> Error {
    Error::new(ErrorKind::AlreadyExists, "put object").with("key", key)
}

struct MemoryWriter {
    key: Key,
    mode: PutMode,
    bytes: BytesMut,
    objects: Arc<Objects>,
}

impl fmt::Debug for MemoryWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryWriter({}, {} bytes)", self.key, self.bytes.len())
    }
}

#[async_trait]
impl SinkWriter for MemoryWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo> {
        let object = Object { bytes: self.bytes.freeze(), modified: Utc::now() };
        let mut objects = lock(&self.objects);
        if self.mode == PutMode::CreateNew && objects.contains_key(&self.key) {
            return Err(already_exists(&self.key));
        }
        let done = info(&self.key, &object);
        objects.insert(self.key, object);
        Ok(done)
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
