//! Copies inside the store: one request up to 5 GiB, by parts beyond (Amazon S3 API reference, `CopyObject`
//! and `UploadPartCopy`).

use std::fmt::Write as _;

use backup_core::{Digest, Error, Result};
use base64::Engine as _;
use futures::{StreamExt as _, TryStreamExt as _};
use http::Method;

use super::api::{Api, Request, encode};
use super::settings::Encryption;
use super::xml::{self, CopyObjectResult, CopyPartResult, InitiateMultipartUploadResult};
use crate::native::Copy;

/// Largest copy in one request, in bytes.
const ONE_REQUEST: u64 = 5 * GIB;
const GIB: u64 = 1024 * 1024 * 1024;
/// Parts copied at once: the store moves the bytes.
const AT_ONCE: usize = 4;
const OPERATION: &str = "copy object";

/// Copies; `lock` are the headers that lock the new object. Returns the digest of the copy when `digests` says that this
/// store computes it over the bytes it wrote.
pub(super) async fn copy(
    api: &Api,
    copy: Copy<'_>,
    sse: &Encryption,
    lock: Vec<(&'static str, String)>,
    digests: bool,
) -> Result<Option<Digest>> {
    let mut source = String::from("/");
    encode(&mut source, copy.from, true);
    let mut headers: Vec<(&'static str, String)> = encryption(sse);
    headers.extend(lock);
    headers.extend(copy.class.map(|class| ("x-amz-storage-class", class.to_owned())));
    if !copy.tags.is_empty() {
        headers.push(("x-amz-tagging", copy.tags.to_owned()));
    }
    if copy.size <= ONE_REQUEST {
        let mut request = Request::object(Method::PUT, copy.to).header("x-amz-copy-source", source);
        if !copy.tags.is_empty() {
            request = request.header("x-amz-tagging-directive", "REPLACE");
        }
        if !copy.metadata.is_empty() {
            request = request.header("x-amz-metadata-directive", "REPLACE");
        }
        if digests {
            request = request.header("x-amz-checksum-algorithm", "SHA256");
        }
        // Onto itself a copy is allowed only when something else changes, as the class does.
        let request = request.headers(&headers).metadata(copy.metadata);
        let reply = api.send(&request).await.map_err(|e| e.error(OPERATION))?;
        if !digests {
            // Without being asked a store repeats what it remembers of the original.
            return Ok(None);
        }
        let CopyObjectResult { sha256 } = xml::parse(OPERATION, &reply)?;
        return Ok(sha256.as_deref().and_then(digest));
    }
    let begin =
        Request::object(Method::POST, copy.to).query("uploads", "").headers(&headers).metadata(copy.metadata);
    let reply = api.send(&begin).await.map_err(|e| e.error(OPERATION))?;
    let InitiateMultipartUploadResult { upload_id } = xml::parse(OPERATION, &reply)?;
    let done = parts(api, copy, &source, &upload_id).await;
    if done.is_err() {
        let abort = Request::object(Method::DELETE, copy.to).query("uploadId", upload_id);
        let _ = api.send(&abort).await;
    }
    // Of parts a store knows only the digest of their digests.
    done.map(|()| None)
}

/// From base64; `None` for anything else, a digest of digests (`…-3`) for instance.
fn digest(text: &str) -> Option<Digest> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    <[u8; 32]>::try_from(bytes).ok().map(Digest::from)
}

async fn parts(api: &Api, copy: Copy<'_>, source: &str, upload_id: &str) -> Result<()> {
    let part = copy.size.div_ceil(crate::parts::MAX_PARTS).max(GIB).next_multiple_of(GIB).min(ONE_REQUEST);
    let count = copy.size.div_ceil(part);
    if count > crate::parts::MAX_PARTS {
        return Err(Error::invalid(OPERATION, "the object is larger than any this store can hold"));
    }
    let copying = (0..count).map(|index| async move {
        let last = ((index + 1) * part).min(copy.size) - 1;
        let request = Request::object(Method::PUT, copy.to)
            .query("partNumber", (index + 1).to_string())
            .query("uploadId", upload_id)
            .header("x-amz-copy-source", source)
            .header("x-amz-copy-source-range", format!("bytes={}-{last}", index * part));
        let reply = api.send(&request).await.map_err(|e| e.error(OPERATION))?;
        xml::parse::<CopyPartResult>(OPERATION, &reply)
    });
    let tags: Vec<CopyPartResult> = futures::stream::iter(copying).buffered(AT_ONCE).try_collect().await?;
    let mut body =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (index, CopyPartResult { e_tag }) in tags.iter().enumerate() {
        let e_tag = quick_xml::escape::escape(e_tag);
        let _ = write!(body, "<Part><PartNumber>{}</PartNumber><ETag>{e_tag}</ETag></Part>", index + 1);
    }
    body.push_str("</CompleteMultipartUpload>");
    let complete = Request::object(Method::POST, copy.to).query("uploadId", upload_id).body(body);
    api.send(&complete).await.map(drop).map_err(|e| e.error(OPERATION))
}

fn encryption(sse: &Encryption) -> Vec<(&'static str, String)> {
    match sse {
        Encryption::S3 => vec![("x-amz-server-side-encryption", "AES256".to_owned())],
        Encryption::Kms { key_id, bucket_key } => vec![
            ("x-amz-server-side-encryption", "aws:kms".to_owned()),
            ("x-amz-server-side-encryption-aws-kms-key-id", key_id.clone()),
            ("x-amz-server-side-encryption-bucket-key-enabled", bucket_key.to_string()),
        ],
        Encryption::BucketDefault | Encryption::Customer { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_digest_of_the_whole_copy_is_taken() {
        let whole = "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=";
        assert_eq!(digest(whole), Some(Digest::of(b"hello world")));
        for other in ["", "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=-3", "ABC=", "mnG7TA=="] {
            assert_eq!(digest(other), None, "{other}");
        }
    }
}
