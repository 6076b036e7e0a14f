//! Listing objects and unfinished uploads.

use std::sync::Arc;
use std::time::Duration;

use backup_core::{Error, Key, Result};
use chrono::{TimeDelta, Utc};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::Method;

use super::api::{Api, Request, decode};
use super::xml::{self, ListBucketResult, ListMultipartUploadsResult};
use crate::class::Tier;
use crate::native::Listed;

const LIST: &str = "list objects";
const SWEEP: &str = "sweep unfinished uploads";

/// Every object whose name begins with `prefix`. Not `object_store`'s listing: that fails as a whole for a
/// foreign name like `folder//file`, and does not tell storage classes.
pub(super) fn objects(api: Arc<Api>, prefix: String) -> BoxStream<'static, Result<Listed>> {
    stream::try_unfold(Some(None::<String>), move |page| {
        let (api, prefix) = (Arc::clone(&api), prefix.clone());
        async move {
            let Some(token) = page else { return Ok(None) };
            let mut request = Request::bucket(Method::GET)
                .query("list-type", "2")
                .query("encoding-type", "url")
                .query("prefix", prefix);
            if let Some(token) = &token {
                request = request.query("continuation-token", token.clone());
            }
            let reply = api.send(&request).await.map_err(|e| e.error(LIST))?;
            let page: ListBucketResult = xml::parse(LIST, &reply)?;
            let encoded = page.encoding_type.is_some();
            let listed = page.contents.into_iter().map(move |found| {
                Ok(Listed {
                    name: if encoded { decode(&found.key) } else { found.key },
                    size: found.size,
                    modified: found.last_modified,
                    availability: Tier::from_class(found.storage_class.as_deref()).availability(),
                })
            });
            let next = page.next_continuation_token.filter(|next| !next.is_empty());
            // Without an error the caller takes the list for whole.
            if page.is_truncated && (next.is_none() || next == token) {
                return Err(Error::corrupt(LIST, "the store says that the list goes on, and not where"));
            }
            let next = next.filter(|_| page.is_truncated).map(Some);
            Ok(Some((stream::iter(listed), next)))
        }
    })
    .try_flatten()
    .boxed()
}

/// Aborts uploads of our keys below `prefix` that began before the given age, and counts them.
pub(super) async fn sweep(api: &Api, prefix: &str, older_than: Duration) -> Result<u64> {
    let age = TimeDelta::from_std(older_than).unwrap_or(TimeDelta::MAX);
    let Some(before) = Utc::now().checked_sub_signed(age) else { return Ok(0) };
    let mut markers: Option<(String, String)> = None;
    let mut swept = 0;
    loop {
        let mut request = Request::bucket(Method::GET)
            .query("uploads", "")
            .query("encoding-type", "url")
            .query("prefix", prefix);
        if let Some((key, upload)) = &markers {
            request = request.query("key-marker", key.clone()).query("upload-id-marker", upload.clone());
        }
        let reply = api.send(&request).await.map_err(|e| e.error(SWEEP))?;
        let page: ListMultipartUploadsResult = xml::parse(SWEEP, &reply)?;
        let encoded = page.encoding_type.is_some();
        let name = |key: String| if encoded { decode(&key) } else { key };
        for upload in page.upload {
            let key = name(upload.key);
            let ours =
                key.strip_prefix(prefix).is_some_and(|tail| !tail.is_empty() && Key::parse(tail).is_ok());
            // An upload of unknown age may be running.
            if !ours || upload.initiated.is_none_or(|begun| begun > before) {
                continue;
            }
            let request = Request::object(Method::DELETE, &key).query("uploadId", upload.id);
            match api.send(&request).await {
                Ok(_) => swept += 1,
                Err(failure) if failure.reply.code_is(&["NoSuchUpload"]) => {}
                Err(failure) => return Err(failure.error(SWEEP).with("object", key)),
            }
        }
        let next =
            (name(page.next_key_marker.unwrap_or_default()), page.next_upload_id_marker.unwrap_or_default());
        // A store that gives the same page again would never end.
        if !page.is_truncated || next.0.is_empty() || markers.as_ref() == Some(&next) {
            return Ok(swept);
        }
        markers = Some(next);
    }
}
