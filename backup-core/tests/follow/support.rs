//! A log in a temporary directory, and repositories to store it in.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::{
    BackupId, BackupKind, BackupSummary, Event, FollowReport, LogPosition, MemorySink, Observer, Repository,
    Result, Sink, Until,
};
use backup_testkit::{LogFile, LogTarget};
use chrono::{DateTime, TimeDelta, Utc};
use tempfile::TempDir;

pub(crate) const SET: &str = "app/data";
/// More than any test writes.
pub(crate) const ALL: u64 = 1 << 30;

/// Seconds after a moment long past.
pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap() + TimeDelta::seconds(seconds)
}

pub(crate) struct Log {
    pub(crate) file: LogFile,
    _dir: TempDir,
    next: Mutex<i64>,
}

impl Log {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { file: LogFile::create(dir.path()), _dir: dir, next: Mutex::new(0) }
    }

    /// Appends lines, a second apart.
    pub(crate) fn write(&self, lines: usize) {
        let mut next = self.next.lock().unwrap();
        for _ in 0..lines {
            *next += 1;
            self.file.append_at(at(*next), &format!("line {next} of the log, with some text"));
        }
    }
}

pub(crate) fn repository<const N: usize>(sinks: [&dyn Clonable; N]) -> Repository {
    let builder = sinks.iter().fold(Repository::builder(), |b, sink| b.sink(sink.boxed()));
    builder.retries(0, Duration::from_millis(1)).build().unwrap()
}

/// Sinks of several types side by side.
pub(crate) trait Clonable {
    fn boxed(&self) -> Shared;
}

impl<S: Sink + Clone + 'static> Clonable for S {
    fn boxed(&self) -> Shared {
        Shared(Arc::new(self.clone()))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<dyn Sink>);

#[backup_core::async_trait]
impl Sink for Shared {
    fn id(&self) -> &backup_core::SinkId {
        self.0.id()
    }
    async fn create(
        &self,
        key: &backup_core::Key,
        options: backup_core::PutOptions,
    ) -> Result<Box<dyn backup_core::SinkWriter>> {
        self.0.create(key, options).await
    }
    async fn open(
        &self,
        key: &backup_core::Key,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<backup_core::ByteStream> {
        self.0.open(key, range).await
    }
    async fn head(&self, key: &backup_core::Key) -> Result<backup_core::ObjectInfo> {
        self.0.head(key).await
    }
    fn list(
        &self,
        prefix: &backup_core::Key,
    ) -> futures::stream::BoxStream<'static, Result<backup_core::ObjectInfo>> {
        self.0.list(prefix)
    }
    async fn delete(&self, key: &backup_core::Key) -> Result<()> {
        self.0.delete(key).await
    }
}

/// Makes a full backup of the state.
pub(crate) async fn base(repo: &Repository, log: &Log) -> BackupId {
    repo.backup(SET, &log.file.state()).await.unwrap().id
}

/// Stores what is new as one slice.
pub(crate) async fn catch_up(repo: &Repository, log: &Log) -> FollowReport {
    follow(repo, log).await.unwrap()
}

pub(crate) async fn follow(repo: &Repository, log: &Log) -> Result<FollowReport> {
    let source = log.file.source();
    repo.follow(SET, &source).slice(Duration::from_secs(60), ALL).give_up_after(Duration::ZERO).once().await
}

/// The slices that are listed, oldest first, with their ranges.
pub(crate) async fn slices(repo: &Repository) -> Vec<(LogPosition, LogPosition, BackupSummary)> {
    let list = repo.backups(SET).await.unwrap();
    assert!(list.unreadable.is_empty(), "{:?}", list.unreadable);
    let mut slices: Vec<_> = list
        .iter()
        .filter_map(|b| match &b.kind {
            BackupKind::Log { from, to, .. } => Some((from.clone(), to.clone(), b.clone())),
            _ => None,
        })
        .collect();
    slices.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    slices
}

/// What a restore gives.
pub(crate) async fn restored(repo: &Repository, until: impl Into<Until>) -> String {
    let target = LogTarget::new();
    repo.restore(SET).until(until).into(&target).await.unwrap();
    target.text().unwrap()
}

/// Removes a slice or backup from a sink behind the library's back.
pub(crate) async fn lose(sink: &MemorySink, id: BackupId) {
    let of_it: Vec<_> =
        sink.keys().into_iter().filter(|key| key.as_str().contains(&id.to_string())).collect();
    assert!(!of_it.is_empty());
    for key in of_it {
        sink.delete(&key).await.unwrap();
    }
}

/// What was said about gaps: the sink, or `None` for all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gaps(Arc<Mutex<Vec<Gap>>>);

pub(crate) type Gap = (Option<String>, LogPosition, Option<LogPosition>);

impl Gaps {
    pub(crate) fn take(&self) -> Vec<Gap> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Gaps {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::LogGap { from, to, sink, .. } = event {
            let sink = sink.map(ToString::to_string);
            self.0.lock().unwrap().push((sink, (*from).clone(), to.cloned()));
        }
    }
}
