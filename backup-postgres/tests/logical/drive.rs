//! Drives a source and a target as the engine does, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use backup_core::{
    ArtifactMeta, ArtifactReader, BackupId, Bytes, Item, ItemList, Outcome, PlannedArtifact, Proofs,
    RestorePlan, RestoreReport, RestoreTarget, Result, Selection, SetName, SnapshotRequest, Source,
    SourceReport, Undo,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;

/// A backup in memory.
pub(crate) struct Kept {
    pub artifacts: Vec<(ArtifactMeta, Bytes)>,
    pub report: SourceReport,
    pub items: Vec<Item>,
}

impl Kept {
    pub(crate) fn artifact(&self, name: &str) -> &Bytes {
        &self.artifacts.iter().find(|(meta, _)| meta.name == name).unwrap().1
    }
}

/// Takes a backup, keeping up to `max_open` artifacts open at once.
pub(crate) async fn backup(source: &dyn Source) -> Result<Kept> {
    backup_of(source, SnapshotRequest::full()).await
}

pub(crate) async fn backup_of(source: &dyn Source, request: SnapshotRequest<'_>) -> Result<Kept> {
    let mut snapshot = source.snapshot(request).await?;
    let mut artifacts: Vec<(ArtifactMeta, Bytes)> = Vec::new();
    let result = async {
        let open = snapshot.max_open();
        let mut streams = futures::stream::FuturesUnordered::new();
        let mut more = true;
        loop {
            while more && streams.len() < open {
                match snapshot.next().await? {
                    None => more = false,
                    Some(artifact) => streams.push(async move {
                        let mut data = artifact.data;
                        let mut bytes = Vec::new();
                        while let Some(chunk) = data.next().await {
                            bytes.extend_from_slice(&chunk?);
                        }
                        Ok::<_, backup_core::Error>((artifact.meta, Bytes::from(bytes)))
                    }),
                }
            }
            match streams.next().await {
                Some(done) => artifacts.push(done?),
                None => break,
            }
        }
        drop(streams);
        snapshot.finish().await
    }
    .await;
    let outcome = if result.is_ok() { Outcome::Committed } else { Outcome::Aborted };
    snapshot.close(outcome).await?;
    let report = result?;
    let items = report.items.iter().collect::<Result<Vec<_>>>()?;
    artifacts.sort_by_key(|(meta, _)| meta.phase);
    Ok(Kept { artifacts, report, items })
}

struct Items(Vec<Item>);

impl ItemList for Items {
    fn stream(&self) -> BoxStream<'static, Result<Item>> {
        futures::stream::iter(self.0.clone().into_iter().map(Ok)).boxed()
    }
}

/// The plan the engine would make.
pub(crate) fn plan(kept: &Kept, selection: Selection, replace: bool) -> RestorePlan {
    let items: Vec<Item> = kept.items.iter().filter(|i| selection.matches(&i.path)).cloned().collect();
    let mut proofs = Proofs::new();
    if selection.is_all() {
        proofs = kept.report.proofs.clone();
    } else {
        for item in &items {
            if let Some(proof) = &item.proof {
                proofs.entry(proof.of.to_string()).or_default().merge(&proof.proof);
            }
        }
    }
    RestorePlan {
        set: SetName::parse("test/postgres").unwrap(),
        id: BackupId::new(chrono::Utc::now(), 7),
        source_kind: "postgres".to_owned(),
        server_version: kept.report.server_version.clone(),
        artifacts: kept
            .artifacts
            .iter()
            .map(|(meta, bytes)| PlannedArtifact {
                origin: BackupId::new(chrono::Utc::now(), 7),
                meta: meta.clone(),
                plain_size: bytes.len() as u64,
                details: kept.report.artifacts.get(meta.name.as_ref()).cloned().unwrap_or_default(),
            })
            .collect(),
        log_position: None,
        log: Vec::new(),
        until: None,
        selection,
        replace,
        proofs,
        details: kept.report.details.clone(),
        logical_bytes: items.iter().map(|i| i.size).sum(),
        items: Arc::new(Items(items)),
    }
}

/// Restores as the engine does: phase by phase, proved, then committed; aborted on any failure.
pub(crate) async fn restore(
    kept: &Kept,
    target: &dyn RestoreTarget,
    selection: Selection,
    replace: bool,
) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
    restore_meddled_with(kept, target, selection, replace, || ()).await
}

/// Restores, and lets `meddle` run before the proof.
pub(crate) async fn restore_meddled_with(
    kept: &Kept,
    target: &dyn RestoreTarget,
    selection: Selection,
    replace: bool,
    meddle: impl FnOnce(),
) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
    let plan = plan(kept, selection, replace);
    let restore = target.begin(&plan).await?;
    let result = async {
        let mut phases: BTreeMap<u32, Vec<&(ArtifactMeta, Bytes)>> = BTreeMap::new();
        for artifact in &kept.artifacts {
            phases.entry(artifact.0.phase).or_default().push(artifact);
        }
        for artifacts in phases.into_values() {
            let wanted =
                artifacts.into_iter().filter(|(meta, _)| restore.wants(meta)).map(|(meta, bytes)| {
                    let mut parts: Vec<std::ops::Range<u64>> = kept
                        .items
                        .iter()
                        .filter(|i| i.artifact == meta.name && plan.selection.matches(&i.path))
                        .map(|i| i.offset..i.offset + i.length)
                        .collect();
                    parts.sort_by_key(|p| p.start);
                    let has_items = kept.items.iter().any(|i| i.artifact == meta.name);
                    if plan.selection.is_all() || !has_items {
                        Some(ArtifactReader::from_bytes(meta.clone(), bytes.clone()))
                    } else if parts.is_empty() {
                        None
                    } else {
                        let inner = backup_reader(bytes.clone());
                        Some(ArtifactReader::new(meta.clone(), bytes.len() as u64, Some(parts), inner))
                    }
                });
            let readers: Vec<ArtifactReader> = wanted.flatten().collect();
            futures::stream::iter(readers)
                .map(|reader| restore.artifact(reader))
                .buffer_unordered(restore.max_open())
                .collect::<Vec<Result<()>>>()
                .await
                .into_iter()
                .collect::<Result<()>>()?;
        }
        meddle();
        let proofs = restore.prove().await?;
        if proofs != plan.proofs {
            let names: Vec<String> = plan
                .proofs
                .keys()
                .chain(proofs.keys())
                .filter(|n| plan.proofs.get(*n) != proofs.get(*n))
                .map(|n| format!("{n}: {:?} {:?}", plan.proofs.get(n), proofs.get(n)))
                .collect();
            return Err(backup_core::Error::new(backup_core::ErrorKind::ProofMismatch, "prove")
                .message(names.join("; ")));
        }
        Ok(())
    }
    .await;
    match result {
        Ok(()) => restore.commit().await,
        Err(error) => {
            restore.abort().await?;
            Err(error)
        }
    }
}

#[derive(Debug)]
struct Memory(Bytes);

impl backup_core::ArtifactBytes for Memory {
    fn open(
        &self,
        range: Option<std::ops::Range<u64>>,
    ) -> futures::future::BoxFuture<'static, Result<backup_core::ByteStream>> {
        let bytes = match range {
            None => self.0.clone(),
            Some(r) => self.0.slice(usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap()),
        };
        Box::pin(async move { Ok(futures::stream::iter([Ok(bytes)]).boxed()) })
    }
}

fn backup_reader(bytes: Bytes) -> Arc<dyn backup_core::ArtifactBytes> {
    Arc::new(Memory(bytes))
}
