//! Copying one backup to the sinks that lack something of it: each object read once, verified, written to all of them.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio_util::task::AbortOnDropHandle;

use super::inspect::{self, Held, Part, Standing};
use super::{Replica, Run, wraps};
use futures::TryStreamExt as _;

use crate::digest::Hasher;
use crate::engine::fanout::{Fanout, Numbered};
use crate::engine::feed::RateLimit;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::BackupId;
use crate::repository::Inner;
use crate::repository::catalog::{Catalog, Opened};
use crate::repository::commit::Pending;
use crate::retention::BackupKind;
use crate::sink::{ObjectKind, PutOptions, Sink};

pub(super) struct Work<'a> {
    pub(super) inner: &'a Inner,
    pub(super) catalog: &'a Catalog<'a>,
    pub(super) opened: &'a Opened,
    pub(super) limit: Option<&'a RateLimit>,
    pub(super) sources: Vec<Arc<dyn Sink>>,
    parts: Vec<Part>,
    lanes: Vec<Lane>,
    failures: Failures,
}

/// One destination.
struct Lane {
    number: usize,
    sink: Arc<dyn Sink>,
    held: Held,
    replica: Replica,
    /// It works, so far.
    alive: bool,
    /// This run's marker lies there.
    announced: bool,
}

impl Lane {
    fn numbered(&self) -> Numbered {
        (self.number, Arc::clone(&self.sink))
    }
}

impl<'a> Work<'a> {
    /// Finds out what each destination lacks.
    pub(super) async fn new(
        run: &'a Run<'_>,
        opened: &'a Opened,
        sources: Vec<Arc<dyn Sink>>,
        to: Vec<Numbered>,
    ) -> Self {
        let parts = inspect::parts(&opened.manifest);
        let looking = to
            .iter()
            .map(|(_, sink)| inspect::held(&run.catalog, opened, &parts, sink, run.options.verify_existing));
        let found = futures::future::join_all(looking).await;
        let (mut lanes, mut failures) = (Vec::new(), Vec::new());
        for ((number, sink), held) in to.into_iter().zip(found) {
            match held {
                Err(error) => failures.push((number, error)),
                Ok(held) => {
                    let good = held.parts.iter().filter(|s| **s == Standing::Good).count();
                    let replica = Replica {
                        id: opened.manifest.id,
                        sink: sink.id().clone(),
                        copied: Vec::new(),
                        healed: Vec::new(),
                        kept: good + usize::from(held.manifest == Standing::Good),
                        bytes: 0,
                        copied_by_store: 0,
                        whole: held.is_whole(),
                    };
                    lanes.push(Lane { number, sink, held, replica, alive: true, announced: false });
                }
            }
        }
        Self {
            inner: run.inner,
            catalog: &run.catalog,
            opened,
            limit: run.limit.as_ref(),
            sources,
            parts,
            lanes,
            failures,
        }
    }

    /// Copies what is lacking, the manifest last.
    pub(super) async fn copy(&mut self) {
        let Some(_renewing) = self.announce().await else { return };
        // Whoever clears something from now on sees the marker. What was cleared before is not relied on.
        self.refuse_condemned().await;
        self.ground().await;
        self.look_again().await;
        self.wraps().await;
        for number in 0..self.parts.len() {
            self.part(number).await;
        }
        // Once more: a pruner that did not see our marker has left its own by now.
        self.refuse_condemned().await;
        self.ground().await;
        self.still_announced().await;
        self.commit().await;
    }

    /// What became of each destination.
    pub(super) async fn finish(self) -> (Vec<(usize, Replica)>, Failures) {
        if let Ok(pending) = self.opened.dir.pending() {
            let (pending, patience, watch) = (&pending, self.inner.patience, &self.catalog.watch);
            let marked = |lane: &&Lane| lane.replica.whole && (lane.announced || lane.held.pending);
            let removing = self.lanes.iter().filter(marked).map(|lane| async move {
                // A marker that stays expires, and the next run removes it; the copy itself is decided.
                let _ = patience.retry(lane.sink.id(), watch, || lane.sink.delete(pending)).await;
            });
            futures::future::join_all(removing).await;
        }
        (self.lanes.into_iter().map(|lane| (lane.number, lane.replica)).collect(), self.failures)
    }

    /// Leaves a marker where something is to be done, and keeps it fresh. `None` when nothing is.
    async fn announce(&mut self) -> Option<AbortOnDropHandle<()>> {
        let lacking: Vec<_> = self.lanes.iter().filter(|l| !l.replica.whole).map(Lane::numbered).collect();
        if lacking.is_empty() {
            return None;
        }
        let now = self.inner.clock.now();
        let pending = Pending {
            // Once said it stays said until the copy is whole: what an earlier run left may still lie there.
            unverified: self.lanes.iter().any(|l| l.held.unverified) || self.stores_may_copy(&lacking),
            ..Pending::replica(&self.catalog.set, self.opened.manifest.id, self.parent(), now)
        };
        match self.inner.announce(&lacking, &self.opened.dir, pending, &self.catalog.watch).await {
            Ok((failures, renewing)) => {
                self.lose(failures);
                for lane in self.lanes.iter_mut().filter(|l| l.alive && !l.replica.whole) {
                    lane.announced = true;
                }
                Some(renewing)
            }
            Err(error) => {
                self.lose_all(&lacking, error);
                None
            }
        }
    }

    fn lock_until(&self) -> Option<DateTime<Utc>> {
        self.inner.lock_until(self.opened.manifest.keep_until)
    }

    /// The destinations that still work and lack something.
    fn busy(&self) -> Vec<Numbered> {
        self.lanes.iter().filter(|l| l.alive && !l.replica.whole).map(Lane::numbered).collect()
    }

    async fn refuse_condemned(&mut self) {
        let (opened, inner, watch) = (self.opened, self.inner, &self.catalog.watch);
        let looking = self.busy().into_iter().map(|(number, sink)| async move {
            let look = async {
                let markers = opened.dir.condemned()?;
                let listed = inner
                    .patience
                    .retry(sink.id(), watch, || async { sink.list(&markers).try_next().await })
                    .await?;
                if listed.is_some() { Err(inspect::condemned()) } else { Ok(()) }
            };
            look.await.err().map(|error| (number, error))
        });
        let failures = futures::future::join_all(looking).await.into_iter().flatten().collect();
        self.lose(failures);
    }

    fn parent(&self) -> Option<BackupId> {
        match self.opened.manifest.kind {
            BackupKind::Incremental { parent } => Some(parent),
            _ => None,
        }
    }

    /// Gives up the destinations where what this backup builds on is not there, or not for long: prunes leave it from
    /// now on, since the marker names it.
    async fn ground(&mut self) {
        let Some(parent) = self.parent() else { return };
        let (busy, watch) = (self.busy(), &self.catalog.watch);
        match self.inner.ensure_parent(&busy, &self.catalog.set, parent, watch).await {
            Ok(failures) => self.lose(failures),
            Err(error) => self.lose_all(&busy, error),
        }
    }

    /// What was found before the marker was set may have been cleared in between.
    async fn look_again(&mut self) {
        let (catalog, opened, parts) = (self.catalog, self.opened, &self.parts);
        let busy = self.lanes.iter_mut().filter(|lane| lane.alive && !lane.replica.whole);
        let looking = busy.map(|lane| async move {
            let result = inspect::still_held(catalog, opened, parts, &lane.sink, &mut lane.held).await;
            match result {
                Ok(lost) => {
                    lane.replica.kept = lane.replica.kept.saturating_sub(lost);
                    None
                }
                Err(error) => Some((lane.number, error)),
            }
        });
        let failures = futures::future::join_all(looking).await.into_iter().flatten().collect();
        self.lose(failures);
    }

    /// Gives up the destinations where this run's marker is gone: what was copied may have been swept away.
    async fn still_announced(&mut self) {
        let (opened, inner, watch) = (self.opened, self.inner, &self.catalog.watch);
        let looking = self.busy().into_iter().map(|(number, sink)| async move {
            let look = async {
                if inner.access(&sink, watch).exists(&opened.dir.pending()?).await? {
                    return Ok(());
                }
                Err(Error::new(ErrorKind::Timeout, "replicate").retryable(false).message(
                    "the marker of this run is gone, and what it copied may have been swept away; replicate again",
                ))
            };
            look.await.err().map(|error| (number, error))
        });
        let failures = futures::future::join_all(looking).await.into_iter().flatten().collect();
        self.lose(failures);
    }

    async fn wraps(&mut self) {
        let lacking: Vec<_> = self
            .lanes
            .iter()
            .filter(|l| l.alive && l.held.wraps != Standing::Good)
            .map(Lane::numbered)
            .collect();
        if lacking.is_empty() {
            return;
        }
        let put = async {
            let found = wraps::trusted(self.catalog, self.opened, &self.sources).await?;
            let directory = self.opened.dir.keys()?;
            let options = PutOptions::overwrite(ObjectKind::Note).retain_until(self.lock_until());
            let mut failures = Failures::new();
            let mut written = Vec::new();
            for (name, bytes) in found {
                // The name is a key segment already: it came from a listing.
                let key = directory.append(&Key::parse(name)?);
                failures
                    .extend(self.inner.put_each(&lacking, &key, &bytes, &options, &self.catalog.watch).await);
                written.push((key, bytes.len() as u64));
            }
            Ok((failures, written))
        };
        match put.await {
            Ok((failures, written)) => {
                self.lose(failures);
                for lane in self.lanes.iter_mut().filter(|l| l.alive && l.held.wraps != Standing::Good) {
                    for (key, size) in &written {
                        lane.done(lane.held.wraps, key.clone(), *size);
                    }
                    lane.held.wraps = Standing::Good;
                }
            }
            Err(error) => self.lose_all(&lacking, error),
        }
    }

    /// Copies one object to every destination that lacks it.
    async fn part(&mut self, number: usize) {
        let Some(part) = self.parts.get(number).cloned() else { return };
        let lacks = |lane: &Lane| lane.held.parts.get(number).is_some_and(|s| *s != Standing::Good);
        let lacking: Vec<_> = self.lanes.iter().filter(|l| l.alive && lacks(l)).map(Lane::numbered).collect();
        if lacking.is_empty() {
            return;
        }
        let key = match self.opened.dir.object(&part.object.object) {
            Ok(key) => key,
            Err(error) => return self.lose_all(&lacking, error),
        };
        let (by_store, in_doubt) = Box::pin(self.copied_by_stores(&part, &key, &lacking)).await;
        let streamed: Vec<_> = lacking
            .iter()
            .filter(|(n, _)| !by_store.contains(n) && in_doubt.iter().all(|(doubted, _)| doubted != n))
            .cloned()
            .collect();
        self.lose(in_doubt);
        for lane in self.lanes.iter_mut().filter(|lane| by_store.contains(&lane.number)) {
            lane.arrived(number, &key, part.object.size);
            lane.replica.copied_by_store += part.object.size;
        }
        if streamed.is_empty() {
            return;
        }
        match Box::pin(self.transfer(&part, &key, &streamed)).await {
            Ok(failures) => {
                self.lose(failures);
                let wrote = |lane: &&mut Lane| lane.alive && streamed.iter().any(|(n, _)| *n == lane.number);
                for lane in self.lanes.iter_mut().filter(wrote) {
                    lane.arrived(number, &key, part.object.size);
                }
            }
            Err(Trouble::Reading(error)) => {
                // The destinations are fine, and the other objects may be: heal what can be healed.
                for ((number, _), error) in streamed.iter().zip(shared(error, streamed.len())) {
                    self.failures.push((*number, error));
                }
            }
            Err(Trouble::Writing(error)) => self.lose_all(&streamed, error),
        }
    }

    async fn transfer(&self, part: &Part, key: &Key, to: &[Numbered]) -> Result<Failures, Trouble> {
        let object = &part.object;
        let watch = &self.catalog.watch;
        let reader = self
            .opened
            .stored_reader(self.inner, object, &self.sources, watch)
            .await
            .map_err(Trouble::Reading)?;
        let options = self.put_options(part);
        let mut fanout = Fanout::open(to, key, &options, self.inner.patience, watch);
        let mut blocks = reader.whole();
        let mut hasher = Hasher::new();
        while let Some(block) = blocks.recv().await {
            let block = block.map_err(Trouble::Reading)?;
            hasher.update(&block);
            if let Some(limit) = self.limit {
                limit.take(block.len()).await;
            }
            // Nothing is decoded here: the bytes that move are the stored ones.
            watch.stored(block.len());
            watch.plain(block.len());
            fanout.write(block).await.map_err(Trouble::Writing)?;
        }
        // Dropping the writers leaves nothing visible.
        if hasher.finish() != object.sha256 {
            let error =
                Error::corrupt("replicate", "the index is wrong about this object; no copy can be trusted");
            return Err(Trouble::Reading(error.with("key", key)));
        }
        fanout.finish(object.size).await.map_err(Trouble::Writing)
    }

    pub(super) fn put_options(&self, part: &Part) -> PutOptions {
        PutOptions::overwrite(part.kind).size_hint(Some(part.object.size)).retain_until(self.lock_until())
    }

    /// Writes the manifest where everything else is good.
    async fn commit(&mut self) {
        let ready = |lane: &&Lane| {
            lane.alive
                && !lane.replica.whole
                && lane.held.wraps == Standing::Good
                && lane.held.parts.iter().all(|s| *s == Standing::Good)
        };
        let ready: Vec<_> = self.lanes.iter().filter(ready).map(Lane::numbered).collect();
        let mut written = 0;
        for standing in [Standing::Missing, Standing::Damaged] {
            let of =
                |number: usize| self.lanes.iter().any(|l| l.number == number && l.held.manifest == standing);
            let to: Vec<_> = ready.iter().filter(|(number, _)| of(*number)).cloned().collect();
            if to.is_empty() {
                continue;
            }
            let options = match standing {
                Standing::Damaged => PutOptions::overwrite(ObjectKind::Manifest),
                _ => PutOptions::create_new(ObjectKind::Manifest),
            };
            let options = options.retain_until(self.lock_until());
            let put = async {
                let bytes = inspect::manifest_bytes(self.catalog, self.opened, &self.sources).await?;
                let key = self.opened.dir.manifest()?;
                let failures = self.inner.put_each(&to, &key, &bytes, &options, &self.catalog.watch).await;
                Ok((failures, bytes.len() as u64))
            };
            match put.await {
                Ok((failures, size)) => {
                    written = size;
                    self.lose(failures);
                }
                Err(error) => self.lose_all(&to, error),
            }
        }
        let manifest = self.opened.dir.manifest();
        for lane in self.lanes.iter_mut().filter(|l| l.alive && ready.iter().any(|(n, _)| *n == l.number)) {
            if let (true, Ok(key)) = (lane.held.manifest != Standing::Good, &manifest) {
                lane.done(lane.held.manifest, key.clone(), written);
                lane.held.manifest = Standing::Good;
            }
            lane.replica.whole = true;
        }
    }

    fn lose(&mut self, failures: Failures) {
        for (number, error) in failures {
            let Some(lane) = self.lanes.iter_mut().find(|l| l.number == number && l.alive) else { continue };
            lane.alive = false;
            self.failures.push((number, error));
        }
    }

    fn lose_all(&mut self, sinks: &[Numbered], error: Error) {
        self.lose(sinks.iter().map(|(n, _)| *n).zip(shared(error, sinks.len())).collect());
    }
}

impl Lane {
    /// Part `number` is there now, verified.
    fn arrived(&mut self, number: usize, key: &Key, size: u64) {
        if let Some(standing) = self.held.parts.get_mut(number) {
            let was = std::mem::replace(standing, Standing::Good);
            self.done(was, key.clone(), size);
        }
    }

    fn done(&mut self, was: Standing, key: Key, size: u64) {
        self.replica.bytes += size;
        match was {
            Standing::Damaged => self.replica.healed.push(key),
            _ => self.replica.copied.push(key),
        }
    }
}

/// Why an object did not arrive.
enum Trouble {
    Reading(Error),
    Writing(Error),
}

/// One error for several sinks: the first gets it, the others its words.
fn shared(error: Error, sinks: usize) -> impl Iterator<Item = Error> {
    let (kind, words) = (error.kind(), error.chain());
    let others = (1..sinks).map(move |_| Error::new(kind, "replicate").message(words.clone()));
    std::iter::once(error).chain(others)
}
