//! Large objects are read in pieces, ahead and in order.

use std::sync::Arc;

use backup_core::{ErrorKind, Key, ObjectKind, PutOptions, Sink as _, put_bytes};
use backup_s3::ObjectStoreSink;
use backup_testkit::{collect, noise};
use futures::StreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStoreExt as _, PutPayload};

const MIB: usize = 1024 * 1024;

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_are_fetched_ahead_in_order_and_bounded() {
    let config = ThrottleConfig {
        wait_get_per_call: std::time::Duration::from_millis(200),
        ..ThrottleConfig::default()
    };
    let store = ThrottledStore::new(InMemory::new(), config);
    let sink = ObjectStoreSink::builder(Arc::new(store)).read_ahead(4).build().expect("a sink");
    let bytes = noise(40 * MIB + 17, 1);
    put_bytes(&sink, &key("large"), bytes.clone(), PutOptions::overwrite(ObjectKind::Data))
        .await
        .expect("put");
    let begin = std::time::Instant::now();
    let found = collect(sink.open(&key("large"), None).await.expect("open")).await.expect("read");
    assert!(found == bytes);
    // Twenty-one pieces of 2 MiB one after the other would wait 4.2 s.
    let took = begin.elapsed();
    assert!(took < std::time::Duration::from_millis(3500), "{took:?}: not in parallel");
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
