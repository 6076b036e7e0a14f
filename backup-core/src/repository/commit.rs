//! The small objects around the data, and the moment a backup begins to exist.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use super::Inner;
use crate::engine::fanout::Numbered;
use crate::engine::progress::Watch;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName};
use crate::sink::{ObjectKind, PutMode, PutOptions, Sink, put_bytes, read_bytes};
use crate::source::{Outcome, Snapshot};

/// How long a pending marker protects a run that no longer renews it.
const PENDING_FOR: chrono::TimeDelta = chrono::TimeDelta::hours(24);
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
}

impl Pending {
    pub(super) fn new(set: &SetName, id: BackupId, parent: Option<BackupId>) -> Self {
        Self { format: 1, set: set.clone(), id, parent, expires: Utc::now() + PENDING_FOR }
    }

    fn to_bytes(&self) -> Result<Bytes> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .map_err(|e| Error::new(ErrorKind::Internal, "write pending marker").caused_by(e))
    }
}

impl Inner {
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

    /// Puts a small object. A create-new that finds exactly our bytes succeeded: the reply of an earlier try was lost.
    pub(super) async fn put_one(
        &self,
        sink: &Arc<dyn Sink>,
        key: &Key,
        bytes: &Bytes,
        options: &PutOptions,
        watch: &Watch,
    ) -> Result<()> {
        let put = || async { put_bytes(sink.as_ref(), key, bytes.clone(), options.clone()).await.map(drop) };
        match self.patience.retry(sink.id(), watch, put).await {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && options.mode == PutMode::CreateNew => {
                let read = || read_bytes(sink.as_ref(), key, bytes.len() as u64);
                match self.patience.retry(sink.id(), watch, read).await {
                    Ok(there) if there == *bytes => Ok(()),
                    _ => Err(e),
                }
            }
            result => result,
        }
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
        let options = PutOptions::create_new(ObjectKind::Note);
        let failures = self.put_each(sinks, &key, &pending.to_bytes()?, &options, watch).await;
        let good: Vec<_> = sinks
            .iter()
            .filter(|(n, _)| failures.iter().all(|(failed, _)| failed != n))
            .map(|(_, sink)| Arc::clone(sink))
            .collect();
        let patience = self.patience;
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                pending.expires = Utc::now() + PENDING_FOR;
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
    snapshot: Option<Box<dyn Snapshot>>,
    sinks: Vec<Arc<dyn Sink>>,
    dir: BackupDir,
    renewing: Option<AbortOnDropHandle<()>>,
}

impl Cleanup {
    pub(super) fn new(sinks: Vec<Arc<dyn Sink>>, dir: BackupDir) -> Self {
        Self { work: Some(Work { snapshot: None, sinks, dir, renewing: None }) }
    }

    pub(super) fn renewing(&mut self, handle: AbortOnDropHandle<()>) {
        if let Some(work) = &mut self.work {
            work.renewing = Some(handle);
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
        let removing = self.sinks.iter().map(|sink| remove_all(sink, &self.dir));
        // What cannot be removed now has no manifest and an expiring marker: the orphan sweep takes it later.
        let _ = tokio::time::timeout(CLEANUP_LIMIT, futures::future::join_all(removing)).await;
    }
}

/// Removes every object below a backup's directory, the pending marker last.
pub(super) async fn remove_all(sink: &Arc<dyn Sink>, dir: &BackupDir) -> Result<()> {
    let pending = dir.pending()?;
    let mut objects = sink.list(dir.prefix());
    while let Some(object) = objects.try_next().await? {
        if object.key != pending {
            sink.delete(&object.key).await?;
        }
    }
    sink.delete(&pending).await
}
