//! Runs that die after some artifacts, and a count of what is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::{
    AesGcm, Artifact, ArtifactFormat, ArtifactMeta, BackupId, BackupReport, Bytes, CheckReport, Error,
    ErrorKind, Finished, Gzip, Key, Keyring, MemorySink, MemorySource, MemoryTarget, Outcome, Repository,
    Result, Sink, Snapshot, SnapshotRequest, Source, SourceReport, async_trait,
};
use backup_testkit::noise;
use chrono::{TimeDelta, Utc};
use futures::StreamExt as _;

pub(crate) const SET: &str = "app/data";
/// Artifacts of [`content`].
pub(crate) const ALL: usize = 5;

/// Five artifacts: one with an index, one that is empty.
pub(crate) fn content() -> BTreeMap<String, Bytes> {
    let sizes = [70_000, 5_000_000, 0, 1, 300_000];
    let named = |(n, size): (usize, usize)| (format!("part{n}"), noise(size, n as u64));
    sizes.into_iter().enumerate().map(named).collect()
}

pub(crate) fn source(content: &BTreeMap<String, Bytes>) -> MemorySource {
    content.iter().fold(MemorySource::new(), |source, (name, bytes)| {
        let meta = ArtifactMeta::new(name.clone(), ArtifactFormat::BYTES).independent();
        source.artifact_with(meta, bytes.clone())
    })
}

pub(crate) fn ring(keys: &[u8]) -> Keyring {
    keys.iter().fold(Keyring::builder(), |ring, key| ring.key([*key; 32])).build().unwrap()
}

/// An encrypted repository.
pub(crate) fn over<S: Sink + 'static>(sinks: impl IntoIterator<Item = S>) -> Repository {
    let builder = sinks.into_iter().fold(Repository::builder(), backup_core::RepositoryBuilder::sink);
    let builder = builder.transform(Gzip::default()).transform(AesGcm::new(ring(&[1])));
    builder.retries(0, Duration::from_millis(1)).build().unwrap()
}

/// Counts what is read of a source, and dies on demand.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    inner: MemorySource,
    /// Fails when so many artifacts were given.
    dies_after: usize,
    /// What lies on these sinks at that moment is what a process killed then would leave.
    sinks: Vec<MemorySink>,
    pub(crate) remains: Arc<Mutex<Vec<MemorySink>>>,
    /// The artifacts of which a stream was polled.
    read: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    pub(crate) fn new(inner: MemorySource) -> Self {
        let (remains, read) = (Arc::default(), Arc::default());
        Self { inner, dies_after: usize::MAX, sinks: Vec::new(), remains, read }
    }

    /// One that fails when `after` artifacts were given.
    pub(crate) fn dying(inner: MemorySource, after: usize) -> Self {
        Self { dies_after: after, ..Self::new(inner) }
    }

    pub(crate) fn read(&self) -> Vec<String> {
        self.read.lock().unwrap().clone()
    }
}

struct WatchedSnapshot {
    inner: Box<dyn Snapshot>,
    given: usize,
    watched: Watched,
}

#[async_trait]
impl Source for Watched {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let inner = self.inner.snapshot(request).await?;
        Ok(Box::new(WatchedSnapshot { inner, given: 0, watched: self.clone() }))
    }
    async fn unchanged(&self, request: SnapshotRequest<'_>) -> Result<Vec<usize>> {
        self.inner.unchanged(request).await
    }
}

#[async_trait]
impl Snapshot for WatchedSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        if self.given == self.watched.dies_after {
            // Those before are stored: one is open at a time.
            *self.watched.remains.lock().unwrap() = self.watched.sinks.iter().map(named_fork).collect();
            return Err(Error::new(ErrorKind::SourceFailed, "read source").message("the run dies here"));
        }
        self.given += 1;
        let Some(Artifact { meta, data }) = self.inner.next().await? else { return Ok(None) };
        let (name, read) = (meta.name.to_string(), Arc::clone(&self.watched.read));
        let note = futures::stream::once(async move {
            read.lock().unwrap().push(name);
            data
        });
        Ok(Some(Artifact { meta, data: note.flatten().boxed() }))
    }
    fn finished(&mut self, artifact: &str) -> Option<Finished> {
        self.inner.finished(artifact)
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        self.inner.finish().await
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.inner.close(outcome).await
    }
}

/// A copy of a sink as it is now, under its name.
pub(crate) fn named_fork(sink: &MemorySink) -> MemorySink {
    let copy = MemorySink::named(sink.id().to_string());
    for key in sink.keys() {
        copy.replace(&key, sink.get(&key).unwrap());
    }
    copy
}

/// Runs a backup that dies when `after` artifacts are finished. Returns what a kill leaves on `sinks`; on themselves lies
/// what a failure leaves.
pub(crate) async fn dead(
    sinks: &[MemorySink],
    content: &BTreeMap<String, Bytes>,
    after: usize,
) -> Vec<MemorySink> {
    let watched = Watched { sinks: sinks.to_vec(), ..Watched::dying(source(content), after) };
    let error = over(sinks.to_vec())
        .backup(SET, &watched)
        .resume()
        // The order of ids within one second is not that of the runs.
        .started_at(Utc::now() - TimeDelta::minutes(10 - i64::try_from(after).unwrap()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceFailed, "{}", error.chain());
    watched.remains.lock().unwrap().clone()
}

/// The names of the first artifacts, or of those after them.
pub(crate) fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("part{n}")).collect()
}

/// What is listed is whole on every sink alone, restores to `content`, and has nothing in its directory but what belongs
/// there.
pub(crate) async fn assert_whole(
    sinks: &[MemorySink],
    content: &BTreeMap<String, Bytes>,
    id: BackupId,
    case: &str,
) {
    for sink in sinks {
        let repo = over([sink.clone()]);
        let list = repo.backups(SET).await.unwrap();
        assert!(list.unreadable.is_empty(), "{case}: {:?}", list.unreadable);
        assert!(list.iter().any(|backup| backup.id == id), "{case}: {id} is not on {}", sink.id());
        for backup in list.iter() {
            let report = repo.verify(SET, backup.id).await.unwrap();
            assert!(report.is_intact(), "{case}: {:?}", report.problems);
            let target = MemoryTarget::new();
            repo.restore(SET).id(backup.id).into(&target).await.unwrap();
            assert_eq!(target.names(), content.keys().cloned().collect::<Vec<_>>(), "{case}");
            assert!(content.iter().all(|(name, bytes)| target.get(name).as_ref() == Some(bytes)), "{case}");
        }
        let extra: Vec<_> = objects(sink, id).into_iter().filter(|name| name.contains("finished")).collect();
        assert!(extra.is_empty(), "{case}: {extra:?}");
    }
}

/// The objects in the directory of a run.
pub(crate) fn objects(sink: &MemorySink, id: BackupId) -> Vec<String> {
    let dir = Key::parse(format!("{SET}/{id}")).unwrap();
    sink.keys().iter().filter_map(|key| key.strip_prefix(&dir)).map(|key| key.to_string()).collect()
}

/// The runs that have a directory on a sink.
pub(crate) fn ids(sink: &MemorySink) -> Vec<BackupId> {
    let set = Key::parse(SET).unwrap();
    let mut ids: Vec<BackupId> = sink
        .keys()
        .iter()
        .filter_map(|key| key.strip_prefix(&set)?.segments().next()?.parse().ok())
        .collect();
    ids.dedup();
    ids
}

/// Backs up with `resume`, and says what was read.
pub(crate) async fn resume(
    repo: &Repository,
    content: &BTreeMap<String, Bytes>,
) -> (Result<BackupReport>, Vec<String>) {
    let watched = Watched::new(source(content));
    let report = repo.backup(SET, &watched).resume().await;
    (report, watched.read())
}
