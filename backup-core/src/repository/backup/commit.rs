//! The moment a backup begins to exist, and what follows it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::TimeDelta;

use super::BackupReport;
use super::run::Prepared;
use crate::digest::Digest;
use crate::engine::fanout::{Numbered, all_failed};
use crate::engine::progress::Watch;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{BackupKey, Signatures};
use crate::layout::BackupDir;
use crate::manifest::{Manifest, Sealer, seal};
use crate::name::{BackupId, SinkId};
use crate::observer::Event;
use crate::placement::Shortfall;
use crate::repository::Inner;
use crate::repository::clear::clear_failed_copy;
use crate::repository::state::Kept;
use crate::sink::{CREATE_NEW_LIMIT, ObjectKind, PutOptions};
use crate::source::{Outcome, Warning};

/// Writes the manifest to each sink that has everything, and tells the source how it went.
pub(super) async fn commit(
    inner: &Inner,
    dir: &BackupDir,
    prepared: Prepared,
    mut alive: Vec<Numbered>,
    mut failed: Failures,
    snapshot: Option<Box<dyn crate::source::Snapshot>>,
    watch: &Watch,
) -> Result<BackupReport> {
    let Prepared { mut manifest, key, kept, proofs, mut warnings, taken } = prepared;
    match inner.still_ours(&alive, dir, &manifest, watch).await {
        Ok(lost) => {
            alive.retain(|(n, _)| lost.iter().all(|(failed, _)| failed != n));
            failed.extend(lost);
        }
        Err(error) => failed.extend(alive.drain(..).map(|(n, _)| n).zip(std::iter::once(error))),
    }
    manifest.finished = manifest.started + TimeDelta::from_std(watch.elapsed()).unwrap_or_default();
    manifest.good_copies = u32::try_from(alive.len()).unwrap_or(u32::MAX);
    let written = async {
        let bytes = seal(&manifest, inner.sealer(key.as_ref()))?;
        if bytes.len() as u64 > CREATE_NEW_LIMIT {
            return Err(Error::new(ErrorKind::LimitExceeded, "write manifest")
                .message("the backup has too many artifacts for one manifest; make its artifacts larger"));
        }
        let options =
            PutOptions::create_new(ObjectKind::Manifest).retain_until(inner.lock_until(manifest.keep_until));
        Ok((Digest::of(&bytes), inner.put_each(&alive, &dir.manifest()?, &bytes, &options, watch).await))
    };
    let mut digest = None;
    let mut unsure = BTreeSet::new();
    match written.await {
        Ok((sealed, failures)) => {
            digest = Some(sealed);
            unsure = failures.iter().filter(|(_, e)| e.is_retryable()).map(|(n, _)| *n).collect();
            alive.retain(|(n, _)| failures.iter().all(|(failed, _)| failed != n));
            failed.extend(failures);
        }
        Err(error) => {
            failed.extend(alive.drain(..).map(|(n, _)| n).zip(std::iter::once(error)));
        }
    }
    let short = inner.shortfalls(alive.iter().map(|(_, sink)| sink.id()));
    let outcome = match alive.len() {
        0 => Outcome::Aborted,
        n if n < inner.required_copies || !short.is_empty() => Outcome::Degraded,
        _ => Outcome::Committed,
    };
    // Before the source is closed, which may take long: replicators wait for this only some minutes.
    if outcome != Outcome::Aborted {
        taken.forget(inner, &manifest.set, &alive, watch).await;
    }
    let leave = outcome == Outcome::Aborted && taken.keep.load(Relaxed);
    tidy(inner, &manifest, dir, &alive, &unsure, leave, watch).await;
    let closed = match snapshot {
        Some(snapshot) => inner.patience.bound_source(snapshot.close(outcome)).await,
        None => Ok(()),
    };
    if outcome == Outcome::Aborted {
        return Err(all_failed(failed));
    }
    if let (Some(kept), Some(digest)) = (kept, digest)
        && let Err(error) = keep(kept, digest).await
    {
        let warning = Warning::new("state-not-kept", error.chain());
        watch.event(&Event::Warning(&warning));
        warnings.push(warning);
    }
    let failed: Vec<(SinkId, Error)> = failed
        .into_iter()
        .filter_map(|(n, error)| inner.sinks.get(n).map(|sink| (sink.id().clone(), error)))
        .collect();
    if outcome == Outcome::Degraded {
        return Err(too_few(inner, manifest.id, alive.len(), &short, &failed));
    }
    for warning in &inner.warnings {
        watch.event(&Event::Warning(warning));
        warnings.push(warning.clone());
    }
    if let Err(error) = closed {
        // The backup is safe; what the source could not release must still be said.
        let warning = Warning::new("source-not-released", error.chain());
        watch.event(&Event::Warning(&warning));
        warnings.push(warning);
    }
    Ok(BackupReport {
        id: manifest.id,
        copies: alive.iter().map(|(_, sink)| sink.id().clone()).collect(),
        failed,
        plain_size: manifest.totals.plain,
        stored_size: manifest.totals.stored,
        items: manifest.totals.items,
        proofs,
        warnings,
        adopted: taken.adopted(),
        elapsed: watch.elapsed(),
        set: manifest.set,
    })
}

/// The error of a backup that exists, but is degraded.
fn too_few(
    inner: &Inner,
    id: BackupId,
    copies: usize,
    short: &[Shortfall],
    failed: &[(SinkId, Error)],
) -> Error {
    let mut error = Error::new(ErrorKind::TooFewCopies, "back up")
        .message(
            "the backup exists, but on fewer sinks than required, or too close together; repair the sinks named here and \
             replicate it, or back up again",
        )
        .with("id", id)
        .with("copies", copies)
        .with("required", inner.required_copies);
    for short in short {
        error = error.with("short_of", short);
    }
    for (sink, why) in failed {
        error = error.with("failed", format_args!("{sink}: {}", why.chain()));
    }
    error
}

impl Inner {
    /// What seals a new manifest.
    pub(super) fn sealer<'a>(&'a self, key: Option<&'a BackupKey>) -> Sealer<'a> {
        match (key, self.chain.signatures().and_then(Signatures::signing_key)) {
            (Some(key), _) => Sealer::Key(key),
            (None, Some(signing)) => Sealer::Signature(signing),
            (None, None) => Sealer::Nothing,
        }
    }
}

/// Keeps what the next incremental needs on this host.
async fn keep(kept: Arc<Mutex<Kept>>, manifest: Digest) -> Result<()> {
    let commit = move || kept.lock().unwrap_or_else(PoisonError::into_inner).commit(manifest);
    let done = tokio::task::spawn_blocking(commit).await;
    done.map_err(|e| Error::new(ErrorKind::Internal, "keep state").caused_by(e))?
}

/// After the commit: nothing at all where the backup is not, then no pending marker where it is. In this order, so that
/// a replicator that finds no marker beside a manifest can be sure that nothing is removed from the other sinks any more.
///
/// Where it is not known whether the manifest was written (`unsure`: no answer came, and one may still be on its way)
/// everything is left to the orphan sweep: a manifest that appears late must find its objects.
async fn tidy(
    inner: &Inner,
    manifest: &Manifest,
    dir: &BackupDir,
    alive: &[Numbered],
    unsure: &BTreeSet<usize>,
    leave: bool,
    watch: &Watch,
) {
    let spared = |number: &usize| unsure.contains(number) || alive.iter().any(|(n, _)| n == number);
    let failed = inner.sinks.iter().enumerate().filter(|(n, _)| !spared(n)).map(|(_, sink)| async move {
        // Failing here costs only some space until the orphan sweep; the backup itself is decided.
        let access = inner.access(sink, watch);
        let clearing = async {
            if leave {
                // A run that resumes takes over what is finished.
                return access.release(&dir.pending()?).await;
            }
            clear_failed_copy(&access, &manifest.set, manifest.id, dir).await
        };
        let _ = inner.patience.bound(clearing).await;
    });
    futures::future::join_all(failed).await;
    let good = alive.iter().map(|(_, sink)| async move {
        let _ = inner.patience.bound(async { sink.delete(&dir.pending()?).await }).await;
    });
    futures::future::join_all(good).await;
}
