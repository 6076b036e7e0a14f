//! The planner: a policy's decisions, made safe.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::log::LogPosition;
use super::order::deletion_order;
use super::pitr::Need;
use super::standing::{Standing, standings};
use super::summary::{BackupKind, BackupSummary};
use super::{Decision, RetentionPolicy};
use crate::error::{Error, ErrorKind, Result};
use crate::name::BackupId;

/// What a prune would keep and delete, and why.
///
/// Whatever the policy decides, these stay:
///
/// * the newest good full or incremental, and every degraded or incomplete one that is newer;
/// * pinned backups, and those whose `keep_until` has not come;
/// * backups that are unsealed, or date from more than 24 h in the future;
/// * everything that something kept refers to, directly or not;
/// * every log slice after the newest good backup begins, every slice between a kept slice and the newest kept
///   backup it can be replayed on, and, if the policy sets no window for the log, every slice that any kept
///   backup can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunePlan {
    entries: Vec<PlanEntry>,
    deletions: Vec<BackupId>,
    unsealed: Vec<BackupId>,
    mass_delete: bool,
}

/// One backup in a [`PrunePlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlanEntry {
    /// Which.
    pub id: BackupId,
    /// What it holds.
    pub kind: BackupKind,
    /// What retention may rely on it for.
    pub standing: Standing,
    /// Bytes its objects take on one sink.
    pub stored_size: u64,
    /// Whether it stays.
    pub keep: bool,
    /// Why it stays or goes; never empty.
    pub reasons: Vec<String>,
}

impl PrunePlan {
    /// Plans the prune of one set: `backups` are all its backups and slices, in any order.
    pub fn new(backups: &[BackupSummary], policy: &dyn RetentionPolicy, now: DateTime<Utc>) -> Self {
        Self::holding(backups, policy, now, &BTreeMap::new())
    }

    /// Like [`new`](Self::new), but what is in `held` stays too, for the reason given there, and with it everything
    /// it needs.
    pub fn holding(
        backups: &[BackupSummary],
        policy: &dyn RetentionPolicy,
        now: DateTime<Utc>,
        held: &BTreeMap<BackupId, String>,
    ) -> Self {
        let mut list = backups.to_vec();
        list.sort_by_key(|b| Reverse(b.id));
        list.dedup_by_key(|b| b.id);
        let standings = standings(&list, now);
        let mut planner = Planner { list: &list, standings, reasons: BTreeMap::new() };
        planner.ask(policy, now);
        planner.protect(now);
        for backup in &list {
            if let Some(reason) = held.get(&backup.id) {
                planner.keep(backup.id, reason);
            }
        }
        planner.close_references();
        planner.close_log(policy.log_window().is_some());
        planner.close_references();
        planner.finish()
    }

    /// Every backup of the set, newest first.
    pub fn entries(&self) -> &[PlanEntry] {
        &self.entries
    }

    /// The backups that stay, newest first.
    pub fn kept(&self) -> impl Iterator<Item = &PlanEntry> {
        self.entries.iter().filter(|entry| entry.keep)
    }

    /// The backups that go, newest first. To delete them, follow [`deletions`](Self::deletions).
    pub fn forgotten(&self) -> impl Iterator<Item = &PlanEntry> {
        self.entries.iter().filter(|entry| !entry.keep)
    }

    /// What to delete, in this order: stopped anywhere, every backup that is left has all it needs.
    pub fn deletions(&self) -> &[BackupId] {
        &self.deletions
    }

    /// Bytes that deleting frees on one sink.
    pub fn freed_bytes(&self) -> u64 {
        self.forgotten().fold(0, |sum, entry| sum.saturating_add(entry.stored_size))
    }

    /// Whether more than half of the set would go: of its (more than two) fulls and incrementals, or of the
    /// stretches of its log between one of them and the next.
    pub fn mass_delete(&self) -> bool {
        self.mass_delete
    }

    /// Unsealed backups. While there are any, the set is not pruned.
    pub fn unsealed(&self) -> &[BackupId] {
        &self.unsealed
    }

    /// Whether the plan may be executed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PruneRefused`] if a backup is unsealed, or if more than half would go and
    /// `allow_mass_delete` is not set.
    pub fn permit(&self, allow_mass_delete: bool) -> Result<()> {
        let refused = |message: &'static str| Error::new(ErrorKind::PruneRefused, "prune").message(message);
        if let Some(id) = self.unsealed.first() {
            return Err(refused(
                "a backup's seal could not be verified: configure the key it was made with, or remove it by \
                 hand once you know where it came from",
            )
            .with("backup", id)
            .with("unsealed", self.unsealed.len()));
        }
        if self.mass_delete && !allow_mass_delete {
            return Err(refused(
                "more than half of the set would be deleted: read the plan, and allow it with \
                 `allow_mass_delete` if that is meant",
            )
            .with("forget", self.deletions.len())
            .with("of", self.entries.len()));
        }
        Ok(())
    }
}

struct Planner<'a> {
    /// Newest first, each id once.
    list: &'a [BackupSummary],
    standings: BTreeMap<BackupId, Standing>,
    /// Why each kept backup stays.
    reasons: BTreeMap<BackupId, Vec<String>>,
}

impl<'a> Planner<'a> {
    fn keep(&mut self, id: BackupId, reason: impl Into<String>) {
        self.reasons.entry(id).or_default().push(reason.into());
    }

    fn is_kept(&self, id: BackupId) -> bool {
        self.reasons.contains_key(&id)
    }

    fn standing(&self, id: BackupId) -> Standing {
        self.standings.get(&id).copied().unwrap_or(Standing::Unsealed)
    }

    fn bases(&self) -> impl Iterator<Item = &'a BackupSummary> + use<'a> {
        self.list.iter().filter(|b| !b.is_log())
    }

    fn ask(&mut self, policy: &dyn RetentionPolicy, now: DateTime<Utc>) {
        let mut decisions = policy.decide(self.list, now);
        for backup in self.list {
            match decisions.remove(&backup.id) {
                None => self.keep(backup.id, "the policy does not decide on it"),
                Some(Decision::Keep { reasons }) if reasons.is_empty() => {
                    self.keep(backup.id, "kept by the policy");
                }
                Some(Decision::Keep { reasons }) => {
                    self.reasons.entry(backup.id).or_default().extend(reasons);
                }
                Some(Decision::Forget) => {}
            }
        }
    }

    fn protect(&mut self, now: DateTime<Utc>) {
        let mut newest_good_seen = false;
        for backup in self.list {
            let id = backup.id;
            if backup.pinned {
                self.keep(id, "pinned");
            }
            if let Some(until) = backup.keep_until.filter(|until| *until > now) {
                self.keep(id, format!("kept until {}", until.format("%Y-%m-%d %H:%M UTC")));
            }
            match self.standing(id) {
                Standing::Unsealed => self.keep(id, "unsealed: stops the prune"),
                Standing::Future => self.keep(id, "dated more than 24 h in the future: not judged"),
                Standing::Good if !newest_good_seen => {
                    newest_good_seen = true;
                    self.keep(id, "newest good backup");
                }
                Standing::Degraded if !newest_good_seen => {
                    self.keep(id, "degraded, but no newer backup is good");
                }
                Standing::Incomplete if !newest_good_seen && !backup.is_log() => {
                    self.keep(id, "incomplete, but no newer backup is good");
                }
                _ => {}
            }
        }
    }

    /// Keeps everything that something kept needs.
    fn close_references(&mut self) {
        let by_id: BTreeMap<_, _> = self.list.iter().map(|b| (b.id, b)).collect();
        let mut queue: Vec<_> = self.list.iter().filter(|b| self.is_kept(b.id)).collect();
        while let Some(backup) = queue.pop() {
            for needed in backup.needs() {
                if let Some(&needed) = by_id.get(&needed).filter(|_| !self.is_kept(needed)) {
                    self.keep(needed.id, format!("needed by {}", backup.id));
                    queue.push(needed);
                }
            }
        }
    }

    /// Keeps the slices that kept backups and kept slices need.
    fn close_log(&mut self, policy_decides: bool) {
        let kept = || self.bases().filter(|b| self.is_kept(b.id));
        let need = if policy_decides {
            Need::of(kept().filter(|b| self.standing(b.id) == Standing::Good).take(1))
        } else {
            Need::of(kept())
        };
        let starts: BTreeSet<&LogPosition> = kept().filter_map(|b| b.log_position.as_ref()).collect();
        // From the position of a kept backup to the farthest kept slice that is replayed on it.
        let mut between: BTreeMap<&LogPosition, &LogPosition> = BTreeMap::new();
        for backup in self.list.iter().filter(|b| self.is_kept(b.id)) {
            if let BackupKind::Log { from, to, .. } = &backup.kind
                && let Some(start) = starts.range::<&LogPosition, _>(..to).next_back()
            {
                let end = between.entry(start).or_insert(from);
                *end = (*end).max(from);
            }
        }
        for backup in self.list.iter().filter(|b| !self.reasons.contains_key(&b.id)).collect::<Vec<_>>() {
            if let BackupKind::Log { from, to, to_time, .. } = &backup.kind {
                if need.covers(to, *to_time) {
                    self.keep(backup.id, "log after a kept backup");
                } else if between.iter().any(|(start, end)| to > start && from < end) {
                    self.keep(backup.id, "log between a kept backup and a kept slice");
                }
            }
        }
    }

    fn finish(self) -> PrunePlan {
        let forgotten: Vec<_> = self.list.iter().filter(|b| !self.is_kept(b.id)).collect();
        let deletions = deletion_order(&forgotten);
        let mass_delete = self.is_mass_delete();
        let unsealed =
            self.list.iter().map(|b| b.id).filter(|id| self.standing(*id) == Standing::Unsealed).collect();
        let standings = self.standings;
        let mut reasons = self.reasons;
        let entries = self.list.iter().map(|backup| {
            let standing = standings.get(&backup.id).copied().unwrap_or(Standing::Unsealed);
            let kept = reasons.remove(&backup.id);
            PlanEntry {
                id: backup.id,
                kind: backup.kind.clone(),
                standing,
                stored_size: backup.stored_size,
                keep: kept.is_some(),
                reasons: kept.unwrap_or_else(|| vec![why_forgotten(standing).to_owned()]),
            }
        });
        PrunePlan { entries: entries.collect(), deletions, unsealed, mass_delete }
    }

    fn is_mass_delete(&self) -> bool {
        let more_than_half = |gone: usize, total: usize| total > 2 && gone > total / 2;
        let bases = self.bases().count();
        let bases_gone = self.bases().filter(|b| !self.is_kept(b.id)).count();
        // Slices are counted by the backup they follow. Slice by slice, every prune of a weekly base with a
        // window of some days would be a mass deletion, and the guard would be switched off for good.
        let starts: BTreeSet<&LogPosition> = self.bases().filter_map(|b| b.log_position.as_ref()).collect();
        let mut stretches: BTreeMap<&LogPosition, bool> = BTreeMap::new();
        for backup in self.list {
            if let BackupKind::Log { to, .. } = &backup.kind
                && let Some(start) = starts.range::<&LogPosition, _>(..to).next_back()
            {
                *stretches.entry(start).or_default() |= self.is_kept(backup.id);
            }
        }
        let stretches_gone = stretches.values().filter(|kept| !**kept).count();
        more_than_half(bases_gone, bases) || more_than_half(stretches_gone, stretches.len())
    }
}

fn why_forgotten(standing: Standing) -> &'static str {
    match standing {
        Standing::Log => "no kept backup needs it",
        Standing::Degraded => "degraded, and nothing keeps it",
        Standing::Incomplete => "incomplete, and nothing keeps it",
        _ => "nothing keeps it",
    }
}
