use std::ops::Range;
use std::sync::Arc;

use backup_core::{
    ByteStream, Key, MemorySink, ObjectInfo, PutOptions, Result, Sink, SinkId, SinkWriter, StoreAddress,
    StoreCopy, async_trait,
};
use futures::stream::BoxStream;

use crate::support::*;

/// A sink that copies nothing by itself, or at which somebody does something before it copies.
#[derive(Clone)]
struct Meanwhile {
    inner: MemorySink,
    before_copy: Option<Deed>,
}

/// What somebody does to the sink before the object of this key is copied.
type Deed = Arc<dyn Fn(&MemorySink, &Key) + Send + Sync>;

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meanwhile({:?})", self.inner)
    }
}

#[async_trait]
impl Sink for Meanwhile {
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
        self.before_copy.as_ref().and_then(|_| self.inner.address(key))
    }
    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        if let Some(before) = &self.before_copy {
            before(&self.inner, to);
        }
        self.inner.copy_from(from, size, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_go_on_at_once_make_two_whole_backups() {
    let content = content();
    let sinks = dead(&[MemorySink::new(), MemorySink::new()], &content, 3).await;
    let (one, two) = (over(sinks.clone()), over(sinks.clone()));
    let ((first, read), (second, again)) = tokio::join!(resume(&one, &content), resume(&two, &content));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_ne!(first.id, second.id);
    // What one of them had finished, the other may have taken over, too.
    assert!(first.adopted >= 3 && second.adopted >= 3);
    assert_eq!((read.len(), again.len()), (ALL - first.adopted, ALL - second.adopted));
    assert_whole(&sinks, &content, first.id, "first").await;
    assert_whole(&sinks, &content, second.id, "second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_cannot_copy_is_copied_through_here() {
    let content = content();
    let dead = dead(&[MemorySink::new()], &content, 4).await.remove(0);
    let sink = Meanwhile { inner: dead.clone(), before_copy: None };
    let (report, read) = resume(&over([sink]), &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read), (4, names(4..ALL)));
    assert_whole(&[dead], &content, report.id, "through here").await;
}

/// Somebody sweeps away the run that died, between any two of the copies.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_swept_away_meanwhile_is_read_from_the_source() {
    let content = content();
    let dead = dead(&[MemorySink::new()], &content, 4).await.remove(0);
    let id = ids(&dead)[0];
    let mut adopted = std::collections::BTreeSet::new();
    for nth in 0..12 {
        let sink = named_fork(&dead);
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let sweep = move |sink: &MemorySink, _: &Key| {
            if calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == nth {
                for name in objects(sink, id) {
                    sink.remove(&Key::parse(format!("{SET}/{id}/{name}")).unwrap());
                }
            }
        };
        let swept = Meanwhile { inner: sink.clone(), before_copy: Some(Arc::new(sweep)) };
        let (report, read) = resume(&over([swept]), &content).await;
        let report = report.unwrap_or_else(|e| panic!("before copy {nth}: {}", e.chain()));
        assert_eq!(report.adopted + read.len(), ALL, "before copy {nth}");
        adopted.insert(report.adopted);
        assert_whole(&[sink], &content, report.id, &format!("before copy {nth}")).await;
    }
    assert!(adopted.len() > 2, "{adopted:?}");
}

/// The run was not dead at all: it ends well after another took over what it had finished.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_only_slow_ends_well_beside_the_one_that_goes_on() {
    let content = content();
    let sink = MemorySink::new();
    let before = {
        let dead = dead(std::slice::from_ref(&sink), &content, 3).await.remove(0);
        for key in dead.keys() {
            sink.replace(&key, dead.get(&key).unwrap());
        }
        named_fork(&dead)
    };
    let (report, _) = resume(&over([sink.clone()]), &content).await;
    let report = report.unwrap();
    assert_eq!(report.adopted, 3);
    // Its marker says that it may be alive: all that it has is still there.
    assert!(before.keys().iter().all(|key| sink.get(key) == before.get(key)));
    assert_whole(&[sink], &content, report.id, "slow").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_somebody_is_clearing_away_is_left_alone() {
    let content = content();
    let sink = dead(&[MemorySink::new()], &content, 3).await.remove(0);
    let id = ids(&sink)[0];
    sink.replace(&Key::parse(format!("{SET}/{id}/condemned/x.json")).unwrap(), "{}");
    let (report, read) = resume(&over([sink.clone()]), &content).await;
    assert_eq!((report.unwrap().adopted, read.len()), (0, ALL));
}
