//! Large objects are read in pieces, ahead and in order.

use std::fmt;
use std::sync::Arc;

use backup_core::{ErrorKind, Key, ObjectKind, PutOptions, Sink as _, async_trait, put_bytes};
use backup_s3::ObjectStoreSink;
use backup_testkit::{collect, noise};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutPayload, PutResult, Result,
};
use tokio::sync::watch;

const MIB: usize = 1024 * 1024;

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key")
}

/// A store that lets the reads after the first go on only once so many of them have begun.
#[derive(Debug)]
struct Together {
    inner: InMemory,
    count: usize,
    begun: watch::Sender<usize>,
}

impl fmt::Display for Together {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Together")
    }
}

#[async_trait]
impl ObjectStore for Together {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: object_store::PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(at, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let mut number = 0;
        self.begun.send_modify(|begun| {
            number = *begun;
            *begun += 1;
        });
        if (1..=self.count).contains(&number) {
            let all = self.begun.subscribe().wait_for(|begun| *begun > self.count).await.map(drop);
            all.expect("the sender lives");
        }
        self.inner.get_opts(at, options).await
    }
    fn delete_stream(&self, all: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(all)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_are_fetched_ahead_in_order_and_bounded() {
    let (inner, begun) = (InMemory::new(), watch::Sender::new(0));
    let store = Arc::new(Together { inner, count: 4, begun });
    let sink = ObjectStoreSink::builder(Arc::clone(&store) as _).read_ahead(4).build().expect("a sink");
    let bytes = noise(40 * MIB + 17, 1);
    put_bytes(&sink, &key("large"), bytes.clone(), PutOptions::overwrite(ObjectKind::Data))
        .await
        .expect("put");
    let mut reading = sink.open(&key("large"), None).await.expect("open");
    let first = reading.next().await.expect("an item").expect("the first piece");
    let fetched = async {
        let found = reading.next().await.expect("an item").expect("the second piece");
        // Nobody reads on: however long that takes, no more than this is fetched.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        (found, *store.begun.borrow())
    };
    let (second, begun) =
        tokio::time::timeout(std::time::Duration::from_secs(60), fetched).await.expect("not in parallel");
    assert!(begun <= 1 + 4 + 1, "{begun} pieces were asked for when the second was read");
    let rest = collect(reading).await.expect("read");
    assert!([first, second, rest].concat() == bytes);
    let range = 5 * MIB as u64 + 3..31 * MIB as u64 - 1;
    let part =
        collect(sink.open(&key("large"), Some(range.clone())).await.expect("open")).await.expect("read");
    assert!(part == bytes[5 * MIB + 3..31 * MIB - 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_while_it_is_read_is_an_error_and_not_a_mixture() {
    let store = Arc::new(InMemory::new());
    let sink = ObjectStoreSink::builder(Arc::clone(&store) as _).read_ahead(1).build().expect("a sink");
    put_bytes(&sink, &key("x"), noise(20 * MIB, 1), PutOptions::overwrite(ObjectKind::Data))
        .await
        .expect("put");
    let mut stream = sink.open(&key("x"), None).await.expect("open");
    stream.next().await.expect("an item").expect("the first piece");
    store.put(&Path::from("x"), PutPayload::from(vec![0; 20 * MIB])).await.expect("replace");
    let mut error = None;
    while let Some(item) = stream.next().await {
        error = item.err();
    }
    assert_eq!(error.expect("an error").kind(), ErrorKind::Corrupt);
}
