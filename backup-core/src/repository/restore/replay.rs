//! Replaying a continuous log on the staged copy of a base.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};

use super::super::Inner;
use super::super::catalog::{Catalog, Opened};
use super::super::contents::Contents;
use super::plan::{Frozen, Planned, ask};
use super::{Chosen, Replayed};
use crate::error::{Error, ErrorKind, Result};
use crate::observer::Event;
use crate::reader::ArtifactReader;
use crate::retention::{BackupKind, LogPosition, Until};
use crate::target::{PlannedArtifact, PlannedSlice, Restore, SliceReader};

/// Slices opened at once while planning.
const OPEN_AT_ONCE: usize = 8;

/// Adds the chosen slices to the plan, and checks that every object of theirs can be read, before anything is touched.
pub(super) async fn plan(
    inner: &Inner,
    catalog: &Catalog<'_>,
    planned: &mut Planned,
    chosen: &Chosen,
    until: Option<&Until>,
    thaw: bool,
) -> Result<()> {
    let opening: Vec<_> =
        chosen.slices.iter().map(|slice| one(inner, catalog, planned, slice.id).boxed()).collect();
    let slices: Vec<_> = futures::stream::iter(opening).buffered(OPEN_AT_ONCE).collect().await;
    let mut archived = Frozen::new();
    for slice in slices {
        let (slice, mut frozen) = slice?;
        planned.plan.log.push(slice);
        archived.append(&mut frozen);
    }
    if !archived.is_empty() {
        return Err(ask(inner, catalog, archived, thaw).await?);
    }
    planned.plan.until = until.cloned();
    let mut reached = planned.plan.log_position.as_ref();
    for slice in &planned.plan.log {
        if reached.is_none_or(|reached| slice.from > *reached) {
            return Err(Error::new(ErrorKind::LogGap, "plan restore")
                .message("a slice of the log does not join the one before")
                .with("slice", slice.id)
                .with("from", &slice.from));
        }
        reached = reached.max(Some(&slice.to));
    }
    Ok(())
}

async fn one(
    inner: &Inner,
    catalog: &Catalog<'_>,
    planned: &Planned,
    id: crate::name::BackupId,
) -> Result<(PlannedSlice, Frozen)> {
    let opened = catalog.open(id).await?;
    let BackupKind::Log { from, to, from_time, to_time } = opened.manifest.kind.clone() else {
        return Err(Error::corrupt("plan restore", "a slice of the log is none").with("slice", id));
    };
    let mut artifacts = Vec::new();
    let mut archived = planned.frozen(inner, catalog, &opened, &opened.manifest.details).await?;
    for artifact in &opened.manifest.artifacts {
        archived.append(&mut planned.frozen(inner, catalog, &opened, &artifact.stored).await?);
        artifacts.push(PlannedArtifact {
            origin: id,
            meta: artifact.meta.clone(),
            plain_size: artifact.stored.plain_size.unwrap_or(0),
            details: serde_json::Map::new(),
        });
    }
    artifacts.sort_by_key(|a| a.meta.phase);
    Ok((PlannedSlice { id, from, to, from_time, to_time, artifacts }, archived))
}

/// Offers every slice to the target, in order, and asks how far it came.
pub(super) async fn replay(
    inner: &Inner,
    catalog: &Catalog<'_>,
    planned: &Planned,
    restore: &dyn Restore,
) -> Result<Option<Replayed>> {
    let Some(last) = planned.plan.log.last() else { return Ok(None) };
    for slice in &planned.plan.log {
        let opened = catalog.open(slice.id).await?;
        let copies = planned.copies(inner, &opened);
        let contents = Contents::from_copies(inner, opened, &copies, &catalog.watch).await?;
        let reader = reader(inner, catalog, planned, &contents, slice).await?;
        for artifact in &slice.artifacts {
            catalog.watch.event(&Event::ArtifactStarted { artifact: &artifact.meta.name });
        }
        restore.replay(reader).await.map_err(|e| e.with("slice", slice.id))?;
        for artifact in &contents.manifest().artifacts {
            catalog.watch.event(&Event::ArtifactFinished {
                artifact: &artifact.meta.name,
                plain: artifact.stored.plain_size.unwrap_or(0),
                stored: artifact.stored.size,
            });
        }
    }
    let position = restore.replayed().await?;
    check(planned.plan.until.as_ref(), planned.plan.log_position.as_ref(), &last.to, &position)?;
    Ok(Some(Replayed { slices: planned.plan.log.len(), position }))
}

async fn reader(
    inner: &Inner,
    catalog: &Catalog<'_>,
    planned: &Planned,
    contents: &Contents,
    slice: &PlannedSlice,
) -> Result<SliceReader> {
    let opened: &Opened = &contents.opened;
    let mut slice = slice.clone();
    let mut artifacts = Vec::new();
    for artifact in &mut slice.artifacts {
        let name = artifact.meta.name.as_ref();
        let stored = opened.manifest.artifact(name).ok_or_else(|| {
            Error::corrupt("replay log", "an artifact of the slice has vanished").with("artifact", name)
        })?;
        artifact.details = contents.artifact_details(name).cloned().unwrap_or_default();
        // Nothing is read back from a log that was applied: the plain bytes are hashed while they are read.
        let sha256 = contents.head.artifacts.get(name).map(|a| a.sha256);
        let copies = planned.copies(inner, opened);
        let plain = inner.plain_reader(opened, name, &stored.stored, sha256, &copies, &catalog.watch).await?;
        let size = plain.plain_size;
        artifacts.push(ArtifactReader::new(artifact.meta.clone(), size, None, Arc::new(plain)));
    }
    Ok(SliceReader { proofs: contents.proofs().clone(), slice, artifacts })
}

/// Insists that the target came as far as it was to, and no farther.
fn check(
    until: Option<&Until>,
    start: Option<&LogPosition>,
    end: &LogPosition,
    reached: &LogPosition,
) -> Result<()> {
    let limit = match until {
        Some(Until::Position(position)) => position.min(end),
        _ => end,
    };
    let short = matches!(until, None | Some(Until::End)) && reached != end;
    if short || reached > limit || start.is_some_and(|start| reached < start) {
        return Err(Error::new(ErrorKind::TargetFailed, "replay log")
            .message("the target did not replay the log up to where it was to; nothing was put in place")
            .with("reached", reached)
            .with("end", limit));
    }
    Ok(())
}
