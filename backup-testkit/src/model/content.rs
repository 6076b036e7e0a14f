//! What the model's writers back up: a few small files of which some change from run to run.

use std::collections::BTreeMap;

use backup_core::{
    Bytes, CheckReport, Digest, Item, ItemPath, MemorySource, Outcome, ParentReader, Result, Snapshot,
    SnapshotRequest, Source, SourceReport, async_trait,
};
use futures::TryStreamExt as _;

use crate::noise;
use crate::retention::Random;

/// Files by name.
pub(super) type Content = BTreeMap<String, Bytes>;

/// The names there are.
const NAMES: [&str; 4] = ["empty", "large", "middle", "small"];

/// Changes, adds or removes a file or two.
pub(super) fn change(content: &mut Content, random: &mut Random) {
    for _ in 0..=random.below(2) {
        let name = NAMES[usize::try_from(random.below(NAMES.len() as u64)).unwrap_or(0)];
        if content.len() > 1 && random.below(5) == 0 {
            content.remove(name);
            continue;
        }
        let size = match name {
            "empty" => 0,
            "large" => 2000 + random.below(1000),
            "middle" => 300 + random.below(300),
            _ => 1 + random.below(30),
        };
        let seed = random.below(u64::MAX);
        content.insert(name.to_owned(), noise(usize::try_from(size).unwrap_or(0), seed));
    }
}

/// A source of such files. An incremental stores those that its parent does not have in these very bytes, and refers to
/// the others.
#[derive(Debug)]
pub(super) struct Files(pub(super) Content);

struct FilesSnapshot {
    inner: Box<dyn Snapshot>,
    inherited: Vec<Item>,
}

impl Files {
    /// The items of the parent that are still what they were.
    async fn unchanged(&self, parent: &dyn ParentReader) -> Result<Vec<Item>> {
        let mut items = parent.items();
        let mut same = Vec::new();
        while let Some(item) = items.try_next().await? {
            let name = String::from(item.path.clone());
            if self.0.get(&name).is_some_and(|bytes| item.sha256 == Some(Digest::of(bytes))) {
                same.push(item);
            }
        }
        Ok(same)
    }
}

#[async_trait]
impl Source for Files {
    fn kind(&self) -> &'static str {
        "model"
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let inherited = match request.parent {
            Some(parent) => self.unchanged(parent).await?,
            None => Vec::new(),
        };
        let known = |name: &str| inherited.iter().any(|item| item.path == ItemPath::from(name));
        let source = self
            .0
            .iter()
            .filter(|(name, _)| !known(name))
            .fold(MemorySource::new(), |source, (name, bytes)| source.artifact(name.clone(), bytes.clone()));
        let inner = source.snapshot(SnapshotRequest { parent: None, ..request }).await?;
        Ok(Box::new(FilesSnapshot { inner, inherited }))
    }
}

#[async_trait]
impl Snapshot for FilesSnapshot {
    async fn next(&mut self) -> Result<Option<backup_core::Artifact>> {
        self.inner.next().await
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let mut report = self.inner.finish().await?;
        for item in &self.inherited {
            report.items.push(item)?;
            if let Some(proof) = &item.proof {
                report.proofs.entry(proof.of.to_string()).or_default().merge(&proof.proof);
            }
        }
        Ok(report)
    }

    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.inner.close(outcome).await
    }
}
