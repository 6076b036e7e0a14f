//! What a probe finds.

use std::fmt;
use std::sync::Arc;

use backup_core::{ErrorKind, Key, Sink as _, Warning};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, http};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::io::BufReader;
use tokio::net::TcpListener;

use crate::servers::{Azurite, s3};

fn codes(warnings: &[Warning]) -> Vec<&str> {
    warnings.iter().map(|warning| warning.code.as_ref()).collect()
}

/// A store that ignores conditions, as some servers do.
#[derive(Debug)]
struct Careless(InMemory);

impl fmt::Display for Careless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Careless")
    }
}

#[backup_core::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        opts.mode = PutMode::Overwrite;
        self.0.put_opts(location, payload, opts).await
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, opts).await
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused() {
    let sink = ObjectStoreSink::builder(Arc::new(Careless(InMemory::new()))).build().expect("a sink");
    let error = sink.probe().await.expect_err("it must not hold a repository");
    assert_eq!(error.kind(), ErrorKind::StoreInadequate);
    assert!(error.to_string().contains("If-None-Match"), "{error}");
    let good = ObjectStoreSink::builder(Arc::new(InMemory::new())).build().expect("a sink");
    assert_eq!(codes(&good.probe().await.expect("probe")), [""; 0]);
    assert_eq!(good.list(&Key::root()).count().await, 0, "a probe leaves nothing that is listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_named() {
    let Some(moto) = Moto::start().await else { return };
    let sink = s3(moto.address()).bucket("absent").build().expect("a sink");
    let error = sink.probe().await.expect_err("there is no bucket");
    assert_eq!(error.kind(), ErrorKind::WrongPlace, "{}", error.chain());
    assert!(error.to_string().contains("bucket does not exist"), "{error}");
    // Nor may it look like an empty place.
    let listed = sink.list(&Key::root()).next().await.expect("an item").expect_err("an error");
    assert_eq!(listed.kind(), ErrorKind::WrongPlace);
    if let Some(azurite) = Azurite::start().await {
        assert_eq!(codes(&azurite.sink("p").probe().await.expect("probe")), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unwise_bucket_settings_are_named() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address()).prefix("backups").build().expect("a sink");
    let before = sink.probe().await.expect("probe");
    assert_eq!(codes(&before), ["versioning-off", "no-abort-rule"]);
    let rules = "<LifecycleConfiguration><Rule><ID>clean</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>\
        <Expiration><Days>30</Days></Expiration><Transition><Days>10</Days><StorageClass>DEEP_ARCHIVE</StorageClass></Transition>\
        <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>\
        </LifecycleConfiguration>";
    let (status, body) = moto.request("PUT", "/tests?lifecycle", &[], rules).await;
    assert_eq!(status, 200, "{body}");
    let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let (status, body) = moto.request("PUT", "/tests?versioning", &[], versioning).await;
    assert_eq!(status, 200, "{body}");
    let after = sink.probe().await.expect("probe");
    assert_eq!(codes(&after), ["lifecycle-expires", "lifecycle-archives"]);
    assert!(after.iter().all(|w| w.message.contains("`clean`")), "{after:?}");
}

#[tokio::test]
async fn a_clock_far_off_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut reader = BufReader::new(&mut client);
            while let Ok(Some(head)) = http::Head::read(&mut reader).await {
                let _ = http::discard(&mut reader, head.length()).await;
                let body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>";
                let _ = http::respond(&mut reader, "403 Forbidden", &[], body).await;
            }
        }
    });
    let sink = s3(address).build().expect("a sink");
    let error = sink.probe().await.expect_err("nothing works");
    assert!(error.to_string().contains("clock"), "{error}");
    server.abort();
}
