//! Rotating one copy.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{KeptWrap, Rotated, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::keys::BackupKey;
use crate::repository::catalog::{Catalog, Opened, WRAP_LIMIT};
use crate::repository::replicate::open_wrap;
use crate::sink::{ObjectKind, PutOptions, Sink, read_bytes};

impl Run<'_> {
    /// New wraps, proof that they open, and only then no old ones.
    pub(super) async fn copy(
        &mut self,
        catalog: &Catalog<'_>,
        opened: &Opened,
        key: &BackupKey,
        sink: &Arc<dyn Sink>,
        wraps: &[(String, Bytes)],
    ) -> Result<()> {
        let directory = opened.dir.keys()?;
        let found = catalog.wraps(sink, &directory).await?;
        let mut written = 0;
        for (name, bytes) in wraps {
            let there = found.iter().find(|(n, _)| n == name);
            if let Some(there) = there
                && self.opens(catalog, opened, key, there.clone()).await.is_ok()
            {
                continue;
            }
            let path = directory.append(&Key::parse(name.clone())?);
            // What is there under this name is damaged: nothing that opens is replaced.
            let options = PutOptions::overwrite(ObjectKind::Note)
                .retain_until(self.inner.lock_until(opened.manifest.keep_until));
            self.inner.put_one(sink, &path, bytes, &options, &self.watch).await?;
            let read = || read_bytes(sink.as_ref(), &path, WRAP_LIMIT);
            let back = self.inner.patience.retry(sink.id(), &self.watch, read).await?;
            self.opens(catalog, opened, key, (name.clone(), back)).await?;
            written += 1;
        }
        let mut deleted = 0;
        for (name, bytes) in found.into_iter().filter(|(name, _)| wraps.iter().all(|(new, _)| new != name)) {
            if self.keep_old {
                break;
            }
            let path = directory.append(&Key::parse(name.clone())?);
            if self.is_ours(catalog, opened, key, (name, bytes)).await? {
                deleted += usize::from(self.delete(sink, opened, wraps, &path).await?);
            } else {
                let kept = self.kept(sink, path, None).await;
                self.report.foreign.push(kept);
            }
        }
        // And once more: see `delete`. Between its look and its deletion nothing can be excluded, only repaired.
        if deleted > 0 && !self.is_rotated(sink, opened, wraps).await? && self.is_there(sink, opened).await? {
            for (name, bytes) in wraps {
                let path = directory.append(&Key::parse(name.clone())?);
                let options = PutOptions::overwrite(ObjectKind::Note);
                self.inner.put_one(sink, &path, bytes, &options, &self.watch).await?;
            }
        }
        self.report.rotated.push(Rotated {
            set: catalog.set.clone(),
            id: opened.manifest.id,
            sink: sink.id().clone(),
            written,
            deleted,
        });
        Ok(())
    }

    /// Whether the new keyring alone opens this wrap to the backup's key.
    async fn opens(
        &self,
        catalog: &Catalog<'_>,
        opened: &Opened,
        key: &BackupKey,
        wrap: (String, Bytes),
    ) -> Result<()> {
        match open_wrap(&self.new, &catalog.set, opened.manifest.id, wrap).await? {
            Some(found) if found.is_same(key) => Ok(()),
            _ => Err(Error::corrupt(
                "rotate",
                "the new wrap does not open what was wrapped; the old one stays",
            )),
        }
    }

    /// Whether a wrap is one of our old ones. Damaged ones for a key of ours are.
    async fn is_ours(
        &self,
        catalog: &Catalog<'_>,
        opened: &Opened,
        key: &BackupKey,
        wrap: (String, Bytes),
    ) -> Result<bool> {
        let Some(keyring) = &self.inner.keyring else { return Ok(false) };
        let id = wrap.0.strip_suffix(".json").unwrap_or(&wrap.0).to_owned();
        match open_wrap(keyring, &catalog.set, opened.manifest.id, wrap).await {
            Ok(Some(found)) if found.is_same(key) => Ok(true),
            Ok(Some(_)) => {
                Err(Error::corrupt("rotate", "a wrap of this copy opens to another key than its manifest's")
                    .with("key", id))
            }
            Ok(None) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Internal => Err(error),
            Err(_) => Ok(keyring.key_ids().contains(&id)),
        }
    }

    /// Deletes an old wrap; `false` when the store keeps it.
    ///
    /// Before every try it looks whether the new wraps are still there. They are not when a prune deleted this copy
    /// meanwhile and a replication brought it back, with the wraps of another sink: then the old one is all it has.
    async fn delete(
        &mut self,
        sink: &Arc<dyn Sink>,
        opened: &Opened,
        wraps: &[(String, Bytes)],
        path: &Key,
    ) -> Result<bool> {
        let (inner, watch) = (self.inner, self.watch.clone());
        let mut tries = inner.patience.tries(sink.id(), &watch);
        loop {
            if !self.is_rotated(sink, opened, wraps).await? {
                if !self.is_there(sink, opened).await? {
                    return Ok(false);
                }
                return Err(Error::new(ErrorKind::NotFound, "rotate").message(
                    "this copy was deleted and copied anew while it was being rotated; rotate again",
                ));
            }
            match inner.patience.bound(sink.delete(path)).await {
                Ok(()) => return Ok(true),
                Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnly) => {
                    let kept = self.kept(sink, path.clone(), Some(error)).await;
                    self.report.locked.push(kept);
                    return Ok(false);
                }
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// Whether all the new wraps are there.
    async fn is_rotated(
        &self,
        sink: &Arc<dyn Sink>,
        opened: &Opened,
        wraps: &[(String, Bytes)],
    ) -> Result<bool> {
        let (access, directory) = (self.inner.access(sink, &self.watch), opened.dir.keys()?);
        for (name, _) in wraps {
            if !access.exists(&directory.append(&Key::parse(name.clone())?)).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_there(&self, sink: &Arc<dyn Sink>, opened: &Opened) -> Result<bool> {
        self.inner.access(sink, &self.watch).exists(&opened.dir.manifest()?).await
    }

    async fn kept(&self, sink: &Arc<dyn Sink>, wrap: Key, error: Option<Error>) -> KeptWrap {
        let until = error
            .as_ref()
            .and_then(|e| e.context_value("retain_until"))
            .and_then(|text| DateTime::parse_from_rfc3339(text).ok())
            .map(|time| time.with_timezone(&Utc));
        // Only to tell its age: nothing depends on it.
        let head = self.inner.patience.bound(sink.head(&wrap)).await;
        let written = head.ok().and_then(|info| info.modified);
        KeptWrap { sink: sink.id().clone(), wrap, until, written, error }
    }
}
