//! The rotate verb: backups open with new keys, and no longer with the old ones.
//!
//! On every sink for itself, in this order: the new wrap is written, read back and opened with the new keyring alone, and
//! only then are the old wraps deleted. At every step at least one wrap opens the copy. Objects and manifests never
//! change.

mod report;
mod sink;

use std::future::IntoFuture;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::catalog::{Catalog, Copies};
use super::{Inner, Repository};
use crate::engine::fanout::Numbered;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::Keyring;
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::{Event, Observer};
use crate::sink::Sink;

pub use report::{KeptWrap, RotateFailure, RotateReport, Rotated};

/// A rotation to be made: set options, then await.
///
/// Awaiting it fails when any copy could not be given its new wrap; [`report`](Self::report) gives the report even
/// then. Running it again is always safe, and goes on where it stopped.
#[must_use = "a rotation runs when it is awaited"]
pub struct Rotate<'a> {
    repository: &'a Repository,
    set: Option<String>,
    keyring: Keyring,
    keep_old: bool,
    observers: Vec<Arc<dyn Observer>>,
}

impl<'a> Rotate<'a> {
    pub(super) fn new(repository: &'a Repository, set: Option<&str>, keyring: &Keyring) -> Self {
        Self {
            repository,
            set: set.map(str::to_owned),
            keyring: keyring.clone(),
            keep_old: false,
            observers: Vec::new(),
        }
    }

    /// Adds the new wraps and deletes none: the backups then open with the old keys as well.
    pub fn keep_old(mut self) -> Self {
        self.keep_old = true;
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Runs, and reports what failed beside what did not.
    ///
    /// # Errors
    ///
    /// Only what keeps the run from beginning: a wrong name, no sink that can be listed.
    pub async fn report(mut self) -> Result<RotateReport> {
        let outer = &self.repository.0;
        let watch = outer.watch(std::mem::take(&mut self.observers));
        // A run before this one may have replaced some wraps already: both keyrings open.
        let joined = match &outer.keyring {
            Some(old) => self.keyring.joined(old),
            None => self.keyring.clone(),
        };
        let inner = Inner { keyring: Some(joined), ..(**outer).clone() };
        let mut run = Run {
            inner: &inner,
            new: self.keyring,
            keep_old: self.keep_old,
            watch,
            report: RotateReport::default(),
        };
        let sets = if let Some(set) = &self.set {
            vec![SetName::parse(set.clone())?]
        } else {
            let found = inner.sets(&run.watch).await?;
            let sets = found.to_vec();
            for (sink, error) in found.unreachable {
                run.fail(None, None, Some(sink), error);
            }
            sets
        };
        for set in sets {
            run.set(&set).await;
        }
        let mut report = run.report;
        report.elapsed = run.watch.elapsed();
        Ok(report)
    }
}

impl<'a> IntoFuture for Rotate<'a> {
    type Output = Result<RotateReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        async { self.report().await?.into_result() }.boxed()
    }
}

impl std::fmt::Debug for Rotate<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotate").field("set", &self.set).field("to", &self.keyring).finish_non_exhaustive()
    }
}

struct Run<'a> {
    /// The repository with both keyrings.
    inner: &'a Inner,
    new: Keyring,
    keep_old: bool,
    watch: Watch,
    report: RotateReport,
}

impl Run<'_> {
    async fn set(&mut self, set: &SetName) {
        let inner = self.inner;
        let catalog = inner.catalog_watched(set.clone(), self.watch.clone());
        let found = match catalog.ids().await {
            Ok(found) => found,
            Err(error) => return self.fail(Some(set), None, None, error),
        };
        for (sink, error) in found.unreachable {
            self.fail(Some(set), None, Some(sink), error);
        }
        for (id, Copies { sinks, .. }) in found.backups {
            self.watch.event(&Event::Started { verb: "rotate", set, id });
            let before = self.report.failures.len();
            if let Err(error) = self.backup(&catalog, id, &sinks).await {
                self.fail(Some(set), Some(id), None, error);
            }
            let error = self.report.failures.get(before).map(|f| &f.error);
            let elapsed = self.watch.elapsed();
            self.watch.event(&Event::Finished { verb: "rotate", set, id, error, elapsed });
        }
    }

    async fn backup(&mut self, catalog: &Catalog<'_>, id: BackupId, sinks: &[Arc<dyn Sink>]) -> Result<()> {
        let opened = catalog.open(id).await?;
        let Some(key) = &opened.key else {
            if opened.manifest.encrypted() {
                return Err(Error::new(ErrorKind::Unsupported, "rotate").message(
                    "this backup is encrypted to age recipients: they are part of its objects and cannot be re-wrapped; \
                     make a new backup for the new recipients, and remove this one when it may go",
                ));
            }
            return Err(Error::new(ErrorKind::Unencrypted, "rotate")
                .message("this backup has no key: it is readable by anyone, and no rotation changes that"));
        };
        // Where the manifest does not fit the key, a new wrap would only hide that.
        let damaged = |sink: &&Arc<dyn Sink>| opened.copies.iter().all(|copy| copy.id() != sink.id());
        for sink in sinks.iter().filter(damaged) {
            let why = opened.bad.iter().find(|(bad, _)| bad == sink.id()).map_or("", |(_, why)| why.as_str());
            let error = Error::corrupt(
                "rotate",
                "this copy cannot be opened; heal it with `replicate`, then rotate again",
            )
            .with("because", why);
            self.fail(Some(&catalog.set), Some(id), Some(sink.id().clone()), error);
        }
        let copies: Vec<Numbered> = self
            .inner
            .sinks
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, s)| opened.copies.iter().any(|c| c.id() == s.id()))
            .collect();
        let (wraps, failures) =
            self.inner.wrap(&self.new, &catalog.set, id, key, &copies, &self.watch).await?;
        for (number, sink) in &copies {
            if failures.iter().any(|(failed, _)| failed == number) {
                continue;
            }
            if let Err(error) = self.copy(catalog, &opened, key, sink, &wraps).await {
                self.fail(Some(&catalog.set), Some(id), Some(sink.id().clone()), error);
            }
        }
        for (number, error) in failures {
            let sink = self.inner.sinks.get(number).map(|s| s.id().clone());
            self.fail(Some(&catalog.set), Some(id), sink, error);
        }
        Ok(())
    }

    fn fail(&mut self, set: Option<&SetName>, id: Option<BackupId>, sink: Option<SinkId>, error: Error) {
        if let Some(sink) = &sink {
            self.watch.event(&Event::SinkFailed { sink, error: &error });
        }
        self.report.failures.push(RotateFailure { set: set.cloned(), id, sink, error });
    }
}
