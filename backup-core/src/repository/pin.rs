//! Pins: a small object beside the manifest that keeps a backup until it is removed.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Inner, Repository};
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName};

#[derive(Serialize)]
struct Pin<'a> {
    format: u32,
    set: &'a SetName,
    id: BackupId,
    pinned: DateTime<Utc>,
}

impl Repository {
    /// Pins a backup: no prune deletes it until it is [unpinned](Self::unpin).
    ///
    /// The pin is stored on every sink that holds the backup, and a pin on one sink keeps every copy that a prune
    /// sees together with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such backup; [`ErrorKind::PruneRefused`] if a prune is, or was when
    /// it was killed, about to delete it: the pin is set, and holds if the backup is still there a quarter of an hour
    /// later. After any other error the pin may be missing on the sink that the error names, and pinning again
    /// is harmless.
    pub async fn pin(&self, set: &str, id: BackupId) -> Result<()> {
        let (inner, set) = (&self.0, SetName::parse(set)?);
        let watch = inner.watch(Vec::new());
        let catalog = inner.catalog_watched(set.clone(), watch.clone());
        let mut found = catalog.ids().await?;
        let (dir, sinks) = match found.backups.remove(&id) {
            Some(copies) => (copies.dir, copies.sinks),
            None => (BackupDir::new(&set, id)?, Vec::new()),
        };
        let pin = Pin { format: 1, set: &set, id, pinned: inner.clock.now() };
        let bytes = serde_json::to_vec(&pin)
            .map(Bytes::from)
            .map_err(|e| Error::new(ErrorKind::Internal, "pin").caused_by(e))?;
        for sink in &sinks {
            inner.pin_on(sink, &dir, &bytes, &watch).await.map_err(|e| e.with("sink", sink.id()))?;
        }
        if let Some((sink, error)) = found.unreachable.pop() {
            return Err(Error::new(error.kind(), "pin")
                .message("the pin may be missing on a sink that cannot be listed; pin again when it is back")
                .with("sink", sink)
                .caused_by(error));
        }
        if sinks.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "pin")
                .message("there is no such backup")
                .with("backup", format_args!("{set}/{id}")));
        }
        Ok(())
    }

    /// Removes the pin of a backup from every sink. Without a pin, nothing happens.
    ///
    /// # Errors
    ///
    /// Those of the sink from which it could not be removed; the backup is then still pinned.
    pub async fn unpin(&self, set: &str, id: BackupId) -> Result<()> {
        let (inner, set) = (&self.0, SetName::parse(set)?);
        let watch = inner.watch(Vec::new());
        let key = inner.catalog_watched(set, watch.clone()).dir(id).await?.pinned()?;
        let mut failed = None;
        for sink in &inner.sinks {
            if let Err(error) = inner.access(sink, &watch).delete(&key).await {
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Inner {
    async fn pin_on(
        &self,
        sink: &std::sync::Arc<dyn crate::sink::Sink>,
        dir: &BackupDir,
        bytes: &Bytes,
        watch: &Watch,
    ) -> Result<()> {
        let access = self.access(sink, watch);
        let key = dir.pinned()?;
        access.put(&key, bytes).await?;
        // The same order as between writers and pruners: first the pin, then a look for pruners.
        let condemned = !access.list(&dir.condemned()?).await?.is_empty();
        if !access.exists(&dir.manifest()?).await? {
            access.delete(&key).await?;
            return Err(Error::new(ErrorKind::NotFound, "pin").message("the backup has just been deleted"));
        }
        if condemned {
            return Err(Error::new(ErrorKind::PruneRefused, "pin").message(
                "a prune is, or was, about to delete this backup; the pin is set, and holds if the backup is still \
                 there in a quarter of an hour",
            ));
        }
        Ok(())
    }
}
