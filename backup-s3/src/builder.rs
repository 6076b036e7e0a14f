//! [`SinkBuilder`]: what all stores have in common.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{Result, SinkId};
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;

use crate::class::StorageClasses;
use crate::clock::Skew;
use crate::copy::Origin;
use crate::native::Native;
use crate::options::Options;
use crate::parts::PartSizes;
use crate::place::Place;
use crate::shared::Shared;
use crate::sink::ObjectStoreSink;

/// Builds an [`ObjectStoreSink`]; `P` is the store's own part.
#[derive(Clone)]
pub struct SinkBuilder<P> {
    pub(crate) provider: P,
    pub(crate) options: Options,
}

impl<P> fmt::Debug for SinkBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The provider's part holds credentials.
        f.debug_struct("SinkBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<P> SinkBuilder<P> {
    pub(crate) fn with(provider: P) -> Self {
        Self { provider, options: Options::default() }
    }

    /// Names the sink in reports. The default is the URL of bucket and prefix.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.options.id = Some(id.into());
        self
    }

    /// Keeps every object below this prefix. The default is the root of the bucket.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.options.prefix = prefix.into();
        self
    }

    /// Bytes one open writer may hold: the part being filled and the parts under way. At least 16 MiB and one part;
    /// the default is 24 MiB. More makes uploads over long distances faster and larger objects possible:
    /// 10,000 parts of at most this size.
    pub fn upload_memory(mut self, bytes: usize) -> Self {
        self.options.upload_memory = bytes;
        self
    }

    /// The size of the first parts in bytes, 5 MiB or more; the default is 8 MiB.
    pub fn part_size(mut self, bytes: u64) -> Self {
        self.options.part_size = bytes;
        self
    }

    /// Whether parts of one object may differ in size. The default is [`PartSizes::Growing`], and
    /// [`PartSizes::Equal`] for an endpoint of Cloudflare R2.
    pub fn part_sizes(mut self, sizes: PartSizes) -> Self {
        self.options.part_sizes = Some(sizes);
        self
    }

    /// Pieces of 2 MiB a reader of a large object fetches ahead, each on a connection of its own, at least 1; the default
    /// is 8. More makes restores over long distances faster.
    pub fn read_ahead(mut self, pieces: usize) -> Self {
        self.options.read_ahead = pieces.max(1);
        self
    }

    /// Longest time for one request. The default lets the largest part through at 32 KiB/s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.options.request_timeout = Some(timeout);
        self
    }

    /// Storage class per kind of object.
    pub fn storage_classes(mut self, classes: StorageClasses) -> Self {
        self.options.classes = classes;
        self
    }

    /// Puts a tag on every object; at most 10.
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.tags.insert(name.into(), value.into());
        self
    }

    /// Puts objects without metadata, storage class or tags, for stores that refuse them. Then a create-new
    /// whose reply was lost is settled by the bytes that lie there.
    pub fn without_attributes(mut self) -> Self {
        self.options.attributes = false;
        self
    }
}

/// A store as a provider built it.
pub(crate) struct Built {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    pub(crate) native: Option<Arc<dyn Native>>,
    pub(crate) part_sizes: PartSizes,
    pub(crate) skew: Skew,
    pub(crate) origin: Origin,
    /// The URL of the bucket, without a prefix.
    pub(crate) url: String,
}

impl Built {
    pub(crate) fn finish(self, options: Options) -> Result<ObjectStoreSink> {
        options.check()?;
        let prefix = options.prefix.trim_matches('/');
        let url = if prefix.is_empty() { self.url } else { format!("{}/{prefix}", self.url) };
        Ok(ObjectStoreSink::from_shared(Shared {
            id: SinkId::new(options.id.clone().unwrap_or(url)),
            place: Place::new(prefix)?,
            part_sizes: options.part_sizes.unwrap_or(self.part_sizes),
            store: self.store,
            multipart: self.multipart,
            native: self.native,
            skew: self.skew,
            origin: self.origin,
            options,
        }))
    }
}

/// Any [`ObjectStore`] as a provider.
#[derive(Clone)]
pub struct AnyStore {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
}

impl fmt::Debug for AnyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyStore")
    }
}

impl ObjectStoreSink {
    /// Builds a sink over any store. Give the same store to [`multipart`](SinkBuilder::multipart) where it can.
    pub fn builder(store: Arc<dyn ObjectStore>) -> SinkBuilder<AnyStore> {
        SinkBuilder::with(AnyStore { store, multipart: None })
    }
}

impl SinkBuilder<AnyStore> {
    /// Uploads parts through this store.
    pub fn multipart(mut self, store: Arc<dyn MultipartStore>) -> Self {
        self.provider.multipart = Some(store);
        self
    }

    /// Opens the sink. Does not connect: [`probe`](backup_core::Sink::probe) does.
    pub fn build(self) -> Result<ObjectStoreSink> {
        let url = format!("object-store:{}", self.provider.store);
        // Nothing else tells whether two stores of this kind are one.
        let store = format!("{url} {:p}", Arc::as_ptr(&self.provider.store));
        Built {
            origin: Origin { store, bucket: String::new() },
            store: self.provider.store,
            multipart: self.provider.multipart,
            native: None,
            part_sizes: PartSizes::Growing,
            skew: Skew::default(),
            url,
        }
        .finish(self.options)
    }
}
