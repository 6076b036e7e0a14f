//! Running a restore: stage, prove, commit; or leave everything as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};

use super::super::Inner;
use super::super::catalog::Catalog;
use super::super::contents::Contents;
use super::super::shutdown::or_drop;
use super::losses::{self, Loss};
use super::plan::{Parts, Planned};
use super::{Chosen, Options, Replayed, RestoreBuilder, RestoreOutcome, RestoreTo, replay};
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName};
use crate::observer::Event;
use crate::proof::Proofs;
use crate::reader::ArtifactReader;
use crate::retention::BackupKind;
use crate::selection::Selection;
use crate::source::Source;
use crate::target::{Atomicity, PlannedArtifact, Restore, RestoreReport, RestoreTarget, Undo};

/// A restore without what only starts and stops it.
struct Job<'a> {
    which: RestoreBuilder<'a>,
    target: &'a dyn RestoreTarget,
    options: Options,
    safety: Option<(String, &'a dyn Source)>,
}

impl RestoreTo<'_> {
    pub(super) async fn run(self) -> Result<RestoreOutcome> {
        let Self { which, target, options, observers, shutdown, safety } = self;
        let job = Job { which, target, options, safety };
        let inner = &job.which.repository.0;
        let set = SetName::parse(job.which.set.clone())?;
        let watch = inner.watch(observers);
        let chosen = job.which.choose().await?;
        let id = chosen.id;
        watch.event(&Event::Started { verb: "restore", set: &set, id });
        if let Some(warning) = &chosen.passed_over {
            watch.event(&Event::Warning(warning));
        }
        let work = job.stage(inner, &set, &chosen, &watch);
        // Dropping the work drops the target's restore, which leaves the target as it was.
        let staged = or_drop(shutdown, "restore", work).await;
        let result = match staged {
            Ok(staged) => staged.settle(job.options.rehearse, &watch).await.map(|mut settled| {
                settled.report.warnings.splice(0..0, chosen.passed_over);
                RestoreOutcome {
                    id,
                    set: set.clone(),
                    report: settled.report,
                    proofs: settled.proofs,
                    replayed: settled.replayed,
                    undo: settled.undo,
                    safety_backup: settled.safety_backup,
                    losses: settled.losses,
                    plain_read: settled.plain_read,
                    elapsed: watch.elapsed(),
                }
            }),
            Err(error) => Err(error),
        };
        let error = result.as_ref().err();
        watch.event(&Event::Finished { verb: "restore", set: &set, id, error, elapsed: watch.elapsed() });
        result.map_err(|e| e.with("backup", format_args!("{set}/{id}")))
    }
}

/// A restored copy that was proved and is not in place yet.
struct Staged {
    restore: Box<dyn Restore>,
    proofs: Proofs,
    plain_read: u64,
    replayed: Option<Replayed>,
    safety_backup: Option<BackupId>,
    losses: Vec<Loss>,
}

/// A restore that is over.
struct Settled {
    report: RestoreReport,
    undo: Option<Box<dyn Undo>>,
    proofs: Proofs,
    plain_read: u64,
    replayed: Option<Replayed>,
    safety_backup: Option<BackupId>,
    losses: Vec<Loss>,
}

impl Staged {
    /// Puts the copy in place, or throws it away.
    ///
    /// Runs in a task of its own: from here on neither a shutdown nor a dropped future stops it, because a target that
    /// is stopped between two steps of its commit would be left half changed while the caller hears "cancelled".
    async fn settle(self, rehearse: bool, watch: &Watch) -> Result<Settled> {
        let Self { restore, proofs, plain_read, replayed, safety_backup, losses } = self;
        let commit = tokio::spawn(async move {
            if rehearse {
                restore.abort().await.map(|()| (RestoreReport::default(), None))
            } else {
                restore.commit().await
            }
        });
        let (report, undo) = commit.await.map_err(|e| {
            Error::new(ErrorKind::Internal, "restore")
                .message("the task that puts the restored copy in place failed; look at the target before trying again")
                .caused_by(e)
        })??;
        for warning in &report.warnings {
            watch.event(&Event::Warning(warning));
        }
        Ok(Settled { report, undo, proofs, plain_read, replayed, safety_backup, losses })
    }
}

impl Job<'_> {
    /// Everything up to the point where the target changes.
    async fn stage(&self, inner: &Inner, set: &SetName, chosen: &Chosen, watch: &Watch) -> Result<Staged> {
        let catalog = inner.catalog_watched(set.clone(), watch.clone());
        let selection = match &self.options.only {
            Some(only) => Selection::globs(only)?,
            None => self.options.selection.clone(),
        };
        let id = chosen.id;
        let contents = Contents::of(inner, catalog.open(id).await?, watch).await?;
        if matches!(contents.manifest().kind, BackupKind::Log { .. }) {
            return Err(Error::invalid(
                "plan restore",
                "this is a slice of a log, which is replayed on a backup: say with `until` how far to restore",
            ));
        }
        let (selection, losses) = self.without_losses(inner, &catalog, &contents, selection).await?;
        let mut planned = Planned::make(inner, &catalog, contents, &self.options, selection).await?;
        let until = self.which.until.as_ref();
        replay::plan(inner, &catalog, &mut planned, chosen, until, self.options.thaw).await?;
        let log = planned.plan.log.iter().flat_map(|slice| &slice.artifacts);
        for artifact in planned.plan.artifacts.iter().chain(log) {
            if !self.target.accepts(&artifact.meta.format) {
                return Err(Error::new(ErrorKind::Unsupported, "plan restore")
                    .message(
                        "the target cannot take this format; choose the target that fits what was backed up",
                    )
                    .with("artifact", &artifact.meta.name)
                    .with("format", &artifact.meta.format.name)
                    .with("made_by", &planned.plan.source_kind));
            }
        }
        planned.preflight(inner, &catalog, self.options.thaw).await?;
        let safety_backup = self.safety().await?;

        let restore = self.target.begin(&planned.plan).await?;
        let staged = async {
            let (proofs, base) = stage(inner, &catalog, &planned, restore.as_ref(), watch).await?;
            let replayed = replay::replay(inner, &catalog, &planned, restore.as_ref()).await?;
            let log = planned.plan.log.iter().flat_map(|slice| &slice.artifacts).map(|a| a.plain_size);
            Ok((proofs, base + log.sum::<u64>(), replayed))
        };
        match staged.await {
            Ok((proofs, plain_read, replayed)) => {
                Ok(Staged { restore, proofs, plain_read, replayed, safety_backup, losses })
            }
            // The error that stopped the restore is the one to report; an abort that fails adds to it.
            Err(error) => Err(match restore.abort().await {
                Ok(()) => error,
                Err(abort) => error.with("and_cleaning_up_failed", abort.chain()),
            }),
        }
    }

    /// What of `selection` can be restored, and what cannot, where that is asked for.
    async fn without_losses(
        &self,
        inner: &Inner,
        catalog: &Catalog<'_>,
        contents: &Contents,
        selection: Selection,
    ) -> Result<(Selection, Vec<Loss>)> {
        if !self.options.allow_losses {
            return Ok((selection, Vec::new()));
        }
        if self.options.replace {
            return Err(Error::invalid(
                "plan restore",
                "a restore that allows losses must not replace anything: restore into an empty target, and \
                 choose what to take from there",
            ));
        }
        if self.which.until.is_some() {
            return Err(Error::invalid(
                "plan restore",
                "a log cannot be replayed on a base with losses: restore the backup alone, without `until`",
            ));
        }
        let losses = losses::find(inner, catalog, contents, &selection).await?;
        if losses.is_empty() {
            return Ok((selection, losses));
        }
        let lost: Vec<_> = losses.iter().map(|loss| loss.item.clone()).collect();
        Ok((selection.except(lost), losses))
    }

    /// Backs the target's present state up, where that is asked for, and insists on it where it is needed.
    async fn safety(&self) -> Result<Option<BackupId>> {
        let in_place =
            self.options.replace && self.target.atomicity() == Atomicity::None && !self.options.rehearse;
        if in_place && !(self.options.allow_partial && self.safety.is_some()) {
            return Err(Error::invalid(
                "plan restore",
                "this target can only be replaced in place, and a failure would leave it half-restored; \
                 accept that with `allow_partial()` and name a `safety_backup()`, or restore into an empty target",
            ));
        }
        match &self.safety {
            None => Ok(None),
            Some((set, source)) => {
                let done = self
                    .which
                    .repository
                    .backup(set, *source)
                    .label("reason", "before restore")
                    .await
                    .map_err(|e| Error::new(e.kind(), "make safety backup").caused_by(e))?;
                Ok(Some(done.id))
            }
        }
    }
}

/// Streams everything the target needs, phase by phase, and compares what it proves. Returns the proofs and the
/// plain bytes read.
async fn stage(
    inner: &Inner,
    catalog: &Catalog<'_>,
    planned: &Planned,
    restore: &dyn Restore,
    watch: &Watch,
) -> Result<(Proofs, u64)> {
    let parts = planned.parts(restore).await?;
    let mut phases: BTreeMap<u32, Vec<&PlannedArtifact>> = BTreeMap::new();
    let mut total = 0;
    for artifact in &planned.plan.artifacts {
        if let Some(ranges) = parts.get(&(artifact.origin, artifact.meta.name.to_string())) {
            total += match ranges {
                None => artifact.plain_size,
                Some(ranges) => ranges.iter().map(|r| r.end - r.start).sum(),
            };
            phases.entry(artifact.meta.phase).or_default().push(artifact);
        }
    }
    watch.expect(Some(total));
    for artifacts in phases.into_values() {
        let mut waiting = artifacts.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            let room = restore.max_open().max(1).saturating_sub(running.len());
            let more = waiting.by_ref().take(room);
            running.extend(more.map(|a| one(inner, catalog, planned, restore, a, &parts, watch).boxed()));
            match running.next().await {
                Some(result) => result?,
                None => break,
            }
        }
    }
    let proofs = restore.prove().await?;
    compare(&planned.plan.proofs, &proofs)?;
    Ok((proofs, total))
}

async fn one(
    inner: &Inner,
    catalog: &Catalog<'_>,
    planned: &Planned,
    restore: &dyn Restore,
    artifact: &PlannedArtifact,
    parts: &Parts,
    watch: &Watch,
) -> Result<()> {
    let (backup, stored) = planned.stored(artifact)?;
    let reader = inner
        .plain_reader(
            &backup.opened,
            &artifact.meta.name,
            &stored.stored,
            // Every stored block is checked by its digest, every decoder checks its own sums, and the staged copy is
            // proved by reading it back: hashing the plain stream once more would find nothing. `verify` does it.
            None,
            &planned.copies(inner, &backup.opened),
            &catalog.watch,
        )
        .await?;
    let ranges = parts.get(&(artifact.origin, artifact.meta.name.to_string())).cloned().flatten();
    watch.event(&Event::ArtifactStarted { artifact: &artifact.meta.name });
    let (plain, size) = (reader.plain_size, stored.stored.size);
    let reader = ArtifactReader::new(artifact.meta.clone(), plain, ranges, Arc::new(reader));
    restore.artifact(reader).await.map_err(|e| e.with("artifact", &artifact.meta.name))?;
    watch.event(&Event::ArtifactFinished { artifact: &artifact.meta.name, plain, stored: size });
    Ok(())
}

/// Insists that what was staged is what was backed up.
fn compare(expected: &Proofs, actual: &Proofs) -> Result<()> {
    let names: std::collections::BTreeSet<_> = expected.keys().chain(actual.keys()).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| expected.get(*name) != actual.get(*name))
        .map(|name| {
            let count = |proofs: &Proofs| proofs.get(name).map_or(0, |p| p.count);
            format!("{name} ({} items expected, {} found)", count(expected), count(actual))
        })
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    let shown = differing.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
    Err(Error::new(ErrorKind::ProofMismatch, "prove restored copy")
        .message("the restored copy is not what was backed up; nothing was put in place")
        .with("differing", shown)
        .with("count", differing.len()))
}
