//! The second look, after the markers are set: what else may need a victim.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::super::access::{Access, Place, Places};
use super::super::commit::{PENDING_LIMIT, Pending};
use super::planned::SinkPlan;
use super::survey::{open_one, refused};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName};

/// What the second look found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Backups that must not be deleted now, and why.
    pub(super) blocked: BTreeMap<BackupId, String>,
    /// Victims that another prune has deleted, or is deleting, meanwhile.
    pub(super) gone: BTreeSet<BackupId>,
    /// The size in bytes of each manifest listed.
    pub(super) manifests: BTreeMap<BackupId, u64>,
    /// A run that may be writing to this set.
    pub(super) running: Option<BackupId>,
}

/// Lists the set again and finds out what may need a backup of `marked`, each given with this run's marker on it (or
/// without, where the sink is full).
pub(super) async fn recheck(
    access: &Access<'_>,
    set: &SetName,
    plan: &SinkPlan,
    marked: &BTreeMap<BackupId, Option<Key>>,
    now: DateTime<Utc>,
) -> Result<Seen> {
    let places = access.places(set).await?;
    let mut seen = Seen {
        manifests: places.iter().filter_map(|(id, place)| Some((*id, place.manifest?))).collect(),
        ..Seen::default()
    };
    everything_kept_is_there(plan, &seen)?;
    markers_are_there(access, &places, marked, &mut seen).await?;
    for (id, place) in &places {
        let pending = if place.pending { pending(access, &place.dir).await? } else { None };
        let running = pending.filter(|pending| pending.may_be_alive(now));
        if place.pinned {
            seen.block(*id, "it was pinned after the plan was made");
        }
        if let Some(pending) = &running {
            seen.running = Some(*id);
            seen.block(*id, "the run that makes it, or copies it, may still be at work");
            if let Some(parent) = pending.parent {
                seen.block(parent, format!("a running backup, {id}, builds on it"));
            }
        }
        // One that the plan forgets and that is no victim just now was spared, or deleted and copied back since: what
        // something needs is deleted after it.
        let there = place.manifest.is_some() && !marked.contains_key(id);
        if let Some(summary) = plan.summaries.get(id).filter(|_| there) {
            for needed in summary.needs() {
                seen.block(needed, format!("{id}, which is still or again there, needs it"));
            }
        }
        let unknown = !plan.summaries.contains_key(id) && !plan.unfinished.contains(id);
        if unknown && (place.manifest.is_some() || running.is_none()) {
            newcomer(access, set, *id, place, &mut seen).await?;
        }
    }
    Ok(seen)
}

impl Seen {
    fn block(&mut self, id: BackupId, why: impl Into<String>) {
        self.blocked.entry(id).or_insert_with(|| why.into());
    }
}

/// The plan is of use only while what it keeps is there: it may count on it.
fn everything_kept_is_there(plan: &SinkPlan, seen: &Seen) -> Result<()> {
    match plan.plan.kept().find(|entry| !seen.manifests.contains_key(&entry.id)) {
        None => Ok(()),
        Some(entry) => Err(Error::new(ErrorKind::PruneRefused, "prune")
            .message(
                "a backup that the plan keeps is not listed any more; look what removed it, and plan again",
            )
            .with("backup", entry.id)
            .with("sink", plan.sink.id())),
    }
}

/// Every marker must show in the list, or the list shows too little to rely on.
async fn markers_are_there(
    access: &Access<'_>,
    places: &Places,
    marked: &BTreeMap<BackupId, Option<Key>>,
    seen: &mut Seen,
) -> Result<()> {
    for (id, key) in marked {
        let place = places.get(id);
        if place.is_none_or(|place| place.manifest.is_none()) {
            seen.gone.insert(*id);
        }
        let Some(key) = key else { continue };
        if place.is_some_and(|place| place.condemned.contains(key)) {
            continue;
        }
        if access.exists(key).await? {
            return Err(Error::new(ErrorKind::StoreInadequate, "prune")
                .message(
                    "the sink does not list what was just written to it; nothing is deleted on such a list",
                )
                .with("key", key)
                .with("sink", access.id()));
        }
        // Whoever deleted the marker deletes the backup.
        seen.gone.insert(*id);
    }
    Ok(())
}

async fn pending(access: &Access<'_>, dir: &BackupDir) -> Result<Option<Pending>> {
    let key = dir.pending()?;
    let Some(bytes) = access.read(&key, PENDING_LIMIT).await? else { return Ok(None) };
    Pending::parse(&bytes).map(Some).map_err(|error| {
        Error::new(ErrorKind::PruneRefused, "prune")
            .message(
                "a marker of a running backup cannot be read, so it is unknown what that run needs; use the version \
                 that wrote it, or remove the marker by hand once no backup runs",
            )
            .with("key", key)
            .with("sink", access.id())
            .caused_by(error)
    })
}

/// A backup that the plan does not know was finished since, or an earlier list did not show it. What it needs stays.
///
/// A directory without manifest and pending marker is asked for its manifest by name: a run that commits while it is
/// listed may show neither.
async fn newcomer(
    access: &Access<'_>,
    set: &SetName,
    id: BackupId,
    place: &Place,
    seen: &mut Seen,
) -> Result<()> {
    if place.manifest.is_none() && !access.exists(&place.dir.manifest()?).await? {
        return Ok(());
    }
    let catalog = access.inner.catalog_watched(set.clone(), access.watch.clone());
    let read = access.unless_stopped(open_one(&catalog, &place.dir, id, &access.sink)).await;
    match read.map_err(|error| match error.kind() {
        ErrorKind::Cancelled => error,
        _ => refused(id, access.id(), error),
    })? {
        None => {}
        Some(read) => {
            for needed in read.summary.needs() {
                seen.block(needed, format!("{id}, made since the plan, needs it"));
            }
        }
    }
    Ok(())
}
