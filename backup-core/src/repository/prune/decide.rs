//! From what is there to a plan for each sink.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::super::Inner;
use super::super::access::Place;
use super::archive::{Classes, class_of};
use super::planned::SinkPlan;
use super::survey::{Listed, Survey};
use crate::name::{BackupId, SinkId};
use crate::retention::{PrunePlan, RetentionPolicy};

/// Plans each listed sink over its own list; see the [module](super) about copies that stay for another sink.
pub(super) fn decide<'p>(
    inner: &Inner,
    survey: &Survey,
    policy: impl Fn(&SinkId) -> &'p dyn RetentionPolicy,
    classes: &Classes,
    now: DateTime<Utc>,
) -> Vec<SinkPlan> {
    let own: Vec<(&Listed, PrunePlan)> = survey
        .sinks
        .iter()
        .map(|listed| (listed, PrunePlan::new(&survey.list_of(listed), policy(listed.sink.id()), now)))
        .collect();
    let everything: Vec<_> = survey.backups.values().cloned().collect();
    // What each sink of the repository would keep if it had everything.
    let wanted: Vec<(&SinkId, BTreeSet<BackupId>)> = inner
        .sinks
        .iter()
        .map(|sink| (sink.id(), kept(&PrunePlan::new(&everything, policy(sink.id()), now))))
        .collect();
    own.iter()
        .map(|(listed, plan)| {
            let held = held(survey, listed, plan, &own, &wanted);
            let plan = if held.is_empty() {
                plan.clone()
            } else {
                PrunePlan::holding(&survey.list_of(listed), policy(listed.sink.id()), now, &held)
            };
            sink_plan(survey, listed, plan, classes)
        })
        .collect()
}

fn kept(plan: &PrunePlan) -> BTreeSet<BackupId> {
    plan.kept().map(|entry| entry.id).collect()
}

/// The copies that `plan` would delete from a sink although they may be the last of something that is to be kept.
fn held(
    survey: &Survey,
    listed: &Listed,
    plan: &PrunePlan,
    own: &[(&Listed, PrunePlan)],
    wanted: &[(&SinkId, BTreeSet<BackupId>)],
) -> BTreeMap<BackupId, String> {
    let here = listed.sink.id();
    let kept_elsewhere: BTreeSet<BackupId> = own
        .iter()
        .filter(|(other, _)| other.sink.id() != here)
        .flat_map(|(_, plan)| plan.kept().map(|entry| entry.id))
        .collect();
    let mut held = BTreeMap::new();
    for id in plan.deletions().iter().filter(|id| !kept_elsewhere.contains(id)) {
        let wanting = wanted
            .iter()
            .find(|(sink, wants)| *sink != here && wants.contains(id) && !survey.holds(sink, *id));
        if let Some((sink, _)) = wanting {
            let why = if survey.unreachable.iter().any(|(away, _)| away == *sink) {
                format!("for {sink}, which keeps it by its policy and cannot be listed")
            } else {
                format!("for {sink}, which would keep it by its policy and has no copy")
            };
            held.insert(*id, why);
        }
    }
    held
}

fn sink_plan(survey: &Survey, listed: &Listed, plan: PrunePlan, classes: &Classes) -> SinkPlan {
    let half_deleted = |place: &Place| place.manifest.is_none() && !place.condemned.is_empty();
    let kept = kept(&plan);
    SinkPlan {
        sink: Arc::clone(&listed.sink),
        summaries: survey.list_of(listed).into_iter().map(|b| (b.id, b)).collect(),
        unfinished: listed
            .places
            .iter()
            .filter(|(_, place)| half_deleted(place))
            .map(|(id, _)| *id)
            .collect(),
        dirs: listed.places.iter().map(|(id, place)| (*id, place.dir.clone())).collect(),
        old_markers: listed
            .places
            .iter()
            .filter(|(id, _)| kept.contains(id))
            .flat_map(|(_, place)| place.condemned.iter().cloned())
            .collect(),
        archive: plan
            .kept()
            .filter_map(|entry| Some((entry.id, class_of(classes, entry)?.to_owned())))
            .collect(),
        plan,
    }
}
