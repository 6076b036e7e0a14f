//! [`ObjectStoreSink`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{
    Availability, ByteStream, Error, ErrorKind, Key, ObjectInfo, PutOptions, Result, Sink, SinkId,
    SinkWriter, StoreAddress, StoreCopy, Warning,
};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use crate::error::{Tried, described, store_error};
use crate::native::{Copy, Listed};
use crate::shared::{Found, Shared, date};
use crate::writer::{Writer, token};
use crate::{copy, probe, read};

/// A sink in a bucket: over Amazon S3 and compatibles, Google Cloud Storage, Azure Blob Storage, or any
/// other [`object_store::ObjectStore`].
///
/// Objects lie under `<prefix>/<key>`. Small objects are put in one request, larger ones in parts that upload
/// while the next is filled; what a writer holds never exceeds
/// [`upload_memory`](crate::SinkBuilder::upload_memory). Large objects are read in parallel ranges, in order.
///
/// Create-new is a conditional put (`If-None-Match: *`) up to 16 MiB. Beyond, where the contract promises nothing, the
/// name is looked up before the first and after the last part.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> backup_core::Result<()> {
/// use backup_core::{Key, ObjectKind, PutOptions, put_bytes, read_bytes};
/// use backup_s3::ObjectStoreSink;
///
/// let bucket = std::sync::Arc::new(object_store::memory::InMemory::new());
/// let sink = ObjectStoreSink::builder(bucket).prefix("backups").build()?;
/// let key = Key::parse("books/hello")?;
/// put_bytes(&sink, &key, "good evening".into(), PutOptions::create_new(ObjectKind::Note)).await?;
/// assert_eq!(read_bytes(&sink, &key, 1024).await?, "good evening");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ObjectStoreSink {
    shared: Arc<Shared>,
}

impl fmt::Debug for ObjectStoreSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStoreSink({})", self.shared.id)
    }
}

impl ObjectStoreSink {
    pub(crate) fn from_shared(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    async fn look_up(&self, operation: &'static str, key: &Key, path: &Path) -> Result<Found> {
        self.shared.find(path).await.map_err(|e| self.shared.error(operation, Tried::Enough, key, &e))
    }

    fn listed(shared: &Shared, listed: &Listed) -> Option<ObjectInfo> {
        let key = shared.place.key(&listed.name)?;
        Some(ObjectInfo {
            key,
            size: listed.size,
            modified: listed.modified,
            availability: listed.availability,
        })
    }
}

#[async_trait]
impl Sink for ObjectStoreSink {
    fn id(&self) -> &SinkId {
        &self.shared.id
    }

    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer::begin(Arc::clone(&self.shared), key, options)?))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        read::open(Arc::clone(&self.shared), key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let path = self.shared.place.path(key)?;
        let found = self.look_up("look up object", key, &path).await?;
        Ok(ObjectInfo {
            key: key.clone(),
            size: found.meta.size,
            modified: Some(found.meta.last_modified),
            availability: found.tier.availability(),
        })
    }

    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        let shared = Arc::clone(&self.shared);
        let listing = shared.place.listing(prefix);
        let all: BoxStream<'static, Result<Listed>> = if let Some(native) = &shared.native {
            native.list(listing.clone())
        } else {
            let path = Path::parse(&listing).unwrap_or_default();
            let id = shared.id.clone();
            shared
                .store
                .list((!listing.is_empty()).then_some(&path))
                .map(move |found| match found {
                    Ok(meta) => Ok(Listed {
                        name: meta.location.as_ref().to_owned(),
                        size: meta.size,
                        modified: Some(meta.last_modified),
                        availability: Availability::Ready,
                    }),
                    Err(e) => Err(store_error("list objects", Tried::Enough, &e).with("sink", &id)),
                })
                .boxed()
        };
        all.filter_map(move |found| {
            let info = match found {
                // A store may take the prefix as text: `a/b` is not below `a/bc`.
                Ok(listed) if listed.name.starts_with(&listing) => Self::listed(&shared, &listed).map(Ok),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            };
            std::future::ready(info)
        })
        .boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        const OPERATION: &str = "delete object";
        let path = self.shared.place.path(key)?;
        // S3 locks versions: it would take this, hide the object behind a delete marker and go on charging for it.
        if let Some(native) = &self.shared.native
            && native.has_locks().await
        {
            match self.look_up(OPERATION, key, &path).await {
                Ok(Found { retained_until: Some(until), .. }) => {
                    return Err(locked(OPERATION, &self.shared, key, until));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                // A role that may not look may still be allowed to delete.
                Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let Err(e) = self.shared.store.delete(&path).await else { return Ok(()) };
        let error = self.shared.error(OPERATION, Tried::Once, key, &e);
        match error.kind() {
            ErrorKind::NotFound => Ok(()),
            // Stores without versions refuse: say until when.
            ErrorKind::PermissionDenied => match self.shared.find(&path).await {
                Ok(found) => Err(match found.tier.locked_until() {
                    Some(until) => locked(OPERATION, &self.shared, key, until).caused_by(error),
                    None => error,
                }),
                Err(_) => Err(error),
            },
            _ => Err(error),
        }
    }

    fn writer_memory(&self) -> usize {
        self.shared.options.upload_memory
    }

    async fn probe(&self) -> Result<Vec<Warning>> {
        probe::probe(self).await
    }

    async fn sweep(&self, older_than: Duration) -> Result<u64> {
        match &self.shared.native {
            Some(native) => native.sweep(&self.shared.place.listing(&Key::root()), older_than).await,
            None => Ok(0),
        }
    }

    async fn thaw(&self, key: &Key) -> Result<()> {
        let path = self.shared.place.path(key)?;
        let found = self.look_up("thaw object", key, &path).await?;
        if found.tier.availability() != Availability::Archived {
            return Ok(());
        }
        match &self.shared.native {
            Some(native) => native.thaw(path.as_ref()).await.map_err(|e| e.with("key", key)),
            None => Err(Error::new(ErrorKind::Unsupported, "thaw object")
                .message("move the object out of its archive class with the store's own tool, then run again")
                .with("key", key)
                .with("sink", &self.shared.id)),
        }
    }

    async fn change_class(&self, key: &Key, class: &str) -> Result<bool> {
        const OPERATION: &str = "change storage class";
        let Some(native) = &self.shared.native else {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("this store's client cannot change the class of an object; use a lifecycle rule"));
        };
        let path = self.shared.place.path(key)?;
        let found = self.look_up(OPERATION, key, &path).await?;
        if found.tier.class().unwrap_or("STANDARD") == class {
            return Ok(false);
        }
        if !native.can_copy() {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("objects encrypted with the caller's own key cannot be copied inside the store"));
        }
        let tags = self.shared.tags();
        let until = found.tier.locked_until();
        let copy = Copy {
            from: &self.shared.origin.address(path.as_ref()),
            to: path.as_ref(),
            size: found.meta.size,
            class: Some(class),
            tags: tags.encoded(),
            metadata: &self.shared.metadata(&token()?, found.retained_until.and(until)),
            retain_until: until,
        };
        native.copy(copy).await.map_err(|e| e.with("key", key).with("sink", &self.shared.id))?;
        Ok(true)
    }

    fn address(&self, key: &Key) -> Option<StoreAddress> {
        copy::address(&self.shared, key)
    }

    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        copy::copy_from(&self.shared, from, size, to, &options).await
    }
}

pub(crate) fn already_exists(operation: &'static str, shared: &Shared, key: &Key) -> Error {
    let reply = crate::error::Reply::read(None, "a look-up found the name in use");
    described(operation, Tried::Enough, ErrorKind::AlreadyExists, reply)
        .with("key", key)
        .with("sink", &shared.id)
}

fn locked(operation: &'static str, shared: &Shared, key: &Key, until: DateTime<Utc>) -> Error {
    Error::new(ErrorKind::PermissionDenied, operation)
        .message("the object is locked until its retention ends; it can be deleted after that")
        .with("retain_until", date(until))
        .with("key", key)
        .with("sink", &shared.id)
}
