//! One turn of the loop: wait for a cut, store it, see to the copies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::backup::Job;
use super::super::catalog::Catalog;
use super::super::ids::new_id;
use super::super::origin::{Origin, Slice};
use super::super::replicate::Replicate;
use super::super::shutdown::or_drop;
use super::super::{Inner, Repository};
use super::{FollowReport, Options};
use crate::engine::feed::RateLimit;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{BackupDir, SliceName};
use crate::log::{Cut, CutRequest, LogSource};
use crate::manifest::Previous;
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Event;
use crate::retention::{BackupKind, BackupSummary, LogPosition, Resume, resume};
use crate::source::Warning;

/// What comes after a round.
pub(super) enum Next {
    Again,
    End,
}

/// A log being followed.
pub(super) struct Following<'a> {
    repository: &'a Repository,
    inner: &'a Inner,
    catalog: Catalog<'a>,
    source: &'a dyn LogSource,
    pub(super) options: Options,
    limit: Option<Arc<RateLimit>>,
    pub(super) watch: Watch,
    stop: CancellationToken,
    report: FollowReport,
    /// Where the next slice begins; unknown at first and after failures.
    at: Option<LogPosition>,
    /// The slice that ends there.
    head: Option<(BackupId, BackupDir)>,
    /// Slices that a sink lacks, and whether they have fewer copies than required.
    lacking: BTreeMap<BackupId, bool>,
    /// When the present slice is to be cut whatever it holds.
    due: Instant,
}

impl<'a> Following<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        set: SetName,
        source: &'a dyn LogSource,
        options: Options,
        limit: Option<Arc<RateLimit>>,
        watch: Watch,
        stop: CancellationToken,
    ) -> Self {
        let inner = &*repository.0;
        Self {
            due: Instant::now() + options.time,
            repository,
            inner,
            catalog: inner.catalog_watched(set.clone(), watch.clone()),
            source,
            options,
            limit,
            watch,
            stop,
            report: FollowReport::new(set),
            at: None,
            head: None,
            lacking: BTreeMap::new(),
        }
    }

    pub(super) fn set(&self) -> &SetName {
        &self.catalog.set
    }

    pub(super) fn into_report(self) -> FollowReport {
        let mut report = self.report;
        report.lacking = self.lacking.into_keys().collect();
        report.position = report.position.or(self.at);
        report.elapsed = self.watch.elapsed();
        report
    }

    /// Looks at the sinks again before the next slice.
    pub(super) fn forget(&mut self) {
        self.at = None;
    }

    /// Waits, or fails with [`ErrorKind::Cancelled`] when the loop is to end.
    pub(super) async fn pause(&self, time: Duration) -> Result<()> {
        self.until_stopped(async {
            tokio::time::sleep(time).await;
            Ok(())
        })
        .await
    }

    pub(super) async fn round(&mut self) -> Result<Next> {
        let from = match self.at.clone() {
            Some(at) => at,
            None => self.look().await?,
        };
        let cut = match self.wait(&from).await {
            Ok(Some(cut)) => cut,
            Ok(None) => return Ok(Next::End),
            Err(error) if error.kind() == ErrorKind::LogGap => {
                // A base made meanwhile may begin a new range; else this says aloud what is lost.
                self.look().await?;
                return Ok(Next::Again);
            }
            Err(error) => return Err(error),
        };
        let Some(previous) = self.previous().await? else {
            self.forget();
            return Ok(Next::Again);
        };
        self.take(cut, previous).await?;
        Ok(Next::Again)
    }

    /// Finds out where to go on, and what the sinks lack.
    async fn look(&mut self) -> Result<LogPosition> {
        let list = self.until_stopped(self.catalog.list()).await?;
        let place = resume(&list).or_else(|| {
            let from = self.options.starting_at.clone()?;
            Some(Resume { from, or_else: None, base: None })
        });
        let Some(Resume { from, or_else, base }) = place else {
            return Err(Error::new(ErrorKind::NotFound, "follow log").message(
                "the set has no backup that knows its place in the log; make one, or say where to begin with `starting_at`",
            ));
        };
        let at = self.reachable(from, or_else).await?;
        let ending_here = |b: &&BackupSummary| matches!(&b.kind, BackupKind::Log { to, .. } if *to == at);
        let newest = list.iter().filter(ending_here).max_by_key(|b| (!b.degraded, b.id));
        self.head = match newest {
            Some(slice) => Some((slice.id, self.catalog.dir(slice.id).await?)),
            None => None,
        };
        let since = base.as_ref().unwrap_or(&at);
        self.find_lacking(&list, since, list.unreachable.iter().map(|(sink, _)| sink));
        self.at = Some(at.clone());
        self.heal().await?;
        self.release(&at).await;
        Ok(at)
    }

    /// `from`, or where a new range begins if the source has lost what follows.
    async fn reachable(&mut self, from: LogPosition, or_else: Option<LogPosition>) -> Result<LogPosition> {
        let lost = match self.ask(&from, false).await {
            Ok(_) => return Ok(from),
            Err(error) if error.kind() == ErrorKind::LogGap => error,
            Err(error) => return Err(error),
        };
        let set = self.set().clone();
        let event = |to| Event::LogGap { set: &set, from: &from, to, sink: None };
        let Some(to) = or_else else {
            self.watch.event(&event(None));
            return Err(lost);
        };
        self.watch.event(&event(Some(&to)));
        self.ask(&to, false).await?;
        self.report.gaps.push((from, to.clone()));
        Ok(to)
    }

    /// Notes the slices after `since` that a sink lacks, and says each stretch aloud.
    fn find_lacking<'s>(
        &mut self,
        list: &[BackupSummary],
        since: &LogPosition,
        away: impl Iterator<Item = &'s SinkId>,
    ) {
        let away: BTreeSet<_> = away.collect();
        let mut slices: Vec<_> = list
            .iter()
            .filter_map(|b| match &b.kind {
                BackupKind::Log { from, to, .. } if to > since => Some((from, to, b)),
                _ => None,
            })
            .collect();
        slices.sort_by_key(|(from, to, _)| (*from, *to));
        self.lacking.clear();
        for sink in &self.inner.sinks {
            let mut stretch: Option<(&LogPosition, &LogPosition)> = None;
            for (from, to, slice) in &slices {
                if slice.copies.contains(sink.id()) {
                    self.missing_on(sink.id(), stretch.take());
                    continue;
                }
                self.lacking.insert(slice.id, slice.degraded);
                if !away.contains(sink.id()) {
                    stretch = Some((stretch.map_or(*from, |(first, _)| first), *to));
                }
            }
            self.missing_on(sink.id(), stretch.take());
        }
    }

    fn missing_on(&self, sink: &SinkId, stretch: Option<(&LogPosition, &LogPosition)>) {
        if let Some((from, to)) = stretch {
            self.watch.event(&Event::LogGap { set: self.set(), from, to: Some(to), sink: Some(sink) });
        }
    }

    /// Waits until a slice may be cut; `None` when there is nothing new and no waiting was asked for.
    async fn wait(&self, from: &LogPosition) -> Result<Option<Cut>> {
        loop {
            let due = self.options.once || Instant::now() >= self.due;
            match self.ask(from, due).await? {
                Some(cut) if due || cut.full => return Ok(Some(cut)),
                None if self.options.once => return Ok(None),
                _ => {}
            }
            let until_due = self.due.saturating_duration_since(Instant::now());
            let wait = if due { self.options.poll } else { self.options.poll.min(until_due) };
            self.pause(wait).await?;
        }
    }

    async fn ask(&self, from: &LogPosition, due: bool) -> Result<Option<Cut>> {
        let request = CutRequest::new(from, self.options.bytes, due);
        let cut = self.inner.patience.bound_source(self.source.cut(request));
        let cut = self.until_stopped(cut).await?;
        match cut {
            Some(cut) if cut.from != *from || cut.to <= cut.from || cut.from_time > cut.to_time => {
                Err(Error::new(ErrorKind::SourceFailed, "cut log")
                    .message(
                        "the source offered a slice that does not follow the one before, or has no extent",
                    )
                    .with("asked", from)
                    .with("from", &cut.from)
                    .with("to", &cut.to))
            }
            cut => Ok(cut),
        }
    }

    /// The slice before the next one, looked at again on every sink; outer `None` where it has vanished everywhere.
    async fn previous(&mut self) -> Result<Option<Option<Previous>>> {
        let Some((id, dir)) = self.head.clone() else { return Ok(Some(None)) };
        let opened = self.until_stopped(self.catalog.open_on(dir.clone(), id, &self.inner.sinks)).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) if error.is_retryable() || error.kind() == ErrorKind::Cancelled => return Err(error),
            // The list says what is left; nothing was skipped so far.
            Err(_) => return Ok(None),
        };
        let manifest = dir.manifest()?;
        for sink in &self.inner.sinks {
            let there = opened.copies.iter().any(|copy| copy.id() == sink.id());
            if there || self.lacking.contains_key(&id) || !self.catalog.is_gone(sink, &manifest).await {
                continue;
            }
            if let Some(name) = dir.range() {
                self.missing_on(sink.id(), Some((&name.from, &name.to)));
            }
            let required = opened.manifest.required_copies as usize;
            self.lacking.insert(id, opened.copies.len() < required);
        }
        Ok(Some(Some(Previous { id, sha256: opened.digest })))
    }

    /// Stores one slice.
    async fn take(&mut self, cut: Cut, previous: Option<Previous>) -> Result<()> {
        let set = self.set().clone();
        let started = self.inner.clock.now();
        let id = new_id(started)?;
        let name = SliceName { from: cut.from.clone(), to: cut.to.clone(), id };
        let dir = BackupDir::slice(&set, name)?;
        // Counters of its own: its manifest says how long it took.
        let watch = self.watch.fresh();
        watch.event(&Event::Started { verb: "follow", set: &set, id });
        let slice = Slice { source: self.source, cut, previous };
        let job = Job {
            origin: Origin::Slice(&slice),
            set: set.clone(),
            id,
            dir: dir.clone(),
            started,
            options: Job::no_options(),
            limit: self.limit.clone(),
        };
        let begun = Instant::now();
        let result = self.repository.store(job, Some(self.stop.cancelled()), &watch).await;
        let error = result.as_ref().err();
        watch.event(&Event::Finished { verb: "follow", set: &set, id, error, elapsed: watch.elapsed() });
        let degraded = match result {
            Ok(done) => {
                if !done.failed.is_empty() {
                    self.lacking.insert(id, false);
                }
                self.report.plain_size += done.plain_size;
                false
            }
            Err(error) if error.kind() == ErrorKind::TooFewCopies => {
                self.lacking.insert(id, true);
                self.report.degraded += 1;
                true
            }
            Err(error) => return Err(error),
        };
        let Cut { from, to, to_time, .. } = slice.cut;
        self.watch.event(&Event::LogSlice { set: &set, id, from: &from, to: &to, to_time, degraded });
        self.report.slices += 1;
        self.report.newest = Some(id);
        self.report.position = Some(to.clone());
        self.report.to_time = Some(to_time);
        self.at = Some(to.clone());
        self.head = Some((id, dir));
        self.due = begun + self.options.time;
        if !self.lacking.contains_key(&id) {
            // Every sink works: a good moment to give each what it missed.
            self.heal().await?;
        }
        self.release(&to).await;
        Ok(())
    }

    /// Replicates what sinks lack, oldest first, until something cannot be.
    async fn heal(&mut self) -> Result<()> {
        for id in self.lacking.keys().copied().collect::<Vec<_>>() {
            let replicate = Replicate::new(self.repository, self.catalog.set.as_str(), Some(id));
            let report = self.until_stopped(replicate.report()).await?;
            if report.is_whole() {
                self.lacking.remove(&id);
                continue;
            }
            // A prune may have taken it meanwhile.
            let gone = self.until_stopped(self.catalog.open(id)).await;
            if gone.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                self.lacking.remove(&id);
                continue;
            }
            let why: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
            let message = format!("slice {id} is not on every sink yet: {}", why.join("; "));
            self.watch.event(&Event::Warning(&Warning::new("log-slice-not-replicated", message)));
            break;
        }
        Ok(())
    }

    /// Tells the source what is safe, once everything is.
    async fn release(&self, position: &LogPosition) {
        if self.lacking.values().any(|degraded| *degraded) {
            return;
        }
        if let Err(error) = self.inner.patience.bound_source(self.source.release(position)).await {
            // The slices are safe; that the source keeps too much must still be said.
            let warning = Warning::new("log-not-released", error.chain());
            self.watch.event(&Event::Warning(&warning));
        }
    }

    async fn until_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        or_drop(Some(self.stop.cancelled()), "follow log", work).await
    }
}
