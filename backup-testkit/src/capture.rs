//! [`capture`]: everything a source gives, in memory.

use std::sync::Arc;

use backup_core::{
    ArtifactMeta, ArtifactReader, BackupId, Bytes, Item, ItemList, Outcome, PlannedArtifact, RestorePlan,
    Result, Selection, SetName, SnapshotRequest, Source, SourceReport,
};
use chrono::Utc;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

/// What one full backup of a source consists of. For small sources: it is all in memory.
#[derive(Debug)]
pub struct Captured {
    /// [`Source::kind`].
    pub kind: &'static str,
    /// The artifacts in the order they were given, with their plain bytes.
    pub artifacts: Vec<(ArtifactMeta, Bytes)>,
    /// What the source said at the end.
    pub report: SourceReport,
    /// The items of the report.
    pub items: Vec<Item>,
}

/// Takes a full backup the way the engine does, one artifact after the other, and closes it as committed.
///
/// # Errors
///
/// The first error of the source; the snapshot is closed as aborted then.
pub async fn capture(source: &dyn Source) -> Result<Captured> {
    let mut snapshot = source.snapshot(SnapshotRequest::full()).await?;
    let taken = async {
        let mut artifacts = Vec::new();
        while let Some(artifact) = snapshot.next().await? {
            artifacts.push((artifact.meta, crate::collect(artifact.data).await?));
        }
        let report = snapshot.finish().await?;
        let items = report.items.iter().collect::<Result<Vec<Item>>>()?;
        Ok(Captured { kind: source.kind(), artifacts, report, items })
    }
    .await;
    let outcome = if taken.is_ok() { Outcome::Committed } else { Outcome::Aborted };
    snapshot.close(outcome).await?;
    taken
}

impl Captured {
    /// A plan that restores all of it.
    pub fn plan(&self, replace: bool) -> RestorePlan {
        let id = BackupId::new(Utc::now(), 0x00c0_ffee);
        RestorePlan {
            set: SetName::parse("testkit/set").expect("a valid set name"),
            id,
            source_kind: self.kind.to_owned(),
            server_version: self.report.server_version.clone(),
            artifacts: self
                .artifacts
                .iter()
                .map(|(meta, bytes)| PlannedArtifact {
                    origin: id,
                    meta: meta.clone(),
                    plain_size: bytes.len() as u64,
                    details: self.report.artifacts.get(&*meta.name).cloned().unwrap_or_default(),
                })
                .collect(),
            log_position: self.report.log_position.clone(),
            log: Vec::new(),
            until: None,
            selection: Selection::all(),
            replace,
            proofs: self.report.proofs.clone(),
            details: self.report.details.clone(),
            logical_bytes: self.items.iter().map(|item| item.size).sum(),
            items: Arc::new(Items(self.items.clone().into())),
        }
    }

    /// A reader over each artifact, phase by phase.
    pub fn readers(&self) -> Vec<ArtifactReader> {
        let mut in_order: Vec<_> = self.artifacts.iter().collect();
        in_order.sort_by_key(|(meta, _)| meta.phase);
        in_order
            .into_iter()
            .map(|(meta, bytes)| ArtifactReader::from_bytes(meta.clone(), bytes.clone()))
            .collect()
    }

    /// A reader over an artifact whose stream fails after `good` bytes.
    pub(crate) fn broken_reader(&self, index: usize, good: usize) -> ArtifactReader {
        let (meta, bytes) = &self.artifacts[index];
        let bytes = Broken(bytes.slice(..good.min(bytes.len())));
        ArtifactReader::new(meta.clone(), self.artifacts[index].1.len() as u64, None, Arc::new(bytes))
    }
}

struct Items(Arc<[Item]>);

impl ItemList for Items {
    fn stream(&self) -> BoxStream<'static, Result<Item>> {
        let items = Arc::clone(&self.0);
        futures::stream::iter((0..items.len()).map(move |i| Ok(items[i].clone()))).boxed()
    }
}

#[derive(Debug)]
struct Broken(Bytes);

impl backup_core::ArtifactBytes for Broken {
    fn open(
        &self,
        _range: Option<std::ops::Range<u64>>,
    ) -> futures::future::BoxFuture<'static, Result<backup_core::ByteStream>> {
        let good = self.0.clone();
        async move {
            let lost = backup_core::Error::corrupt("read artifact", "no intact copy (asked for by a test)");
            Ok(futures::stream::iter([Ok(good)])
                .chain(futures::stream::iter([Err(lost)]))
                .into_stream()
                .boxed())
        }
        .boxed()
    }
}
