//! The order in which backups are deleted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::summary::BackupSummary;
use crate::name::BackupId;

/// Orders `forgotten` so that a deletion that stops anywhere leaves no backup without what it needs: log slices
/// first, then children before their parents, the newest first where nothing else decides. Deleting slices from
/// the newest on shortens a restorable range from its end and never parts it.
pub(super) fn deletion_order(forgotten: &[&BackupSummary]) -> Vec<BackupId> {
    let by_id: BTreeMap<_, _> = forgotten.iter().map(|b| (b.id, *b)).collect();
    let mut waiting_for: BTreeMap<BackupId, usize> = by_id.keys().map(|id| (*id, 0)).collect();
    for backup in by_id.values() {
        for needed in backup.needs().collect::<BTreeSet<_>>() {
            if let Some(count) = waiting_for.get_mut(&needed) {
                *count += 1;
            }
        }
    }
    let place = |id: BackupId| (by_id.get(&id).is_some_and(|b| !b.is_log()), Reverse(id));
    let mut ready: BTreeSet<_> =
        waiting_for.iter().filter(|(_, count)| **count == 0).map(|(id, _)| place(*id)).collect();
    let mut order = Vec::with_capacity(by_id.len());
    while let Some((_, Reverse(id))) = ready.pop_first() {
        order.push(id);
        waiting_for.remove(&id);
        let needed: BTreeSet<_> = by_id.get(&id).into_iter().flat_map(|b| b.needs()).collect();
        for needed in needed {
            if let Some(count) = waiting_for.get_mut(&needed) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(place(needed));
                }
            }
        }
    }
    // Backups that need each other in a circle cannot be restored: any order will do.
    order.extend(waiting_for.keys().rev());
    order
}
