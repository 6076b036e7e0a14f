//! Replication between sinks of one store: the store copies, and nothing it copied counts unverified.
#![expect(clippy::unwrap_used, reason = "in a test's helpers, too, a panic is the failure")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backup_core::{
    BackupId, ByteStream, Digest, Error, ErrorKind, Key, MemorySink, MemorySource, MemoryTarget, ObjectInfo,
    PutOptions, Replica, Repository, Result, Sink, SinkId, SinkWriter, StoreAddress, StoreCopy, async_trait,
};
use backup_testkit::{Operation, RecordingSink, noise};
use futures::stream::BoxStream;

const SET: &str = "app/data";
const LARGE: usize = 4_400_000;

/// What a store does when it is asked for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Says the digest of what it wrote.
    Digested,
    /// Says nothing.
    Silent,
    /// Flips a bit of the copy and says nothing.
    Damaging,
    /// Flips a bit, and never answers.
    DamagingAndSilentForEver,
    Refusing,
}

/// A bucket of a store with two of them.
#[derive(Clone, Debug)]
struct Bucket {
    inner: MemorySink,
    /// The other one, where copies come from.
    other: MemorySink,
    way: Way,
    copies: Arc<AtomicUsize>,
}

fn bucket(inner: &MemorySink, other: &MemorySink, way: Way) -> Bucket {
    Bucket { inner: inner.clone(), other: other.clone(), way, copies: Arc::default() }
}

#[async_trait]
impl Sink for Bucket {
    fn id(&self) -> &SinkId {
        self.inner.id()
    }
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        self.inner.create(key, options).await
    }
    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        self.inner.open(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.inner.head(key).await
    }
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        self.inner.list(prefix)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
    fn address(&self, key: &Key) -> Option<StoreAddress> {
        Some(StoreAddress { store: "store".to_owned(), object: format!("{} {key}", self.id()) })
    }
    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        _options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        self.copies.fetch_add(1, Ordering::SeqCst);
        let (id, key) = from.object.split_once(' ').unwrap();
        assert_eq!((from.store.as_str(), id), ("store", self.other.id().as_str()));
        if self.way == Way::Refusing {
            return Err(Error::new(ErrorKind::PermissionDenied, "copy object"));
        }
        let mut bytes = self.other.get(&Key::parse(key).unwrap()).unwrap().to_vec();
        assert_eq!(bytes.len() as u64, size);
        if matches!(self.way, Way::Damaging | Way::DamagingAndSilentForEver) {
            bytes[1000] ^= 1;
        }
        let sha256 = (self.way == Way::Digested).then(|| Digest::of(&bytes));
        self.inner.replace(to, bytes);
        if self.way == Way::DamagingAndSilentForEver {
            std::future::pending::<()>().await;
        }
        Ok(Some(StoreCopy { sha256 }))
    }
}

fn source() -> MemorySource {
    MemorySource::new().artifact("big", noise(LARGE, 1)).artifact("small", "hello").artifact("none", "")
}

fn over<S: Sink + 'static>(sinks: impl IntoIterator<Item = S>) -> Repository {
    let mut builder = Repository::builder();
    for sink in sinks {
        builder = builder.sink(sink);
    }
    builder
        .require_copies(1)
        .stall_timeout(Duration::from_secs(20))
        .retries(0, Duration::from_millis(1))
        .build()
        .unwrap()
}

async fn pair() -> (MemorySink, MemorySink, BackupId) {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let id = over([a.clone()]).backup(SET, &source()).await.unwrap().id;
    (a, b, id)
}

fn big(sink: &MemorySink) -> Key {
    sink.keys().into_iter().find(|key| key.as_str().ends_with("/big.bin")).unwrap()
}

async fn holds_it_whole(b: &MemorySink, id: BackupId) {
    let alone = over([b.clone()]);
    assert!(alone.verify(SET, id).await.unwrap().is_intact());
    let target = MemoryTarget::new();
    alone.restore(SET).latest().into(&target).await.unwrap();
    assert_eq!(target.get("big").unwrap(), noise(LARGE, 1));
}

/// Replicates from a to b; returns what became of b, and how often b was written and read by key.
async fn replicate(a: &MemorySink, b: &MemorySink, id: BackupId, way: Way) -> (Replica, Vec<Operation>) {
    let (from, to) = (bucket(a, b, way), RecordingSink::new(bucket(b, a, way)));
    // Two kinds of sinks: share them as one.
    let sinks: [Arc<dyn Sink>; 2] = [Arc::new(from), Arc::new(to.clone())];
    let report = over(sinks).replicate(SET, id).await.unwrap();
    assert!(report.is_whole());
    let replica = report.replicas.into_iter().find(|r| r.sink == *b.id()).unwrap();
    let key = big(a);
    let calls = to.records().into_iter().filter(|record| record.key == key).map(|record| record.operation);
    (replica, calls.filter(|call| *call != Operation::Read && *call != Operation::Write).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_digest_the_store_computed_is_neither_written_nor_read() {
    let (a, b, id) = pair().await;
    let (replica, calls) = replicate(&a, &b, id, Way::Digested).await;
    assert_eq!(calls, [Operation::CopyFrom]);
    assert_eq!(replica.copied_by_store, LARGE as u64, "what is small is streamed");
    assert_eq!(replica.bytes, b.total_bytes());
    holds_it_whole(&b, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_a_digest_is_read_back() {
    let (a, b, id) = pair().await;
    let (replica, calls) = replicate(&a, &b, id, Way::Silent).await;
    assert_eq!(calls, [Operation::CopyFrom, Operation::Open]);
    assert_eq!(replica.copied_by_store, LARGE as u64);
    holds_it_whole(&b, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_came_out_wrong_or_was_refused_is_streamed() {
    for (way, calls) in [
        (Way::Damaging, vec![Operation::CopyFrom, Operation::Open, Operation::Create, Operation::Finish]),
        (Way::Refusing, vec![Operation::CopyFrom, Operation::Create, Operation::Finish]),
    ] {
        let (a, b, id) = pair().await;
        let (replica, seen) = replicate(&a, &b, id, way).await;
        assert_eq!(seen, calls, "{way:?}");
        assert_eq!(replica.copied_by_store, 0);
        holds_it_whole(&b, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_in_the_store_comes_from_another_copy() {
    for way in [Way::Digested, Way::Silent] {
        let (a, b, id) = pair().await;
        let c = a.fork();
        let elsewhere = MemorySink::named("c");
        for key in c.keys() {
            elsewhere.replace(&key, c.get(&key).unwrap());
        }
        assert!(a.damage(&big(&a), |bytes| bytes[2_000_000] ^= 1));
        let sinks: [Arc<dyn Sink>; 3] =
            [Arc::new(bucket(&a, &b, way)), Arc::new(bucket(&b, &a, way)), Arc::new(elsewhere)];
        let report = over(sinks).replicate(SET, id).to(b.id()).await.unwrap();
        assert!(report.is_whole());
        assert_eq!(report.replicas[0].copied_by_store, 0);
        holds_it_whole(&b, id).await;
    }
}

/// The copy has the right size: what takes objects of the right size for good must not be led to take this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_nobody_verified_before_the_run_died_is_read_by_the_next() {
    let (a, b, id) = pair().await;
    let way = Way::DamagingAndSilentForEver;
    let dying = over([bucket(&a, &b, way), bucket(&b, &a, way)]);
    let run = tokio::spawn(async move { dying.replicate(SET, id).await.map(drop) });
    let key = big(&a);
    while b.get(&key).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    assert!(b.get(&key) != a.get(&key));

    // One that dies before it could heal anything must not make this forgotten.
    let between = backup_testkit::FaultySink::new(b.clone());
    between.arm(backup_testkit::Rule::nth(2).on(Operation::Create).times(u64::MAX));
    let sinks: [Arc<dyn Sink>; 2] = [Arc::new(a.clone()), Arc::new(between)];
    over(sinks).replicate(SET, id).await.unwrap_err();
    assert!(b.get(&key) != a.get(&key), "it is still the wrong one");

    let report = over([a.clone(), b.clone()]).replicate(SET, id).await.unwrap();
    assert!(report.is_whole());
    assert_eq!(b.get(&key), a.get(&key));
    holds_it_whole(&b, id).await;
}

/// It might replace what is streamed in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_be_copying_still_is_not_written_to() {
    let (a, b, id) = pair().await;
    let way = Way::DamagingAndSilentForEver;
    let to = RecordingSink::new(bucket(&b, &a, way));
    let sinks: [Arc<dyn Sink>; 2] = [Arc::new(bucket(&a, &b, way)), Arc::new(to.clone())];
    let mut builder = Repository::builder().require_copies(1).stall_timeout(Duration::from_millis(200));
    for sink in sinks {
        builder = builder.sink(sink);
    }
    let error = builder.build().unwrap().replicate(SET, id).await.unwrap_err();
    assert!(error.chain().contains("did not answer in time"), "{}", error.chain());
    let key = big(&a);
    assert!(!to.records().iter().any(|record| record.key == key && record.operation == Operation::Create));
    assert!(over([b.clone()]).backups(SET).await.unwrap().is_empty());
    assert!(over([a.clone(), b.clone()]).replicate(SET, id).await.unwrap().is_whole());
    holds_it_whole(&b, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_of_other_stores_are_not_asked() {
    let (a, b, id) = pair().await;
    let to = bucket(&b, &a, Way::Digested);
    let sinks: [Arc<dyn Sink>; 2] = [Arc::new(a), Arc::new(to.clone())];
    assert!(over(sinks).replicate(SET, id).await.unwrap().is_whole());
    assert_eq!(to.copies.load(Ordering::SeqCst), 0);
    holds_it_whole(&b, id).await;
}
