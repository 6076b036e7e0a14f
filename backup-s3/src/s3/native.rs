//! [`Native`] for S3.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{Digest, ErrorKind, Result, Warning};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use http::Method;
use http::header::{HeaderName, HeaderValue};
use object_store::Extensions;
use tokio::sync::OnceCell;

use super::api::{Api, Request};
use super::settings::{Checksum, Encryption, ObjectLock};
use super::sign::ExtraHeaders;
use super::{bucket, copy, list};
use crate::class::Tags;
use crate::native::{Copy, Listed, Native};
use crate::shared::date;

/// Days a thawed object stays readable: time for a restore to be tried twice.
const THAWED_DAYS: u32 = 7;

#[derive(Debug)]
pub(super) struct S3Native {
    pub(super) api: Arc<Api>,
    pub(super) encryption: Encryption,
    pub(super) object_lock: ObjectLock,
    pub(super) checksum: Checksum,
    pub(super) copy_digests: bool,
    pub(super) tags: Tags,
    pub(super) bucket_locks: OnceCell<bool>,
}

impl S3Native {
    async fn lock_headers(&self, until: DateTime<Utc>) -> Result<Vec<(&'static str, String)>> {
        let mode = match self.object_lock {
            ObjectLock::Off => return Ok(Vec::new()),
            ObjectLock::Compliance => "COMPLIANCE",
            ObjectLock::Governance => "GOVERNANCE",
            ObjectLock::WhereEnabled => {
                if !*self.bucket_locks.get_or_try_init(|| bucket::has_object_lock(&self.api)).await? {
                    return Ok(Vec::new());
                }
                "GOVERNANCE"
            }
        };
        let algorithm = match self.checksum {
            Checksum::Sha256 => Some("SHA256"),
            Checksum::Crc64Nvme => Some("CRC64NVME"),
            Checksum::None => None,
        };
        let mut headers = vec![
            ("x-amz-object-lock-mode", mode.to_owned()),
            ("x-amz-object-lock-retain-until-date", date(until)),
        ];
        // A locked put must have a checksum; some compatibles look for its announcement alone.
        headers.extend(algorithm.map(|name| ("x-amz-sdk-checksum-algorithm", name.to_owned())));
        Ok(headers)
    }
}

#[async_trait]
impl Native for S3Native {
    fn list(&self, prefix: String) -> BoxStream<'static, Result<Listed>> {
        list::objects(Arc::clone(&self.api), prefix)
    }

    async fn sweep(&self, prefix: &str, older_than: Duration) -> Result<u64> {
        list::sweep(&self.api, prefix, older_than).await
    }

    async fn bucket_warnings(&self, prefix: &str) -> Vec<Warning> {
        let mut warnings = bucket::warnings(&self.api, prefix, &self.tags).await;
        let wanted = matches!(self.object_lock, ObjectLock::Governance | ObjectLock::Compliance);
        if wanted && let Ok(false) = bucket::has_object_lock(&self.api).await {
            warnings.push(Warning::new(
                "object-lock-off",
                "object lock is asked for and the bucket does not have it (or this role may not see it): writes with a retention will fail; create the bucket with object lock",
            ));
        }
        warnings
    }

    async fn lock(&self, until: DateTime<Utc>) -> Result<Option<Extensions>> {
        let headers: Vec<_> = self
            .lock_headers(until)
            .await?
            .into_iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?))
            })
            .collect();
        Ok((!headers.is_empty()).then(|| {
            let mut extensions = Extensions::new();
            extensions.insert(ExtraHeaders(headers));
            extensions
        }))
    }

    async fn has_locks(&self) -> bool {
        let asked = self.bucket_locks.get_or_try_init(|| bucket::has_object_lock(&self.api)).await;
        asked.copied().unwrap_or(true)
    }

    async fn thaw(&self, name: &str) -> Result<()> {
        let body = format!(
            "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Days>{THAWED_DAYS}</Days>\
            <GlacierJobParameters><Tier>Standard</Tier></GlacierJobParameters></RestoreRequest>"
        );
        match self.api.send(&Request::object(Method::POST, name).query("restore", "").body(body)).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.reply.code_is(&["RestoreAlreadyInProgress"]) => Ok(()),
            Err(failure) if failure.kind == ErrorKind::PermissionDenied => {
                Err(failure.error("thaw object").message(
                    "the role may not thaw objects; allow s3:RestoreObject, or thaw with a role that may",
                ))
            }
            Err(failure) => Err(failure.error("thaw object")),
        }
    }

    fn can_copy(&self) -> bool {
        // Each request would need the key of the original, and the store must not keep it.
        !matches!(self.encryption, Encryption::Customer { .. })
    }

    async fn copy(&self, copied: Copy<'_>) -> Result<Option<Digest>> {
        let lock = match copied.retain_until {
            Some(until) => self.lock_headers(until).await?,
            None => Vec::new(),
        };
        copy::copy(&self.api, copied, &self.encryption, lock, self.copy_digests).await
    }
}
