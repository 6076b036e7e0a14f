//! A multipart upload: parts under way, and its end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{Error, ErrorKind, Key, Result};
use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload, PutMultipartOptions, PutPayload};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::settle::FIRST_WAIT;
use crate::error::{Tried, described, reply};
use crate::shared::Shared;

const OPERATION: &str = "upload object";
/// Times an upload's beginning and its end are asked for. `object_store` repeats each for a while by itself, with
/// credentials as they were at its first try, but not when a reply breaks in its middle.
pub(super) const TRIES: u32 = 3;

/// An upload on the store. Dropped before it was completed or aborted, it aborts itself in the background.
pub(super) struct Upload {
    shared: Arc<Shared>,
    key: Key,
    path: Path,
    /// `None` once completed or aborted.
    remote: Option<Remote>,
    tasks: JoinSet<(usize, Result<Option<PartId>, object_store::Error>)>,
    /// Sizes of the parts under way, by index.
    under_way: BTreeMap<usize, u64>,
    done: BTreeMap<usize, PartId>,
    next: usize,
    runtime: Handle,
}

/// The store's side.
enum Remote {
    Parts {
        store: Arc<dyn MultipartStore>,
        id: MultipartId,
    },
    /// A store without [`MultipartStore`]. Never locked: the mutex only makes it shareable between threads.
    Whole(Mutex<Box<dyn MultipartUpload>>),
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("key", &self.key).field("parts", &self.next).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) async fn start(
        shared: Arc<Shared>,
        key: &Key,
        path: Path,
        options: PutMultipartOptions,
    ) -> Result<Self> {
        let runtime = Handle::current();
        let remote = open(Arc::clone(&shared), path.clone(), options, &runtime).await;
        let remote = remote.map_err(|e| shared.error(OPERATION, Tried::Enough, key, &e))?;
        Ok(Self {
            shared,
            key: key.clone(),
            path,
            remote: Some(remote),
            tasks: JoinSet::new(),
            under_way: BTreeMap::new(),
            done: BTreeMap::new(),
            next: 0,
            runtime,
        })
    }

    /// Sends the next part in the background.
    pub(super) fn push(&mut self, bytes: Bytes) {
        let index = self.next;
        self.next += 1;
        self.under_way.insert(index, bytes.len() as u64);
        let payload = PutPayload::from(bytes);
        match &mut self.remote {
            Some(Remote::Parts { store, id }) => {
                let (store, id, path) = (Arc::clone(store), id.clone(), self.path.clone());
                let sending = async move { store.put_part(&path, &id, index, payload).await };
                self.tasks.spawn_on(async move { (index, sending.await.map(Some)) }, &self.runtime);
            }
            Some(Remote::Whole(upload)) => {
                let sending = upload.get_mut().unwrap_or_else(PoisonError::into_inner).put_part(payload);
                self.tasks.spawn_on(async move { (index, sending.await.map(|()| None)) }, &self.runtime);
            }
            None => {}
        }
    }

    /// Waits until the parts under way take at most `room` bytes.
    pub(super) async fn wait_below(&mut self, room: u64) -> Result<()> {
        // Parts that arrived meanwhile are noted, and failures seen, even when there is room.
        while let Some(joined) = self.tasks.try_join_next() {
            self.note(joined)?;
        }
        while self.under_way.values().sum::<u64>() > room {
            let Some(joined) = self.tasks.join_next().await else { break };
            self.note(joined)?;
        }
        Ok(())
    }

    fn note(
        &mut self,
        joined: Result<(usize, Result<Option<PartId>, object_store::Error>), tokio::task::JoinError>,
    ) -> Result<()> {
        let (index, result) = joined.map_err(|e| {
            Error::new(ErrorKind::Internal, OPERATION).message("an upload task failed").caused_by(e)
        })?;
        self.under_way.remove(&index);
        let id = result.map_err(|e| {
            self.shared.error(OPERATION, Tried::Enough, &self.key, &e).with("part", index + 1)
        })?;
        if let Some(id) = id {
            self.done.insert(index, id);
        }
        Ok(())
    }

    /// Waits for every part.
    pub(super) async fn arrived(&mut self) -> Result<()> {
        self.wait_below(0).await
    }

    /// Makes the object of all parts visible, once.
    pub(super) async fn complete(&mut self) -> Result<(), object_store::Error> {
        match &mut self.remote {
            Some(Remote::Parts { store, id }) => {
                let parts = self.done.values().cloned().collect();
                store.complete_multipart(&self.path, id, parts).await.map(drop)
            }
            Some(Remote::Whole(upload)) => {
                upload.get_mut().unwrap_or_else(PoisonError::into_inner).complete().await.map(drop)
            }
            None => Err(object_store::Error::NotFound {
                path: self.path.to_string(),
                source: "the upload has ended".into(),
            }),
        }
    }

    /// Whether [`complete`](Self::complete) may be asked for again.
    pub(super) fn is_repeatable(&self) -> bool {
        matches!(self.remote, Some(Remote::Parts { .. }))
    }

    /// The object is there: nothing is left to abort.
    pub(super) fn completed(&mut self) {
        self.remote = None;
    }

    pub(super) fn completion_error(&self, error: &object_store::Error) -> Error {
        let reply = reply(error);
        if reply.code_is(&["NoSuchUpload"]) {
            return described(OPERATION, Tried::Enough, ErrorKind::Io, reply)
                .message("the unfinished upload was removed on the store while it ran (by a lifecycle rule or a sweep); run the backup again")
                .with("key", &self.key)
                .with("sink", &self.shared.id);
        }
        self.shared.error(OPERATION, Tried::Enough, &self.key, error)
    }

    /// Gives the upload up and removes its parts.
    pub(super) async fn abort(mut self) -> Result<()> {
        let Some(remote) = self.remote.take() else { return Ok(()) };
        let busy = !self.tasks.is_empty();
        self.tasks.shutdown().await;
        abandon(&self.shared, &self.key, &self.path, remote, busy).await
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(remote) = self.remote.take() else { return };
        let (shared, key, path) = (Arc::clone(&self.shared), self.key.clone(), self.path.clone());
        let mut tasks = std::mem::take(&mut self.tasks);
        self.runtime.spawn(async move {
            tasks.shutdown().await;
            // Nobody is left to tell; `sweep` finds what this could not remove.
            let _ = abandon(&shared, &key, &path, remote, true).await;
        });
    }
}

/// Begins the upload in a task of its own: one that is dropped meanwhile still learns the id, and aborts.
async fn open(
    shared: Arc<Shared>,
    path: Path,
    options: PutMultipartOptions,
    runtime: &Handle,
) -> Result<Remote, object_store::Error> {
    let (tell, told) = oneshot::channel();
    runtime.spawn(async move {
        let mut attempt = 1;
        let opened = loop {
            let opened = begin(&shared, &path, options.clone()).await;
            let again = opened.as_ref().is_err_and(|error| reply(error).is_passing());
            if !again || attempt >= TRIES || tell.is_closed() {
                break opened;
            }
            // The upload whose id was lost holds no part; `sweep` removes it.
            tokio::time::sleep(FIRST_WAIT * 2u32.pow(attempt)).await;
            attempt += 1;
        };
        if let Err(Ok(remote)) = tell.send(opened) {
            let _ = abandon(&shared, &Key::root(), &path, remote, false).await;
        }
    });
    told.await.unwrap_or_else(|e| Err(object_store::Error::Generic { store: "upload", source: Box::new(e) }))
}

async fn begin(
    shared: &Shared,
    path: &Path,
    options: PutMultipartOptions,
) -> Result<Remote, object_store::Error> {
    match &shared.multipart {
        Some(store) => {
            let id = store.create_multipart_opts(path, options).await?;
            Ok(Remote::Parts { store: Arc::clone(store), id })
        }
        None => Ok(Remote::Whole(Mutex::new(shared.store.put_multipart_opts(path, options).await?))),
    }
}

/// Aborts. With parts under way it asks twice: a part that arrives during the first request may outlive it
/// (Amazon S3 API reference, `AbortMultipartUpload`).
async fn abandon(shared: &Shared, key: &Key, path: &Path, remote: Remote, busy: bool) -> Result<()> {
    let result = match remote {
        Remote::Parts { store, id } => {
            let first = store.abort_multipart(path, &id).await;
            if busy && first.is_ok() {
                let _ = store.abort_multipart(path, &id).await;
            }
            first
        }
        Remote::Whole(upload) => upload.into_inner().unwrap_or_else(PoisonError::into_inner).abort().await,
    };
    match result {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(e) => {
            Err(shared.error("abort upload", Tried::Once, key, &e).with("hint", "`sweep` removes it later"))
        }
    }
}
