//! One sink, used with patience and until told to stop.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Inner;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::{BackupDir, CONDEMNED, FINISHED, MANIFEST, PENDING, PINNED};
use crate::name::{BackupId, SetName, SinkId};
use crate::sink::{ObjectInfo, ObjectKind, PutOptions, Sink, put_bytes, read_bytes};

/// What a listing shows of the directory of one backup on one sink.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: BackupDir,
    /// The size of its manifest in bytes, if it has one.
    pub(super) manifest: Option<u64>,
    pub(super) pending: bool,
    pub(super) pinned: bool,
    /// The markers of pruners.
    pub(super) condemned: Vec<Key>,
    /// The notes on finished artifacts.
    pub(super) finished: Vec<Key>,
}

impl Place {
    fn new(dir: BackupDir) -> Self {
        Self {
            dir,
            manifest: None,
            pending: false,
            pinned: false,
            condemned: Vec::new(),
            finished: Vec::new(),
        }
    }
}

/// The directories of backups and log slices of one set on one sink.
pub(super) type Places = BTreeMap<BackupId, Place>;

impl Inner {
    /// Lists the directories of the backups and log slices of `set`.
    pub(super) async fn places(&self, sink: &Arc<dyn Sink>, set: &SetName, watch: &Watch) -> Result<Places> {
        let prefix = set.key()?;
        let take = |places: &mut Places, object: ObjectInfo| {
            note_place(places, &prefix, object);
            Ok(())
        };
        self.patience.list(sink.as_ref(), &prefix, watch, take).await
    }
}

/// Notes what an object below the set's `prefix` says of the backup or log slice it belongs to.
fn note_place(places: &mut Places, prefix: &Key, object: ObjectInfo) {
    let Some((id, dir, rest)) = BackupDir::of(prefix, &object.key) else { return };
    let mut segments = rest.iter().map(String::as_str);
    let Some(name) = segments.next() else { return };
    let place = places.entry(id).or_insert_with(|| Place::new(dir.clone()));
    if place.dir != dir {
        // Two directories of one id: somebody moved or copied one. The first is judged by what its manifest says of its
        // place, the other is never touched.
        return;
    }
    match (name, segments.next()) {
        (MANIFEST, None) => place.manifest = Some(object.size),
        (PENDING, None) => place.pending = true,
        (PINNED, None) => place.pinned = true,
        (CONDEMNED, Some(_)) => place.condemned.push(object.key),
        (name, None) if name.ends_with(FINISHED) => place.finished.push(object.key),
        _ => {}
    }
}

/// A sink with the repository's patience, the run's observers, and a token that stops it.
pub(super) struct Access<'a> {
    pub(super) inner: &'a Inner,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) watch: &'a Watch,
    pub(super) stop: CancellationToken,
}

impl Access<'_> {
    pub(super) fn id(&self) -> &SinkId {
        self.sink.id()
    }

    /// Runs `work` unless, or until, the run is stopped.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::cancelled("use sink").with("sink", self.id())),
            result = work => result,
        }
    }

    async fn retry<T, F: Future<Output = Result<T>>>(&self, operation: impl FnMut() -> F) -> Result<T> {
        self.unless_stopped(self.inner.patience.retry(self.id(), self.watch, operation)).await
    }

    pub(super) async fn places(&self, set: &SetName) -> Result<Places> {
        self.unless_stopped(self.inner.places(&self.sink, set, self.watch)).await
    }

    pub(super) async fn list(&self, prefix: &Key) -> Result<Vec<ObjectInfo>> {
        let take = |all: &mut Vec<ObjectInfo>, object| {
            all.push(object);
            Ok(())
        };
        self.unless_stopped(self.inner.patience.list(self.sink.as_ref(), prefix, self.watch, take)).await
    }

    pub(super) async fn put(&self, key: &Key, bytes: &Bytes) -> Result<()> {
        let options = PutOptions::overwrite(ObjectKind::Note);
        self.retry(|| async {
            put_bytes(self.sink.as_ref(), key, bytes.clone(), options.clone()).await.map(drop)
        })
        .await
    }

    pub(super) async fn delete(&self, key: &Key) -> Result<()> {
        self.retry(|| self.sink.delete(key)).await
    }

    pub(super) async fn change_class(&self, key: &Key, class: &str) -> Result<bool> {
        self.retry(|| self.sink.change_class(key, class)).await
    }

    /// Deletes even while the run is being stopped: to leave nothing behind. Tries once.
    pub(super) async fn release(&self, key: &Key) -> Result<()> {
        self.inner.patience.bound(self.sink.delete(key)).await
    }

    pub(super) async fn exists(&self, key: &Key) -> Result<bool> {
        match self.retry(|| self.sink.head(key)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a small object, if it exists.
    pub(super) async fn read(&self, key: &Key, limit: u64) -> Result<Option<Bytes>> {
        match self.retry(|| read_bytes(self.sink.as_ref(), key, limit)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the sink answered and refused, so that asking for something else may still succeed. After any other error it
/// is unknown what happened, and whether the sink can be used at all.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::ReadOnly
            | ErrorKind::StorageFull
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
            | ErrorKind::StoreInadequate
    )
}
