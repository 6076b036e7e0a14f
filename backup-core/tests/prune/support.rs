//! Sets to prune.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use backup_core::{
    Artifact, BackupId, BackupSummary, ByteStream, CheckReport, Decision, Item, Key, MemorySink,
    MemorySource, ObjectInfo, Outcome, PutOptions, Repository, Result, RetentionPolicy, Sink, SinkId,
    SinkWriter, Snapshot, SnapshotRequest, Source, SourceReport, async_trait,
};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use futures::TryStreamExt as _;
use futures::stream::BoxStream;

pub(crate) const SET: &str = "app/data";

/// The moment `days` after the beginning of the tests' calendar, which lies 60 days back: markers of running backups
/// are written by the real clock.
pub(crate) fn at(days: i64) -> DateTime<Utc> {
    static BEGIN: LazyLock<DateTime<Utc>> =
        LazyLock::new(|| Utc::now().trunc_subsecs(0) - TimeDelta::days(60));
    *BEGIN + TimeDelta::days(days)
}

/// Now, by the same calendar.
pub(crate) const TODAY: i64 = 60;

pub(crate) fn repository<const N: usize>(sinks: [&MemorySink; N]) -> Repository {
    let builder = sinks.iter().fold(Repository::builder(), |b, sink| b.sink((*sink).clone()));
    builder.retries(0, Duration::from_millis(1)).build().unwrap()
}

pub(crate) async fn full(repo: &Repository, day: i64) -> BackupId {
    let source = MemorySource::new().artifact("big", vec![7; 5000]).artifact("small", format!("day {day}"));
    repo.backup(SET, &source).started_at(at(day)).await.unwrap().id
}

/// An incremental on the newest backup that [`Chained`] made, or a full.
pub(crate) async fn chained(repo: &Repository, day: i64) -> BackupId {
    let name = format!("part{day}");
    repo.backup(SET, &Chained::new(name)).incremental().started_at(at(day)).await.unwrap().id
}

/// A sink with a daily full backup on each of `days`.
pub(crate) async fn daily(days: Range<i64>) -> (MemorySink, Vec<BackupId>) {
    let sink = MemorySink::new();
    let repo = repository([&sink]);
    let mut ids = Vec::new();
    for day in days {
        ids.push(full(&repo, day).await);
    }
    (sink, ids)
}

/// The backups with a manifest on a sink, oldest first.
pub(crate) fn held(sink: &MemorySink) -> Vec<BackupId> {
    let set = Key::parse(SET).unwrap();
    let manifest = |key: &Key| key.file_name() == "manifest.json";
    sink.keys().iter().filter(|key| manifest(key)).filter_map(|key| id_of(&set, key)).collect()
}

/// Every id that has an object on a sink.
pub(crate) fn traces(sink: &MemorySink) -> BTreeSet<BackupId> {
    let set = Key::parse(SET).unwrap();
    sink.keys().iter().filter_map(|key| id_of(&set, key)).collect()
}

fn id_of(set: &Key, key: &Key) -> Option<BackupId> {
    key.strip_prefix(set)?.segments().next()?.parse().ok()
}

pub(crate) fn object(id: BackupId, name: &str) -> Key {
    Key::parse(format!("{SET}/{id}/{name}")).unwrap()
}

/// No marker of a pruner and no half of a backup is left.
pub(crate) fn assert_tidy(sink: &MemorySink) {
    assert_eq!(traces(sink).into_iter().collect::<Vec<_>>(), held(sink));
    assert!(!sink.keys().iter().any(|key| key.as_str().contains("/condemned/")), "{:?}", sink.keys());
}

/// Every backup that a repository of this sink alone lists is whole, and so is everything it refers to.
pub(crate) async fn assert_whole(sink: &MemorySink) {
    let repo = repository([sink]);
    let list = repo.backups(SET).await.unwrap();
    assert!(list.unreadable.is_empty(), "{:?}", list.unreadable);
    let ids: BTreeSet<_> = list.iter().map(|b| b.id).collect();
    for backup in list.iter() {
        let report = repo.verify(SET, backup.id).await.unwrap();
        assert!(report.is_intact(), "{}: {:?}", backup.id, report.problems);
        for needed in backup.needs() {
            assert!(ids.contains(&needed), "{} needs {needed}, which is gone", backup.id);
        }
    }
}

/// A pending marker as a run writes it.
pub(crate) fn pending(id: BackupId, parent: Option<BackupId>, expires: DateTime<Utc>) -> String {
    let parent = parent.map_or(String::new(), |parent| format!(r#""parent":"{parent}","#));
    format!(r#"{{"format":1,"set":"{SET}","id":"{id}",{parent}"expires":"{}"}}"#, expires.to_rfc3339())
}

/// Forgets everything.
#[derive(Debug)]
pub(crate) struct ForgetAll;

impl RetentionPolicy for ForgetAll {
    fn decide(
        &self,
        newest_first: &[BackupSummary],
        _: DateTime<Utc>,
    ) -> std::collections::BTreeMap<BackupId, Decision> {
        newest_first.iter().map(|b| (b.id, Decision::Forget)).collect()
    }
}

/// One new artifact, and everything of the parent by reference.
#[derive(Debug)]
pub(crate) struct Chained(MemorySource);

impl Chained {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self(MemorySource::new().artifact(name.into(), vec![3; 2000]))
    }
}

struct ChainedSnapshot {
    inner: Box<dyn Snapshot>,
    inherited: Option<BoxStream<'static, Result<Item>>>,
}

#[async_trait]
impl Source for Chained {
    fn kind(&self) -> &'static str {
        "chained"
    }
    async fn check(&self) -> Result<CheckReport> {
        self.0.check().await
    }
    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let inherited = request.parent.map(backup_core::ParentReader::items);
        Ok(Box::new(ChainedSnapshot { inner: self.0.snapshot(request).await?, inherited }))
    }
}

#[async_trait]
impl Snapshot for ChainedSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        self.inner.next().await
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        let mut report = self.inner.finish().await?;
        if let Some(mut items) = self.inherited.take() {
            while let Some(item) = items.try_next().await? {
                if let Some(sha256) = &item.sha256 {
                    let proof = backup_core::whole_proof(&item.artifact, sha256);
                    report.proofs.entry(backup_core::WHOLE_BYTES.to_owned()).or_default().merge(&proof);
                }
                report.items.push(&item)?;
            }
        }
        Ok(report)
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.inner.close(outcome).await
    }
}

/// Lets other tasks in before every call, for a while that differs from call to call and seed to seed.
#[derive(Debug)]
pub(crate) struct Jitter {
    inner: MemorySink,
    state: AtomicU64,
}

impl Jitter {
    pub(crate) fn new(inner: &MemorySink, seed: u64) -> Self {
        Self { inner: inner.clone(), state: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1) }
    }

    async fn wait(&self) {
        let mut x = self.state.load(Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.store(x, Relaxed);
        tokio::time::sleep(Duration::from_millis(x % 7)).await;
    }
}

#[async_trait]
impl Sink for Jitter {
    fn id(&self) -> &SinkId {
        self.inner.id()
    }
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        self.wait().await;
        self.inner.create(key, options).await
    }
    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        self.wait().await;
        self.inner.open(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.wait().await;
        self.inner.head(key).await
    }
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        self.inner.list(prefix)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.wait().await;
        self.inner.delete(key).await
    }
}
