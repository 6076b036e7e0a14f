//! `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

use backup_core::{Error, Result};

use crate::sink::ObjectStoreSink;

const OPERATION: &str = "open object store URL";

impl ObjectStoreSink {
    /// Opens a sink by its URL with the environment's configuration: `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `az://container/prefix`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](backup_core::ErrorKind::Unsupported) for a store this build has not the feature of.
    pub fn open_url(url: &str) -> Result<Self> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        match scheme {
            #[cfg(feature = "s3")]
            "s3" | "s3a" => crate::S3Sink::from_url(url)?.build(),
            #[cfg(feature = "gcs")]
            "gs" => crate::GcsSink::from_url(url)?.build(),
            #[cfg(feature = "azure")]
            "az" => crate::AzureSink::from_url(url)?.build(),
            _ => Err(Error::new(backup_core::ErrorKind::Unsupported, OPERATION)
                .message("the URL must begin with s3://, gs:// or az://, and the feature `s3`, `gcs` or `azure` be built in")
                .with("scheme", scheme.escape_debug())),
        }
    }
}

/// Takes a URL apart. It may not hold anything else: a password would end in ids and logs.
#[cfg_attr(
    not(any(feature = "s3", feature = "gcs", feature = "azure")),
    expect(dead_code, reason = "no store with a URL")
)]
pub(crate) fn bucket_and_prefix(url: &str, schemes: &[&str]) -> Result<(String, String)> {
    let refuse = |why: &'static str| Error::invalid(OPERATION, why);
    let (scheme, rest) =
        url.split_once("://").ok_or_else(|| refuse("a URL looks like s3://bucket/prefix"))?;
    if !schemes.contains(&scheme) {
        return Err(refuse("the URL is of another store").with("scheme", scheme.escape_debug()));
    }
    if rest.contains(['@', '?', '#']) {
        return Err(refuse(
            "credentials and settings do not belong in the URL; use the environment, a profile or the builder",
        ));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(refuse("the URL names no bucket"));
    }
    Ok((bucket.to_owned(), prefix.trim_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_bucket_and_a_prefix_and_nothing_else() {
        let parse = |url: &str| bucket_and_prefix(url, &["s3"]);
        assert_eq!(parse("s3://b").unwrap(), ("b".into(), String::new()));
        assert_eq!(parse("s3://b/a/c/").unwrap(), ("b".into(), "a/c".into()));
        for bad in ["s3:/b", "gs://b", "s3://", "s3:///x", "s3://id:secret@b/x", "s3://b?key=secret"] {
            let error = parse(bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
