//! Lists of sinks: slow ones are waited for, item by item, and those that end in an error are not taken for whole.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::ops::Range;
use std::time::Duration;

use backup_core::{
    ByteStream, Error, ErrorKind, KeepLast, Key, MemorySink, MemorySource, ObjectInfo, PutOptions,
    Repository, Result, Sink, SinkId, SinkWriter, async_trait,
};
use chrono::{TimeDelta, Utc};
use futures::StreamExt as _;
use futures::stream::BoxStream;

/// Lists an item after each pause, and fails after so many.
#[derive(Clone, Debug)]
struct Slow {
    inner: MemorySink,
    pause: Duration,
    fails_after: usize,
}

#[async_trait]
impl Sink for Slow {
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
        let (pause, fails_after) = (self.pause, self.fails_after);
        let items = self.inner.list(prefix).enumerate().then(move |(n, item)| async move {
            tokio::time::sleep(pause).await;
            if n >= fails_after {
                return Err(Error::new(ErrorKind::Io, "list").message("the rest of the list is lost"));
            }
            item
        });
        items.boxed()
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

const STALL: Duration = Duration::from_millis(250);

async fn with_backups(n: i64) -> MemorySink {
    let sink = MemorySink::new();
    let repository = Repository::builder().sink(sink.clone()).build().unwrap();
    let source = MemorySource::new().artifact("a", "x");
    for day in 0..n {
        let started = Utc::now() - TimeDelta::days(n - day);
        repository.backup(&format!("set{}", day % 2), &source).started_at(started).await.unwrap();
    }
    sink
}

fn over(sink: Slow) -> Repository {
    let builder = Repository::builder().sink(sink).stall_timeout(STALL);
    builder.retries(0, Duration::from_millis(1)).build().unwrap()
}

#[tokio::test]
async fn a_list_may_take_longer_than_one_answer_may() {
    let inner = with_backups(8).await;
    // Six objects in each of eight backups: the whole list takes several times the stall time-out.
    let slow = over(Slow { inner, pause: Duration::from_millis(25), fails_after: usize::MAX });
    assert_eq!(slow.sets().await.unwrap().len(), 2);
    assert_eq!(slow.backups("set0").await.unwrap().len(), 4);
    let report = slow.prune("set0", &KeepLast::new(2)).await.unwrap();
    assert_eq!(report.deleted.len(), 2);
}

#[tokio::test]
async fn a_list_that_stands_still_is_given_up() {
    let inner = with_backups(1).await;
    let still = over(Slow { inner, pause: STALL * 20, fails_after: usize::MAX });
    assert_eq!(still.sets().await.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn a_list_that_ends_in_an_error_is_not_a_shorter_list() {
    let inner = with_backups(8).await;
    let objects = inner.list(&Key::root()).count().await;
    let broken = over(Slow { inner: inner.clone(), pause: Duration::ZERO, fails_after: 10 });
    assert!(broken.sets().await.is_err());
    assert!(broken.backups("set0").await.is_err());
    assert!(broken.prune("set0", &KeepLast::new(1)).allow_mass_delete().await.is_err());
    assert_eq!(inner.list(&Key::root()).count().await, objects, "nothing was deleted");
}
