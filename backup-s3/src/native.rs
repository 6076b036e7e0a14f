//! What a store can do beyond `object_store`'s interface.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{Availability, Digest, Result, Warning};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use object_store::Extensions;

/// An object as a store lists it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    /// Its full name in the bucket.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) modified: Option<DateTime<Utc>>,
    pub(crate) availability: Availability,
}

/// Requests of one store that `object_store` has no call for.
#[async_trait]
pub(crate) trait Native: Debug + Send + Sync {
    /// Every object whose name begins with `prefix`.
    fn list(&self, prefix: String) -> BoxStream<'static, Result<Listed>>;

    /// Aborts multipart uploads below `prefix` begun longer than `older_than` ago.
    async fn sweep(&self, prefix: &str, older_than: Duration) -> Result<u64>;

    /// What is unwise about the bucket's configuration, as far as it may be read.
    async fn bucket_warnings(&self, prefix: &str) -> Vec<Warning>;

    /// Extensions that make the store lock an object until then; `None` where the bucket has no locks.
    async fn lock(&self, until: DateTime<Utc>) -> Result<Option<Extensions>>;

    /// Whether objects may be locked, as far as it can be told.
    async fn has_locks(&self) -> bool;

    /// Makes an archived object readable for some days.
    async fn thaw(&self, name: &str) -> Result<()>;

    /// Whether objects of this sink can be copied by the store.
    fn can_copy(&self) -> bool;

    /// Copies into the bucket; whole and atomic. Returns the digest of the copy where the store computes it anew.
    async fn copy(&self, copy: Copy<'_>) -> Result<Option<Digest>>;
}

/// A copy to make into a bucket.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "s3"), expect(dead_code, reason = "only S3 copies with settings"))]
pub(crate) struct Copy<'a> {
    /// `bucket/name`.
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) size: u64,
    pub(crate) class: Option<&'a str>,
    /// `name=value` pairs joined by `&`, percent-encoded; empty for none.
    pub(crate) tags: &'a str,
    /// Name and value; empty to take over what the original has.
    pub(crate) metadata: &'a [(&'static str, String)],
    pub(crate) retain_until: Option<DateTime<Utc>>,
}
