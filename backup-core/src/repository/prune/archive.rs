//! Moving the artifacts of backups that stay for long to a cheaper storage class.

use std::collections::BTreeMap;

use super::super::access::Access;
use super::planned::SinkPlan;
use super::report::{Archived, NotArchived};
use crate::error::{ErrorKind, Result};
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName};
use crate::retention::{PlanEntry, Slot};

/// Smallest object that is moved, in bytes. Archive classes charge for each object as if it had 40 KiB more, and the
/// infrequent ones as if it had at least 128 KiB (Amazon S3 User Guide, "Understanding and managing storage classes").
const SMALLEST: u64 = 128 * 1024;

/// Storage classes by the slot that keeps a backup.
pub(super) type Classes = BTreeMap<Slot, String>;

/// The class for a backup that only slots keep: that of the finest of them. What is kept for any other reason, because it
/// is the newest, pinned or needed by another, stays where it is read at once.
pub(super) fn class_of<'a>(classes: &'a Classes, entry: &PlanEntry) -> Option<&'a str> {
    let slots: Option<Vec<Slot>> = entry.reasons.iter().map(|reason| Slot::of_reason(reason)).collect();
    let finest = slots.filter(|_| entry.keep)?.into_iter().min()?;
    classes.get(&finest).map(String::as_str)
}

/// What was moved on one sink, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) archived: Vec<Archived>,
    pub(super) not_archived: Vec<NotArchived>,
}

/// Moves what `plan` says on one sink. Sinks without classes are left alone.
pub(super) async fn archive(access: &Access<'_>, set: &SetName, plan: &SinkPlan) -> Moved {
    let mut moved = Moved::default();
    for (id, class) in &plan.archive {
        match one(access, set, *id, class).await {
            Ok(0) => {}
            Ok(objects) => moved.archived.push(Archived {
                sink: access.id().clone(),
                id: *id,
                class: class.clone(),
                objects,
            }),
            Err(error) if error.kind() == ErrorKind::Unsupported => break,
            Err(error) => {
                moved.not_archived.push(NotArchived { sink: access.id().clone(), id: *id, error });
            }
        }
    }
    moved
}

/// Moves the artifacts of one backup; returns how many were not there yet. Manifest, details and indexes stay.
async fn one(access: &Access<'_>, set: &SetName, id: BackupId, class: &str) -> Result<u64> {
    let dir = BackupDir::new(set, id)?;
    let catalog = access.inner.catalog_watched(set.clone(), access.watch.clone());
    let (manifest, ..) = access.unless_stopped(catalog.open_copy(&dir, id, &access.sink)).await?;
    let mut objects = 0;
    for artifact in manifest.artifacts.iter().filter(|artifact| artifact.stored.size >= SMALLEST) {
        let key = dir.object(&artifact.stored.object)?;
        objects += u64::from(access.change_class(&key, class).await?);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::{BackupKind, Standing};

    #[test]
    fn only_what_nothing_but_slots_keeps_is_moved_and_by_the_finest() {
        let classes = Classes::from([(Slot::Yearly, "GLACIER".to_owned()), (Slot::Monthly, "IR".to_owned())]);
        let class = |keep: bool, reasons: &[&str]| {
            let entry = PlanEntry {
                id: BackupId::new(chrono::Utc::now(), 1),
                kind: BackupKind::Full,
                standing: Standing::Good,
                stored_size: 1,
                keep,
                reasons: reasons.iter().map(|r| (*r).to_owned()).collect(),
            };
            class_of(&classes, &entry).map(str::to_owned)
        };
        assert_eq!(class(true, &["yearly 2024"]).as_deref(), Some("GLACIER"));
        assert_eq!(class(true, &["monthly 2026-11", "yearly 2026"]).as_deref(), Some("IR"));
        assert_eq!(class(true, &["daily 2026-11-20", "yearly 2026"]), None);
        assert_eq!(class(true, &["yearly 2026", "pinned"]), None);
        assert_eq!(class(true, &["yearly 2026", "needed by 20261120T020000Z-00c0de"]), None);
        assert_eq!(class(false, &["yearly 2024"]), None);
    }
}
