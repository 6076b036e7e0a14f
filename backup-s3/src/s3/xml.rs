//! The few documents read here. Amazon S3 API reference, version 2006-03-01.

use backup_core::{Error, Result};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub(super) fn parse<T: DeserializeOwned>(operation: &'static str, bytes: &[u8]) -> Result<T> {
    let text = String::from_utf8_lossy(bytes);
    quick_xml::de::from_str(&text).map_err(|e| {
        Error::corrupt(operation, "the store's reply is not the document it should be").caused_by(e)
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListBucketResult {
    #[serde(default)]
    pub(super) contents: Vec<Contents>,
    /// Required: what does not say whether it is whole, a foreign page for instance, is no list.
    pub(super) is_truncated: bool,
    pub(super) next_continuation_token: Option<String>,
    pub(super) encoding_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Contents {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) last_modified: Option<DateTime<Utc>>,
    pub(super) storage_class: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListMultipartUploadsResult {
    #[serde(default)]
    pub(super) upload: Vec<Upload>,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
    #[serde(default)]
    pub(super) is_truncated: bool,
    pub(super) encoding_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Upload {
    pub(super) key: String,
    #[serde(rename = "UploadId")]
    pub(super) id: String,
    pub(super) initiated: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct VersioningConfiguration {
    pub(super) status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObjectLockConfiguration {
    pub(super) object_lock_enabled: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LifecycleConfiguration {
    #[serde(default, rename = "Rule")]
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Rule {
    #[serde(rename = "ID")]
    pub(super) id: Option<String>,
    pub(super) status: String,
    pub(super) prefix: Option<String>,
    pub(super) filter: Option<Filter>,
    pub(super) expiration: Option<Expiration>,
    #[serde(default)]
    pub(super) transition: Vec<Transition>,
    pub(super) abort_incomplete_multipart_upload: Option<Abort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Filter {
    pub(super) prefix: Option<String>,
    #[serde(default)]
    pub(super) tag: Vec<Tag>,
    pub(super) object_size_greater_than: Option<u64>,
    pub(super) and: Option<Box<Filter>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tag {
    pub(super) key: String,
    pub(super) value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Expiration {
    pub(super) days: Option<u64>,
    pub(super) date: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Transition {
    pub(super) storage_class: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Abort {
    pub(super) days_after_initiation: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InitiateMultipartUploadResult {
    pub(super) upload_id: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct CopyObjectResult {
    #[serde(rename = "ChecksumSHA256")]
    pub(super) sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CopyPartResult {
    #[serde(rename = "ETag")]
    pub(super) e_tag: String,
}
