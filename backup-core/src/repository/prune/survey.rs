//! What is there: every sink listed, every manifest opened on every sink that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _};

use super::super::Inner;
use super::super::access::Places;
use super::super::catalog::{Catalog, summarize};
use crate::digest::Digest;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Event;
use crate::retention::{BackupSummary, CLOCK_TOLERANCE};
use crate::sink::Sink;

/// Backups opened at once.
const OPEN_AT_ONCE: usize = 8;

/// A set as its sinks show it.
pub(super) struct Survey {
    /// The sinks that could be listed.
    pub(super) sinks: Vec<Listed>,
    pub(super) unreachable: Vec<(SinkId, Error)>,
    /// Every backup that was opened on any sink.
    pub(super) backups: BTreeMap<BackupId, BackupSummary>,
}

/// One sink that could be listed.
pub(super) struct Listed {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) places: Places,
    /// The backups whose manifest was opened there.
    pub(super) held: BTreeSet<BackupId>,
}

impl Survey {
    /// What a sink holds, as its plan sees it.
    pub(super) fn list_of(&self, listed: &Listed) -> Vec<BackupSummary> {
        listed.held.iter().filter_map(|id| self.backups.get(id)).cloned().collect()
    }

    /// Whether a sink is seen to hold a backup.
    pub(super) fn holds(&self, sink: &SinkId, id: BackupId) -> bool {
        self.sinks.iter().any(|listed| listed.sink.id() == sink && listed.held.contains(&id))
    }
}

/// Lists and opens everything.
pub(super) async fn survey(
    inner: &Inner,
    set: &SetName,
    now: DateTime<Utc>,
    watch: &Watch,
) -> Result<Survey> {
    let lists = inner.sinks.iter().map(|sink| async move { (sink, inner.places(sink, set, watch).await) });
    let mut survey = Survey { sinks: Vec::new(), unreachable: Vec::new(), backups: BTreeMap::new() };
    for (sink, result) in join_all(lists).await {
        match result {
            Ok(places) => {
                survey.sinks.push(Listed { sink: Arc::clone(sink), places, held: BTreeSet::new() });
            }
            Err(error) => {
                watch.event(&Event::SinkFailed { sink: sink.id(), error: &error });
                survey.unreachable.push((sink.id().clone(), error));
            }
        }
    }
    if survey.sinks.is_empty() {
        let error = survey.unreachable.pop().map(|(_, error)| error);
        return Err(error.unwrap_or_else(|| Error::new(ErrorKind::Internal, "prune").message("no sink")));
    }
    let required = open_all(inner, set, watch, &mut survey).await?;
    mark_degraded(&mut survey, &required, now);
    Ok(survey)
}

/// Opens every listed manifest, and returns how many copies each backup was required to have.
async fn open_all(
    inner: &Inner,
    set: &SetName,
    watch: &Watch,
    survey: &mut Survey,
) -> Result<BTreeMap<BackupId, u32>> {
    let mut copies: BTreeMap<BackupId, (BackupDir, Vec<usize>)> = BTreeMap::new();
    let mut pinned = BTreeSet::new();
    for (number, listed) in survey.sinks.iter().enumerate() {
        for (id, place) in &listed.places {
            if place.manifest.is_some() {
                copies.entry(*id).or_insert_with(|| (place.dir.clone(), Vec::new())).1.push(number);
            }
            if place.pinned {
                pinned.insert(*id);
            }
        }
    }
    let catalog = inner.catalog_watched(set.clone(), watch.clone());
    let opening: Vec<_> = copies
        .into_iter()
        .map(|(id, (dir, numbers))| {
            let sinks = numbers
                .into_iter()
                .filter_map(|n| survey.sinks.get(n).map(|listed| (n, Arc::clone(&listed.sink))))
                .collect();
            open(&catalog, dir, id, sinks).boxed()
        })
        .collect();
    let opened: Vec<_> = futures::stream::iter(opening).buffer_unordered(OPEN_AT_ONCE).collect().await;
    let mut bad: Vec<(BackupId, SinkId, Error)> = Vec::new();
    let mut required = BTreeMap::new();
    for result in opened {
        bad.extend(result.bad);
        if let Some(mut summary) = result.summary {
            summary.pinned = pinned.contains(&summary.id);
            for number in result.on {
                if let Some(listed) = survey.sinks.get_mut(number) {
                    listed.held.insert(summary.id);
                }
            }
            required.insert(summary.id, result.required);
            survey.backups.insert(summary.id, summary);
        }
    }
    bad.sort_by_key(|(id, ..)| *id);
    let count = bad.len();
    match bad.into_iter().next() {
        None => Ok(required),
        Some((id, sink, error)) => Err(refused(id, &sink, error).with("unreadable", count)),
    }
}

/// The refusal to prune a set because of one manifest.
pub(super) fn refused(id: BackupId, sink: &SinkId, error: Error) -> Error {
    Error::new(ErrorKind::PruneRefused, "prune")
        .message(
            "a manifest cannot be read or trusted, and nothing of its set is deleted while that is so: configure the \
             key it was made with or use the version that wrote it, replace it from another copy, or remove its \
             directory by hand once you know what it was",
        )
        .with("backup", id)
        .with("sink", sink)
        .retryable(error.is_retryable())
        .caused_by(error)
}

struct OpenedCopies {
    summary: Option<BackupSummary>,
    required: u32,
    /// The numbers of the sinks, in the survey, whose copy was opened.
    on: Vec<usize>,
    bad: Vec<(BackupId, SinkId, Error)>,
}

async fn open(
    catalog: &Catalog<'_>,
    dir: BackupDir,
    id: BackupId,
    sinks: Vec<(usize, Arc<dyn Sink>)>,
) -> OpenedCopies {
    let mut opened = OpenedCopies { summary: None, required: 0, on: Vec::new(), bad: Vec::new() };
    let mut first: Option<Digest> = None;
    for (number, sink) in sinks {
        match open_one(catalog, &dir, id, &sink).await {
            Ok(None) => {}
            Ok(Some(read)) if first.is_some_and(|first| first != read.digest) => {
                let error =
                    Error::corrupt("read manifest", "the manifest differs from the one on another sink");
                opened.bad.push((id, sink.id().clone(), error));
            }
            Ok(Some(read)) => {
                first = Some(read.digest);
                opened.on.push(number);
                opened.required = read.required;
                opened.summary.get_or_insert(read.summary).copies.push(sink.id().clone());
            }
            Err(error) => opened.bad.push((id, sink.id().clone(), error)),
        }
    }
    opened
}

/// What one manifest says.
pub(super) struct Read {
    pub(super) summary: BackupSummary,
    /// Copies its repository required.
    required: u32,
    digest: Digest,
}

/// The backup as its manifest on `sink` has it; `None` when the manifest is gone again, deleted by another prune.
pub(super) async fn open_one(
    catalog: &Catalog<'_>,
    dir: &BackupDir,
    id: BackupId,
    sink: &Arc<dyn Sink>,
) -> Result<Option<Read>> {
    match catalog.open_copy(dir, id, sink).await {
        Ok((manifest, digest, _)) => Ok(Some(Read {
            summary: summarize(&manifest, Vec::new()),
            required: manifest.required_copies,
            digest,
        })),
        Err(error) => {
            // Whatever was missing of it, it may have been deleted while it was being read: manifest first.
            let gone = catalog.is_gone(sink, &dir.manifest()?).await;
            if gone { Ok(None) } else { Err(error) }
        }
    }
}

/// A backup with fewer copies than were required counts for no policy, even where its manifest does not know because
/// a sink failed at the very end.
///
/// A copy may be missing because the sink that lacks it pruned it, which is no fault. A prune never deletes the newest
/// good backup and what is newer: so a backup newer than everything a sink holds never was there.
fn mark_degraded(survey: &mut Survey, required: &BTreeMap<BackupId, u32>, now: DateTime<Utc>) {
    let limit = TimeDelta::from_std(CLOCK_TOLERANCE).ok().and_then(|by| now.checked_add_signed(by));
    // Slices come so often that the newest of them says nothing about bases, and a base nothing about slices.
    let newest = |listed: &Listed, log: bool| {
        let counts = |id: &&BackupId| {
            limit.is_none_or(|limit| id.time() <= limit)
                && listed.places.get(id).is_some_and(|place| place.dir.is_slice() == log)
        };
        listed.held.iter().rfind(counts).copied()
    };
    let newest: Vec<[Option<BackupId>; 2]> =
        survey.sinks.iter().map(|listed| [newest(listed, false), newest(listed, true)]).collect();
    for summary in survey.backups.values_mut() {
        let never_there = survey.sinks.iter().zip(&newest).any(|(listed, [base, slice])| {
            let newest = if summary.is_log() { slice } else { base };
            !listed.held.contains(&summary.id) && *newest < Some(summary.id)
        });
        let required = required.get(&summary.id).map_or(0, |n| *n as usize);
        summary.degraded = (summary.degraded || never_there) && summary.copies.len() < required;
    }
}
