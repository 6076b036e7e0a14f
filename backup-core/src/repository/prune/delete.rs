//! Deleting what one sink's plan forgets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::super::access::{Access, is_refusal};
use super::super::clear::{Cleared, clear};
use super::super::commit::{PENDING_LIMIT, Pending};
use super::condemned::{Condemned, MARKER_LIMIT, marker_name};
use super::planned::SinkPlan;
use super::recheck::{Seen, recheck};
use super::report::{DeletedBackup, NotDeleted, Spared};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName};
use crate::observer::Event;

/// How long a marker may be set before its backup's manifest is deleted. What was listed then is too old to rely on, and
/// the marker is set anew.
pub(super) const MARKED_LIMIT: Duration = Duration::from_secs(600);
/// Most victims marked at once: each batch lists the set once.
const MAX_BATCH: usize = 32;

/// The prune of one sink.
pub(super) struct Deleting<'a> {
    access: &'a Access<'a>,
    set: &'a SetName,
    plan: &'a SinkPlan,
    now: Option<DateTime<Utc>>,
    marker: String,
    /// What something that stays needs, and what that is.
    needed: BTreeMap<BackupId, BackupId>,
    /// A log slice that stays against the plan: deleting others, or what they follow, could open a gap.
    log_stays: Option<BackupId>,
    pub(super) done: Done,
}

/// What the prune of one sink did.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) deleted: Vec<DeletedBackup>,
    pub(super) spared: Vec<Spared>,
    pub(super) not_deleted: Vec<NotDeleted>,
}

/// The victims that carry this run's marker, or none where the sink is too full for one.
type Marked = BTreeMap<BackupId, Option<Key>>;

impl<'a> Deleting<'a> {
    pub(super) fn new(
        access: &'a Access<'a>,
        set: &'a SetName,
        plan: &'a SinkPlan,
        now: Option<DateTime<Utc>>,
    ) -> Result<Self> {
        Ok(Self {
            access,
            set,
            plan,
            now,
            marker: marker_name()?,
            needed: BTreeMap::new(),
            log_stays: None,
            done: Done::default(),
        })
    }

    /// Where a backup or log slice was listed.
    fn dir(&self, id: BackupId) -> Result<BackupDir> {
        match self.plan.dirs.get(&id) {
            Some(dir) => Ok(dir.clone()),
            None => BackupDir::new(self.set, id),
        }
    }

    fn now(&self) -> DateTime<Utc> {
        self.now.unwrap_or_else(|| self.access.inner.clock.now())
    }

    /// Does all of it. After an error what was done until then is in `done`.
    pub(super) async fn run(&mut self) -> Result<()> {
        for id in &self.plan.unfinished {
            self.finish(*id).await?;
        }
        let mut rest = self.plan.plan.deletions();
        // The first batch is a single one, so that a sink that lets nothing be deleted is found out by one marker.
        let mut size = 1;
        while !rest.is_empty() {
            let (batch, _) = rest.split_at(size.min(rest.len()));
            let mut marked = Marked::new();
            let result = self.batch(batch, &mut marked).await;
            let withdrawn = self.withdraw(marked).await;
            let settled = result?;
            withdrawn?;
            (_, rest) = rest.split_at(settled.min(rest.len()));
            size = (size * 4).min(MAX_BATCH);
        }
        self.remove_stale_markers().await
    }

    /// Finishes what a killed prune began: the manifest is gone, objects are left.
    async fn finish(&mut self, id: BackupId) -> Result<()> {
        let dir = self.dir(id)?;
        let pending = self.access.read(&dir.pending()?, PENDING_LIMIT).await?;
        // What cannot be read may be alive.
        if pending.is_some_and(|bytes| Pending::parse(&bytes).map_or(true, |p| p.may_be_alive(self.now()))) {
            self.spare(id, "half deleted, but a run may be copying it anew".to_owned());
            return Ok(());
        }
        // The list may have shown the marker and not the manifest.
        if self.access.exists(&dir.manifest()?).await? {
            return Ok(());
        }
        self.clear(id, &dir, Cleared::default(), true).await
    }

    /// Marks `batch`, looks again, and deletes. Returns how many from its beginning are settled; victims left in
    /// `marked` were not deleted.
    async fn batch(&mut self, batch: &[BackupId], marked: &mut Marked) -> Result<usize> {
        let begun = Instant::now();
        let reached = self.mark(batch, marked).await?;
        if marked.is_empty() {
            return Ok(reached);
        }
        let seen = recheck(self.access, self.set, self.plan, marked, self.now()).await?;
        let mut first = true;
        for (n, id) in batch.iter().enumerate().take(reached) {
            let Some(key) = marked.get(id) else { continue };
            let unmarked = key.is_none();
            if begun.elapsed() > MARKED_LIMIT {
                return if first { Err(too_slow(self.access)) } else { Ok(n) };
            }
            first = false;
            if seen.gone.contains(id) {
                continue;
            }
            if let Some(why) = self.why_not(*id, &seen, unmarked) {
                self.spare(*id, why);
                continue;
            }
            self.delete(*id, &seen, marked).await?;
        }
        Ok(reached)
    }

    /// Sets this run's marker on each of `batch` that may go. Returns how many from its beginning were looked at.
    async fn mark(&mut self, batch: &[BackupId], marked: &mut Marked) -> Result<usize> {
        for (n, id) in batch.iter().enumerate() {
            if let Some(why) = self.why_not(*id, &Seen::default(), false) {
                self.spare(*id, why);
                continue;
            }
            let key = self.dir(*id)?.condemned()?.join(&self.marker)?;
            match self
                .access
                .put(&key, &Condemned::to_bytes(self.set, *id, self.access.inner.clock.now())?)
                .await
            {
                Ok(()) => drop(marked.insert(*id, Some(key))),
                // A prune is how a full sink gets space again. Without a marker only the second look protects; it
                // goes for one victim, and only while nothing runs. The next has space for its marker.
                Err(error) if error.kind() == ErrorKind::StorageFull => {
                    if marked.is_empty() {
                        marked.insert(*id, None);
                        return Ok(n + 1);
                    }
                    return Ok(n);
                }
                Err(error) if is_refusal(&error) => self.refused(*id, error, false),
                Err(error) => {
                    // It is unknown whether the marker is there.
                    marked.insert(*id, Some(key));
                    return Err(error);
                }
            }
        }
        Ok(batch.len())
    }

    fn why_not(&self, id: BackupId, seen: &Seen, unmarked: bool) -> Option<String> {
        let summary = self.plan.summaries.get(&id);
        let of_the_log = summary.is_some_and(|b| b.is_log() || b.log_position.is_some());
        match (seen.blocked.get(&id), self.needed.get(&id), self.log_stays, seen.running) {
            (Some(why), ..) => Some(why.clone()),
            (_, Some(by), ..) => Some(format!("{by}, which stays, needs it")),
            (.., Some(slice), _) if of_the_log => {
                Some(format!("deleting it while the log slice {slice} stays could open a gap"))
            }
            (.., Some(run)) if unmarked => {
                Some(format!("the sink is too full for a marker, and {run} may be running"))
            }
            _ => None,
        }
    }

    /// Manifest first, objects after, marker last.
    async fn delete(&mut self, id: BackupId, seen: &Seen, marked: &mut Marked) -> Result<()> {
        let dir = self.dir(id)?;
        if let Err(error) = self.access.delete(&dir.manifest()?).await {
            if is_refusal(&error) {
                self.refused(id, error, false);
                return Ok(());
            }
            // It is unknown whether the manifest is there, or will be once a delayed request arrives: the marker stays.
            marked.remove(&id);
            return Err(error);
        }
        marked.remove(&id);
        let bytes = seen.manifests.get(&id).copied().unwrap_or(0);
        self.clear(id, &dir, Cleared { objects: 1, bytes }, false).await
    }

    async fn clear(&mut self, id: BackupId, dir: &BackupDir, before: Cleared, resumed: bool) -> Result<()> {
        let mut cleared = before;
        let result = clear(self.access, dir, &mut cleared).await;
        match result {
            Ok(()) => {
                let sink = self.access.id();
                self.access.watch.event(&Event::Deleted { sink, set: self.set, id, freed: cleared.bytes });
                self.done.deleted.push(DeletedBackup {
                    sink: sink.clone(),
                    id,
                    objects: cleared.objects,
                    freed: cleared.bytes,
                    resumed,
                });
                Ok(())
            }
            Err(error) if is_refusal(&error) || error.kind() == ErrorKind::AlreadyExists => {
                self.refused(id, error, true);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes this run's markers from victims that stay.
    async fn withdraw(&mut self, marked: Marked) -> Result<()> {
        let mut refused = None;
        for key in marked.into_values().flatten() {
            // A marker that stays keeps writers off for three days, and does no other harm.
            match self.access.release(&key).await {
                Err(error) if is_refusal(&error) => refused = Some(error),
                Ok(()) | Err(_) => {}
            }
        }
        match refused {
            // Not even what this run has just written may be deleted: no use trying the rest.
            Some(error) => Err(who_must(error)),
            None => Ok(()),
        }
    }

    /// Removes the markers of pruners that never came back from backups that stay.
    async fn remove_stale_markers(&self) -> Result<()> {
        for key in &self.plan.old_markers {
            let marker = self.access.read(key, MARKER_LIMIT).await?;
            if marker.is_some_and(|bytes| Condemned::is_stale(&bytes, self.now())) {
                self.access.delete(key).await?;
            }
        }
        Ok(())
    }

    fn spare(&mut self, id: BackupId, why: String) {
        self.stays(id);
        self.done.spared.push(Spared { sink: self.access.id().clone(), id, why });
    }

    fn refused(&mut self, id: BackupId, error: Error, manifest_gone: bool) {
        if !manifest_gone {
            self.stays(id);
        }
        self.done.not_deleted.push(NotDeleted {
            sink: self.access.id().clone(),
            id,
            manifest_gone,
            error: who_must(error),
        });
    }

    fn stays(&mut self, id: BackupId) {
        let Some(summary) = self.plan.summaries.get(&id) else { return };
        if summary.is_log() {
            self.log_stays = Some(id);
        }
        for needed in summary.needs() {
            self.needed.insert(needed, id);
        }
    }
}

/// Says what to do about a deletion that was refused.
fn who_must(error: Error) -> Error {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnly => match error.context_value("retain_until") {
            Some(until) => Error::new(error.kind(), "delete backup")
                .message("the store keeps it locked until that time; prune again when it has come")
                .with("retain_until", until.to_owned()),
            None => Error::new(error.kind(), "delete backup").message(
                "the sink refuses: if an object lock holds it, prune again when the lock has run out; if these \
                 credentials may not delete, run the prune with an account that may",
            ),
        }
        .caused_by(error),
        _ => error,
    }
}

fn too_slow(access: &Access<'_>) -> Error {
    Error::new(ErrorKind::Timeout, "prune")
        .message("the sink took so long to list the set that the list is too old to rely on; prune again")
        .with("sink", access.id())
}
