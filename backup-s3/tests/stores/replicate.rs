//! Copies the store makes for `replicate`, and what moves through us meanwhile.

use std::sync::Arc;

use backup_core::{
    BackupId, Key, MemorySink, MemorySource, MemoryTarget, ObjectKind, PutOptions, Repository, Sink,
    put_bytes, read_bytes,
};
use backup_s3::ObjectStoreSink;
use backup_testkit::{FaultProxy, FaultSchedule, Moto, noise};

use crate::servers::s3;

const MIB: usize = 1024 * 1024;
const LARGE: usize = 20 * MIB;
/// Requests, listings and small objects of one replication, in bytes.
const SMALL_TALK: u64 = 512 * 1024;

/// A server with two buckets, behind a proxy that counts.
async fn counted() -> Option<(Moto, FaultProxy)> {
    let moto = Moto::start().await?;
    for bucket in ["tests", "second"] {
        moto.bucket(bucket).await;
    }
    let proxy = FaultProxy::start(moto.address(), FaultSchedule::new(0).percent(0)).await;
    Some((moto, proxy))
}

fn sinks(proxy: &FaultProxy, digests: bool) -> [ObjectStoreSink; 2] {
    ["tests", "second"].map(|bucket| {
        s3(proxy.address()).bucket(bucket).prefix("books").copy_digests(digests).build().expect("a sink")
    })
}

fn over<const N: usize>(sinks: [Arc<dyn Sink>; N]) -> Repository {
    let mut builder = Repository::builder().memory_budget(128 * MIB).require_copies(1);
    for sink in sinks {
        builder = builder.sink(sink);
    }
    builder.build().expect("a repository")
}

async fn backed_up(sink: &ObjectStoreSink) -> BackupId {
    let source = MemorySource::new().artifact("large", noise(LARGE, 1)).artifact("small", "x");
    over([Arc::new(sink.clone())]).backup("set", &source).await.expect("a backup").id
}

fn large(id: BackupId) -> Key {
    Key::parse(format!("set/{id}/large.bin")).expect("a key")
}

async fn stands_alone(sink: &ObjectStoreSink, id: BackupId) {
    let alone = over([Arc::new(sink.clone())]);
    assert!(alone.verify("set", id).await.expect("verify").is_intact());
    let target = MemoryTarget::new();
    alone.restore("set").latest().into(&target).await.expect("restore");
    assert!(target.get("large").expect("the artifact") == noise(LARGE, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_buckets_of_one_store_no_data_moves_through_us() {
    let Some((_moto, proxy)) = counted().await else { return };
    let [first, second] = sinks(&proxy, true);
    let id = backed_up(&first).await;
    let (sent, received) = (proxy.sent(), proxy.received());
    let report = over([Arc::new(first), Arc::new(second.clone())]).replicate("set", id).await;
    let report = report.expect("replicate");
    let (sent, received) = (proxy.sent() - sent, proxy.received() - received);
    assert!(sent < SMALL_TALK && received < SMALL_TALK, "{sent} bytes sent, {received} received");
    let replica = report.replicas.iter().find(|r| r.sink == *second.id()).expect("the copy");
    assert!(replica.whole && replica.copied_by_store == LARGE as u64, "{replica:?}");
    stands_alone(&second, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_known_to_compute_digests_is_read_back_and_not_written() {
    let Some((_moto, proxy)) = counted().await else { return };
    let [first, second] = sinks(&proxy, false);
    let id = backed_up(&first).await;
    let (sent, received) = (proxy.sent(), proxy.received());
    let report = over([Arc::new(first), Arc::new(second.clone())]).replicate("set", id).await;
    assert_eq!(report.expect("replicate").replicas[1].copied_by_store, LARGE as u64);
    let (sent, received) = (proxy.sent() - sent, proxy.received() - received);
    assert!(sent < SMALL_TALK, "{sent} bytes sent");
    assert!(received > LARGE as u64 && received < LARGE as u64 + SMALL_TALK, "{received} bytes received");
    stands_alone(&second, id).await;
}

/// moto repeats the digest it remembers of the original, unless asked to compute it anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_original_is_noticed_and_the_copy_comes_from_elsewhere() {
    let Some((_moto, proxy)) = counted().await else { return };
    for (number, digests) in [true, false].into_iter().enumerate() {
        let prefix = format!("round-{number}");
        let [first, second] = ["tests", "second"].map(|bucket| {
            let sink = s3(proxy.address()).bucket(bucket).prefix(&prefix).copy_digests(digests);
            sink.build().expect("a sink")
        });
        let id = backed_up(&first).await;
        let elsewhere = MemorySink::named("elsewhere");
        let both = over([Arc::new(first.clone()), Arc::new(elsewhere.clone())]);
        both.replicate("set", id).await.expect("a copy elsewhere");
        let mut wrong = noise(LARGE, 1).to_vec();
        wrong[LARGE / 2] ^= 1;
        put_bytes(&first, &large(id), wrong.into(), PutOptions::overwrite(ObjectKind::Data))
            .await
            .expect("damage");

        let all = over([Arc::new(first), Arc::new(elsewhere), Arc::new(second.clone())]);
        let report = all.replicate("set", id).to(second.id()).await.expect("replicate");
        assert_eq!(report.replicas[0].copied_by_store, 0, "digests: {digests}");
        stands_alone(&second, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_to_copy_is_streamed() {
    let Some((moto, proxy)) = counted().await else { return };
    // Its own bucket is not where the other says it is.
    let [first, _] = sinks(&proxy, true);
    let id = backed_up(&first).await;
    let elsewhere = s3(moto.address()).bucket("second").prefix("books").build().expect("a sink");
    let (from, to) = (first.address(&large(id)), elsewhere.address(&large(id)));
    assert_ne!(from.expect("an address").store, to.expect("an address").store, "another endpoint");
    let report = over([Arc::new(first), Arc::new(elsewhere.clone())]).replicate("set", id).await;
    assert_eq!(report.expect("replicate").replicas[1].copied_by_store, 0);
    stands_alone(&elsewhere, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefixes_of_any_store_are_one_store() {
    let bucket = Arc::new(object_store::memory::InMemory::new());
    let [first, second] = ["a", "b"].map(|prefix| {
        let sink = ObjectStoreSink::builder(bucket.clone()).prefix(prefix).multipart(bucket.clone());
        sink.build().expect("a sink")
    });
    let key = Key::parse("x/large").expect("a key");
    put_bytes(&first, &key, "bytes".into(), PutOptions::overwrite(ObjectKind::Data)).await.expect("put");
    let from = first.address(&key).expect("an address");
    let options = PutOptions::overwrite(ObjectKind::Data);
    let copy = second.copy_from(&from, 5, &key, options.clone()).await.expect("copy").expect("one store");
    assert_eq!(copy.sha256, None, "nobody computed it");
    assert_eq!(read_bytes(&second, &key, 100).await.expect("read"), "bytes");

    let other = ObjectStoreSink::builder(Arc::new(object_store::memory::InMemory::new())).build();
    let other = other.expect("a sink");
    assert!(other.copy_from(&from, 5, &key, options).await.expect("no error").is_none(), "another store");
    let new = PutOptions::create_new(ObjectKind::Data);
    let renamed = Key::parse("x/new").expect("a key");
    assert!(second.copy_from(&from, 5, &renamed, new).await.expect("no error").is_none(), "create-new");
}
