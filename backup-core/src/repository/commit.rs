//! The small objects around the data, and the moment a backup begins to exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use super::Inner;
use crate::engine::fanout::Numbered;
use crate::engine::progress::Watch;
use crate::engine::retry::Patience;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName};
use crate::sink::{ObjectKind, PutMode, PutOptions, Sink, put_bytes, read_bytes};
use crate::source::{Outcome, Snapshot};

/// How long a pending marker protects a run that no longer renews it.
const PENDING_FOR: chrono::TimeDelta = chrono::TimeDelta::hours(24);
/// How long after its expiry a marker still counts: the clocks of its writer and of its reader may each be off by a day.
const PENDING_TOLERANCE: chrono::TimeDelta = chrono::TimeDelta::hours(48);
/// Largest pending marker a reader accepts, in bytes.
pub(super) const PENDING_LIMIT: u64 = 64 * 1024;
/// How often a running backup renews its marker.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
/// How long cleaning up after a failed run may take, per sink or snapshot.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);

/// `pending.json`: a run is at work here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) format: u32,
    pub(super) set: SetName,
    pub(super) id: BackupId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<BackupId>,
    pub(super) expires: DateTime<Utc>,
    /// The run copies a backup that exists elsewhere. Another such run may take its place: both write the same bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) replica: bool,
    /// Objects may lie here that a store copied and nobody has read yet. Whoever comes next reads before relying on them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unverified: bool,
}

impl Pending {
    pub(super) fn new(set: &SetName, id: BackupId, parent: Option<BackupId>, now: DateTime<Utc>) -> Self {
        let (set, expires) = (set.clone(), now + PENDING_FOR);
        Self { format: 1, set, id, parent, expires, replica: false, unverified: false }
    }

    /// The marker of a run that copies a backup.
    pub(super) fn replica(set: &SetName, id: BackupId, parent: Option<BackupId>, now: DateTime<Utc>) -> Self {
        Self { replica: true, ..Self::new(set, id, parent, now) }
    }

    /// Reads a marker.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let refuse = || Error::new(ErrorKind::Unsupported, "read pending marker");
        let pending: Self = serde_json::from_slice(bytes)
            .map_err(|e| refuse().message("the marker is not of a format this version knows").caused_by(e))?;
        if pending.format == 1 { Ok(pending) } else { Err(refuse().with("format", pending.format)) }
    }

    /// Whether its run may still be at work, as another process at `now` has to assume.
    pub(super) fn may_be_alive(&self, now: DateTime<Utc>) -> bool {
        now.checked_sub_signed(PENDING_TOLERANCE).is_none_or(|limit| self.expires > limit)
    }

    pub(super) fn to_bytes(&self) -> Result<Bytes> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .map_err(|e| Error::new(ErrorKind::Internal, "write pending marker").caused_by(e))
    }
}

impl Inner {
    /// Until when sinks are asked to lock the objects of a backup that is kept until then. A time that is over, or as
    /// good as over, locks nothing: stores refuse it.
    pub(super) fn lock_until(&self, keep_until: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        keep_until.filter(|until| *until > self.clock.now() + TimeDelta::minutes(1))
    }

    /// Puts a small object on each of `sinks`; returns those that failed.
    pub(super) async fn put_each(
        &self,
        sinks: &[Numbered],
        key: &Key,
        bytes: &Bytes,
        options: &PutOptions,
        watch: &Watch,
    ) -> Failures {
        let puts = sinks.iter().map(|(number, sink)| async move {
            (*number, self.put_one(sink, key, bytes, options, watch).await)
        });
        let results = futures::future::join_all(puts).await;
        results.into_iter().filter_map(|(number, result)| result.err().map(|e| (number, e))).collect()
    }

    /// Puts a small object. A create-new that fails but left exactly our bytes succeeded: its reply was lost.
    pub(super) async fn put_one(
        &self,
        sink: &Arc<dyn Sink>,
        key: &Key,
        bytes: &Bytes,
        options: &PutOptions,
        watch: &Watch,
    ) -> Result<()> {
        let put = || async { put_bytes(sink.as_ref(), key, bytes.clone(), options.clone()).await.map(drop) };
        let result = self.patience.retry(sink.id(), watch, put).await;
        let Err(error) = result else { return Ok(()) };
        if options.mode != PutMode::CreateNew {
            return Err(error);
        }
        let read = || read_bytes(sink.as_ref(), key, bytes.len() as u64);
        let there = if error.kind() == ErrorKind::AlreadyExists {
            self.patience.retry(sink.id(), watch, read).await
        } else {
            // Any failure may have come after the fact. Most likely the sink is gone: ask once.
            self.patience.bound(read()).await
        };
        if there.is_ok_and(|there| there == *bytes) { Ok(()) } else { Err(error) }
    }

    /// Creates the pending marker on each sink and keeps it fresh until the returned handle is dropped.
    pub(super) async fn announce(
        &self,
        sinks: &[Numbered],
        dir: &BackupDir,
        mut pending: Pending,
        watch: &Watch,
    ) -> Result<(Failures, AbortOnDropHandle<()>)> {
        let key = dir.pending()?;
        let options = if pending.replica {
            // What an earlier run left here is to be taken over.
            PutOptions::overwrite(ObjectKind::Note)
        } else {
            PutOptions::create_new(ObjectKind::Note)
        };
        let failures = self.put_each(sinks, &key, &pending.to_bytes()?, &options, watch).await;
        let good: Vec<_> = sinks
            .iter()
            .filter(|(n, _)| failures.iter().all(|(failed, _)| failed != n))
            .map(|(_, sink)| Arc::clone(sink))
            .collect();
        let (patience, clock) = (self.patience, self.clock.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                if pending.expires <= clock.now() {
                    // The machine slept too long: others may have swept the run away. `confirm_pending` ends it.
                    return;
                }
                pending.expires = clock.now() + PENDING_FOR;
                let Ok(bytes) = pending.to_bytes() else { return };
                for sink in &good {
                    let options = PutOptions::overwrite(ObjectKind::Note);
                    // A marker that could not be renewed is still good for hours; the next turn tries again.
                    let _ = patience.bound(put_bytes(sink.as_ref(), &key, bytes.clone(), options)).await;
                }
            }
        });
        Ok((failures, AbortOnDropHandle::new(renewing)))
    }
}

/// What must be released when a run ends before its manifest: the snapshot, and what was written so far.
///
/// [`abort`](Cleanup::abort) does it and waits; dropping it does it in the background, for runs whose future is dropped.
pub(super) struct Cleanup {
    work: Option<Work>,
}

struct Work {
    patience: Patience,
    snapshot: Option<Box<dyn Snapshot>>,
    sinks: Vec<Numbered>,
    dir: BackupDir,
    renewing: Option<AbortOnDropHandle<()>>,
    keep: Arc<AtomicBool>,
}

impl Cleanup {
    pub(super) fn new(patience: Patience, sinks: &[Arc<dyn Sink>], dir: BackupDir) -> Self {
        let sinks = sinks.iter().cloned().enumerate().collect();
        Self {
            work: Some(Work { patience, snapshot: None, sinks, dir, renewing: None, keep: Arc::default() }),
        }
    }

    pub(super) fn renewing(&mut self, handle: AbortOnDropHandle<()>) {
        if let Some(work) = &mut self.work {
            work.renewing = Some(handle);
        }
    }

    /// Leaves what was written if `keep` is set by then, but for the pending marker: another run takes it over.
    pub(super) fn keep_if(&mut self, keep: Arc<AtomicBool>) {
        if let Some(work) = &mut self.work {
            work.keep = keep;
        }
    }

    pub(super) fn hold(&mut self, snapshot: Box<dyn Snapshot>) {
        if let Some(work) = &mut self.work {
            work.snapshot = Some(snapshot);
        }
    }

    pub(super) fn snapshot(&mut self) -> Result<&mut Box<dyn Snapshot>> {
        self.work
            .as_mut()
            .and_then(|w| w.snapshot.as_mut())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "read source").message("there is no snapshot"))
    }

    /// Leaves a sink alone: what lies there under this id is not ours.
    pub(super) fn spare(&mut self, number: usize) {
        if let Some(work) = &mut self.work {
            work.sinks.retain(|(n, _)| *n != number);
        }
    }

    /// From here on a manifest may be visible: nothing may be removed any more. Returns the snapshot, to be closed.
    pub(super) fn disarm(mut self) -> Option<Box<dyn Snapshot>> {
        self.work.take().and_then(|mut work| work.snapshot.take())
    }

    /// Releases everything now.
    pub(super) async fn abort(mut self) {
        if let Some(work) = self.work.take() {
            work.run().await;
        }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.work.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(work.run());
        }
    }
}

impl Work {
    async fn run(mut self) {
        drop(self.renewing.take());
        if let Some(snapshot) = self.snapshot.take() {
            // The run has failed already; that error is the one to report.
            let _ = tokio::time::timeout(CLEANUP_LIMIT, snapshot.close(Outcome::Aborted)).await;
        }
        let keep = self.keep.load(Relaxed);
        let removing = self.sinks.iter().map(|(_, sink)| remove(sink, &self.dir, self.patience, keep));
        // What cannot be removed now has no manifest and an expiring marker: the orphan sweep takes it later.
        let _ = tokio::time::timeout(CLEANUP_LIMIT, futures::future::join_all(removing)).await;
    }
}

/// Removes every object below a backup's directory, or none of them, and the pending marker last.
async fn remove(sink: &Arc<dyn Sink>, dir: &BackupDir, patience: Patience, keep: bool) -> Result<()> {
    let pending = dir.pending()?;
    let mut objects = if keep { futures::stream::empty().boxed() } else { sink.list(dir.prefix()) };
    while let Some(object) = patience.bound(async { objects.try_next().await }).await? {
        if object.key != pending {
            patience.bound(sink.delete(&object.key)).await?;
        }
    }
    patience.bound(sink.delete(&pending)).await
}
