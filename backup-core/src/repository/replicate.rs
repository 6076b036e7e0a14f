//! The replicate verb: every copy whole, on every sink that is to have one.
//!
//! Per backup: what each sink lacks is found out, a marker keeps pruners away, key wraps and objects are copied and
//! verified on the way, and the manifest is written last. A run that dies leaves objects without a manifest; the next
//! run finds them and goes on.

mod copy;
mod inspect;
mod report;
mod ring;
mod store_copy;
mod wraps;

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

pub(super) use inspect::{Part, parts};

use super::catalog::{Catalog, Opened};
use super::{Inner, Repository};
use crate::engine::fanout::Numbered;
use crate::engine::feed::RateLimit;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::{Event, Observer};
use crate::sink::Sink;

pub(super) use wraps::open as open_wrap;

pub use report::{Replica, ReplicateFailure, ReplicateReport};
pub(super) use store_copy::copy_by_store;

/// A replication to be made: set options, then await.
///
/// Objects are verified on their way. Where two sinks share a store that can copy by itself, it copies objects above 256 KiB;
/// each counts once its digest is the manifest's, and is streamed when it is not.
///
/// Awaiting it fails when any copy could not be made whole; [`report`](Self::report) gives the report even then.
#[must_use = "a replication runs when it is awaited"]
pub struct Replicate<'a> {
    repository: &'a Repository,
    set: String,
    id: Option<BackupId>,
    from: Vec<SinkId>,
    to: Vec<SinkId>,
    options: Options,
    rate_limit: Option<u64>,
    observers: Vec<Arc<dyn Observer>>,
}

/// What may be chosen beside the sinks.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    verify_existing: bool,
    take_over: bool,
}

impl<'a> Replicate<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str, id: Option<BackupId>) -> Self {
        Self {
            repository,
            set: set.to_owned(),
            id,
            from: Vec::new(),
            to: Vec::new(),
            options: Options::default(),
            rate_limit: None,
            observers: Vec::new(),
        }
    }

    /// Copies to this sink; may be given several times. Default: every sink of the repository.
    pub fn to(mut self, sink: &SinkId) -> Self {
        self.to.push(sink.clone());
        self
    }

    /// Reads from this sink only; may be given several times. Default: every sink, those with a good manifest first.
    pub fn from(mut self, sink: &SinkId) -> Self {
        self.from.push(sink.clone());
        self
    }

    /// Reads every object that is already there and compares its digest. Without this, objects above 256 KiB are
    /// taken for good when their size is right.
    pub fn verify_existing(mut self) -> Self {
        self.options.verify_existing = true;
        self
    }

    /// Does not wait for a backup run that seems to be just finishing. For runs that are known to be dead.
    pub fn take_over(mut self) -> Self {
        self.options.take_over = true;
        self
    }

    /// Reads at most this many stored bytes a second. What a store copies by itself and proves is not read.
    pub fn rate_limit(mut self, bytes_per_second: u64) -> Self {
        self.rate_limit = Some(bytes_per_second);
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Runs, and reports failed copies beside the good ones.
    ///
    /// # Errors
    ///
    /// Only what keeps the run from beginning: a wrong name, an unknown sink, no sink that can be listed.
    pub async fn report(mut self) -> Result<ReplicateReport> {
        let inner = &self.repository.0;
        let set = SetName::parse(std::mem::take(&mut self.set))?;
        let watch = inner.watch(std::mem::take(&mut self.observers));
        let from = numbered(inner, &self.from)?;
        let to = match numbered(inner, &self.to)? {
            all if self.to.is_empty() => {
                all.into_iter().filter(|(_, sink)| !self.from.contains(sink.id())).collect()
            }
            chosen => chosen,
        };
        if to.is_empty() {
            return Err(Error::invalid("replicate", "there is no sink to copy to; add one, or name it"));
        }
        let mut run = Run {
            inner,
            catalog: inner.catalog_watched(set.clone(), watch),
            from: from.into_iter().map(|(_, sink)| sink).collect(),
            to,
            options: self.options,
            limit: self.rate_limit.map(RateLimit::new),
            whole: BTreeMap::new(),
            report: ReplicateReport::new(set),
        };
        let wanted = match self.id {
            Some(id) => vec![id],
            None => run.all().await?,
        };
        run.ring().await;
        for id in wanted {
            run.with_references(id).await;
        }
        let mut report = run.report;
        report.elapsed = run.catalog.watch.elapsed();
        Ok(report)
    }
}

impl<'a> IntoFuture for Replicate<'a> {
    type Output = Result<ReplicateReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        async { self.report().await?.into_result() }.boxed()
    }
}

impl std::fmt::Debug for Replicate<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicate").field("set", &self.set).field("id", &self.id).finish_non_exhaustive()
    }
}

/// The sinks of these ids; all when none is given.
fn numbered(inner: &Inner, ids: &[SinkId]) -> Result<Vec<Numbered>> {
    for id in ids {
        inner.sink_number(id)?;
    }
    let chosen = |(_, sink): &Numbered| ids.is_empty() || ids.contains(sink.id());
    Ok(inner.sinks.iter().cloned().enumerate().filter(chosen).collect())
}

struct Run<'a> {
    inner: &'a Inner,
    catalog: Catalog<'a>,
    /// Where objects may be read.
    from: Vec<Arc<dyn Sink>>,
    to: Vec<Numbered>,
    options: Options,
    limit: Option<RateLimit>,
    /// Backups that were looked at, and the sinks that hold them whole.
    whole: BTreeMap<BackupId, BTreeSet<usize>>,
    report: ReplicateReport,
}

impl Run<'_> {
    /// All backups of the set, oldest first: what others refer to comes before them.
    async fn all(&mut self) -> Result<Vec<BackupId>> {
        let found = self.catalog.ids().await?;
        for (sink, error) in found.unreachable {
            self.fail(None, Some(sink), error);
        }
        Ok(found.backups.into_keys().collect())
    }

    /// Copies a backup after everything it refers to. Each copy stands alone.
    async fn with_references(&mut self, id: BackupId) {
        let mut stack: Vec<(BackupId, Option<Opened>)> = vec![(id, None)];
        let mut begun: BTreeSet<BackupId> = self.whole.keys().copied().collect();
        while let Some((id, opened)) = stack.pop() {
            if let Some(opened) = opened {
                let set = self.catalog.set.clone();
                let watch = self.catalog.watch.clone();
                watch.event(&Event::Started { verb: "replicate", set: &set, id });
                let before = self.report.failures.len();
                let whole = self.backup(&opened).await;
                self.whole.insert(id, whole);
                let error = self.report.failures.get(before).map(|f| &f.error);
                watch.event(&Event::Finished {
                    verb: "replicate",
                    set: &set,
                    id,
                    error,
                    elapsed: watch.elapsed(),
                });
                continue;
            }
            // It may have been pushed twice; of a circle, which no good backup is part of, the last one fails.
            if !begun.insert(id) {
                continue;
            }
            match self.catalog.open(id).await {
                Ok(opened) => {
                    let needs: Vec<_> = opened.summary(false).needs().collect();
                    stack.push((id, Some(opened)));
                    stack.extend(needs.into_iter().map(|need| (need, None)));
                }
                Err(error) => {
                    self.fail(Some(id), None, error);
                    self.whole.insert(id, BTreeSet::new());
                }
            }
        }
    }

    /// Copies one backup; returns the sinks that hold it whole.
    async fn backup(&mut self, opened: &Opened) -> BTreeSet<usize> {
        let id = opened.manifest.id;
        let sources = match self.sources(opened).await {
            Ok(sources) => sources,
            Err(error) => {
                self.fail(Some(id), None, error);
                return BTreeSet::new();
            }
        };
        let standing = self.with_ground(opened);
        let mut work = copy::Work::new(self, opened, sources, standing).await;
        work.copy().await;
        let (replicas, failures) = work.finish().await;
        let whole = replicas.iter().filter(|(_, replica)| replica.whole).map(|(n, _)| *n).collect();
        self.report.replicas.extend(replicas.into_iter().map(|(_, replica)| replica));
        for (number, error) in failures {
            let sink = self.inner.sinks.get(number).map(|s| s.id().clone());
            self.fail(Some(id), sink, error);
        }
        whole
    }

    /// The destinations that hold everything this backup refers to; the others are reported.
    fn with_ground(&mut self, opened: &Opened) -> Vec<Numbered> {
        let id = opened.manifest.id;
        let needs: Vec<_> = opened.summary(false).needs().collect();
        let mut standing = Vec::new();
        for (number, sink) in self.to.clone() {
            let holds = |need: &BackupId| self.whole.get(need).is_some_and(|on| on.contains(&number));
            match needs.iter().find(|need| !holds(need)) {
                None => standing.push((number, sink)),
                Some(missing) => {
                    let error = Error::new(ErrorKind::NotFound, "replicate")
                        .message("a backup it refers to is not whole on this sink; heal that one first")
                        .with("refers_to", missing);
                    self.fail(Some(id), Some(sink.id().clone()), error);
                }
            }
        }
        standing
    }

    /// Where to read from: copies with the trusted manifest first. Every block is verified, so any sink will do.
    async fn sources(&self, opened: &Opened) -> Result<Vec<Arc<dyn Sink>>> {
        let allowed = |sink: &Arc<dyn Sink>| self.from.iter().any(|s| s.id() == sink.id());
        let trusted: Vec<_> = opened.copies.iter().filter(|s| allowed(s)).cloned().collect();
        if trusted.is_empty() {
            let mut error = Error::new(ErrorKind::NotFound, "replicate")
                .message("no sink to copy from holds a manifest that can be trusted");
            for (sink, why) in &opened.bad {
                error = error.with("sink", format_args!("{sink}: {why}"));
            }
            return Err(error);
        }
        if !self.options.take_over {
            inspect::refuse_unfinished(&self.catalog, opened, &trusted).await?;
        }
        let others = self.from.iter().filter(|s| trusted.iter().all(|t| t.id() != s.id()));
        Ok(trusted.iter().chain(others).cloned().collect())
    }

    fn fail(&mut self, id: Option<BackupId>, sink: Option<SinkId>, error: Error) {
        if let Some(sink) = &sink {
            self.catalog.watch.event(&Event::SinkFailed { sink, error: &error });
        }
        self.report.failures.push(ReplicateFailure { id, sink, error });
    }
}
