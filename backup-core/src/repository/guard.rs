//! What a writer checks so that it needs no lock against pruners and sweeps.
//!
//! A writer that builds on a parent announces it in its pending marker and *then* looks for the parent's manifest and for
//! markers of pruners. A pruner sets its marker and *then* lists pending markers. Whatever the order, at least one
//! of the two sees the other and gives way.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::access::Access;
use super::commit::{PENDING_LIMIT, Pending};
use crate::engine::fanout::Numbered;
use crate::engine::progress::Watch;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::BackupDir;
use crate::manifest::Manifest;
use crate::name::{BackupId, SetName};
use crate::observer::Event;
use crate::retention::BackupKind;

impl Inner {
    /// Finds out on which of `sinks` a backup may be built on `parent`, and returns the others: those without the
    /// parent's manifest, and those where a prune is about to delete it.
    ///
    /// To be called after the pending marker that names the parent is visible, and again just before the manifest of
    /// the new backup is written. Everything the parent itself refers to is safe with it: pruners delete nothing that
    /// something they leave needs.
    pub(super) async fn ensure_parent(
        &self,
        sinks: &[Numbered],
        set: &SetName,
        parent: BackupId,
        watch: &Watch,
    ) -> Result<Failures> {
        let dir = BackupDir::new(set, parent)?;
        let checks = sinks.iter().map(|(number, sink)| {
            let access = self.access(sink, watch);
            let dir = &dir;
            async move { (*number, usable_parent(&access, dir).await) }
        });
        Ok(failures(join_all(checks).await).into_iter().map(|(n, e)| (n, e.with("parent", parent))).collect())
    }

    /// The checks just before a manifest is written: on each sink the run's pending marker is still there and has not
    /// run out, and the parent is still there. Returns the sinks where that is not so.
    pub(super) async fn still_ours(
        &self,
        sinks: &[Numbered],
        dir: &BackupDir,
        manifest: &Manifest,
        watch: &Watch,
    ) -> Result<Failures> {
        let key = dir.pending()?;
        let checks = sinks.iter().map(|(number, sink)| {
            let (access, key) = (self.access(sink, watch), &key);
            async move {
                let marker = access.read(key, PENDING_LIMIT).await;
                (
                    *number,
                    marker.and_then(|bytes| still_valid(bytes.as_deref(), manifest.id, self.clock.now())),
                )
            }
        });
        let mut failed = failures(join_all(checks).await);
        if let BackupKind::Incremental { parent } = manifest.kind {
            failed.extend(self.ensure_parent(sinks, &manifest.set, parent, watch).await?);
        }
        for (number, error) in &failed {
            if let Some((_, sink)) = sinks.iter().find(|(n, _)| n == number) {
                watch.event(&Event::SinkFailed { sink: sink.id(), error });
            }
        }
        Ok(failed)
    }

    /// `sink` for small operations that nothing but their time limit stops.
    pub(super) fn access<'a>(&'a self, sink: &Arc<dyn crate::sink::Sink>, watch: &'a Watch) -> Access<'a> {
        Access { inner: self, sink: Arc::clone(sink), watch, stop: CancellationToken::new() }
    }
}

fn failures(results: Vec<(usize, Result<()>)>) -> Failures {
    results.into_iter().filter_map(|(number, result)| result.err().map(|e| (number, e))).collect()
}

async fn usable_parent(access: &Access<'_>, dir: &BackupDir) -> Result<()> {
    // The markers first: a pruner that removes its marker last has removed the manifest before.
    let condemned = !access.list(&dir.condemned()?).await?.is_empty();
    if !access.exists(&dir.manifest()?).await? {
        return Err(Error::new(ErrorKind::NotFound, "check parent")
            .message(
                "the backup to build on is not on this sink; make a full backup, or replicate the parent",
            )
            .with("sink", access.id()));
    }
    if condemned {
        return Err(Error::new(ErrorKind::NotFound, "check parent")
            .message("a prune is deleting the backup to build on; make a full backup")
            .with("sink", access.id()));
    }
    Ok(())
}

fn still_valid(marker: Option<&[u8]>, id: BackupId, now: DateTime<Utc>) -> Result<()> {
    let lost = || {
        Error::new(ErrorKind::Timeout, "write manifest").retryable(false).message(
            "the marker of this run is gone or ran out: it was silent for more than a day, and what it wrote may \
             have been swept away; back up again",
        )
    };
    let pending = Pending::parse(marker.ok_or_else(lost)?)?;
    if pending.id == id && pending.expires > now { Ok(()) } else { Err(lost()) }
}
