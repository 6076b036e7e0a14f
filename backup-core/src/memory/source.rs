//! [`MemorySource`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::item::{ItemPath, ItemSpool};
use crate::proof::Proofs;
use crate::source::{
    Artifact, ArtifactFormat, ArtifactMeta, ByteStream, CheckReport, Earlier, Finished, Outcome, Snapshot,
    SnapshotRequest, Source, SourceReport,
};
use crate::whole::{WHOLE_BYTES, whole_item, whole_proof};

/// A source of named artifacts that are in memory: one item each, proved as a whole.
///
/// Those declared [`independent`](ArtifactMeta::independent) can be taken over from a run that died while their bytes are
/// the same.
///
/// ```
/// use backup_core::MemorySource;
/// let source = MemorySource::new().artifact("greeting", "good evening").artifact("empty", "");
/// ```
#[derive(Clone)]
pub struct MemorySource {
    artifacts: Vec<(ArtifactMeta, Bytes)>,
    chunk_size: usize,
    max_open: usize,
}

impl MemorySource {
    /// A source without artifacts.
    pub fn new() -> Self {
        Self { artifacts: Vec::new(), chunk_size: 64 * 1024, max_open: 1 }
    }

    /// Adds an artifact of plain bytes. Names must differ.
    pub fn artifact(self, name: impl Into<Cow<'static, str>>, bytes: impl Into<Bytes>) -> Self {
        self.artifact_with(ArtifactMeta::new(name, ArtifactFormat::BYTES), bytes)
    }

    /// Adds an artifact with its own format, phase or size hint.
    pub fn artifact_with(mut self, meta: ArtifactMeta, bytes: impl Into<Bytes>) -> Self {
        self.artifacts.push((meta, bytes.into()));
        self
    }

    /// Sets how many bytes a stream yields at a time: 64 KiB unless set, at least 1.
    pub fn chunk_size(mut self, bytes: usize) -> Self {
        self.chunk_size = bytes.max(1);
        self
    }

    /// Sets how many artifacts may stream at once: one unless set.
    pub fn max_open(mut self, artifacts: usize) -> Self {
        self.max_open = artifacts.max(1);
        self
    }
}

impl Default for MemorySource {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemorySource")?;
        f.debug_map().entries(self.artifacts.iter().map(|(meta, bytes)| (&meta.name, bytes.len()))).finish()
    }
}

#[async_trait]
impl Source for MemorySource {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn check(&self) -> Result<CheckReport> {
        let estimated_bytes = Some(self.artifacts.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        Ok(CheckReport { estimated_bytes, ..CheckReport::default() })
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let selected = |meta: &ArtifactMeta| request.selection.matches(&ItemPath::new(meta.name.as_bytes()));
        Ok(Box::new(MemorySnapshot {
            artifacts: self.artifacts.iter().filter(|(meta, _)| selected(meta)).cloned().collect(),
            next: 0,
            chunk_size: self.chunk_size,
            max_open: self.max_open,
            drained: Arc::default(),
            cancelled: request.cancelled,
            earlier: request.earlier.into_iter().map(|earlier| earlier.meta.name).collect(),
        }))
    }

    async fn unchanged(&self, request: SnapshotRequest<'_>) -> Result<Vec<usize>> {
        let same = |earlier: &Earlier| {
            let now = self.artifacts.iter().find(|(meta, _)| *meta == earlier.meta);
            now.is_some_and(|(meta, bytes)| {
                request.selection.matches(&ItemPath::new(meta.name.as_bytes()))
                    && earlier.state.as_ref() == Some(&state(Digest::of(bytes)))
            })
        };
        Ok(request.earlier.iter().enumerate().filter(|(_, earlier)| same(earlier)).map(|(n, _)| n).collect())
    }
}

/// What is left with an independent artifact: the digest of its bytes.
fn state(sha256: Digest) -> Value {
    Value::String(sha256.to_string())
}

/// The digest of each artifact that was read to its end, by its number.
type Drained = Arc<Mutex<Vec<(usize, Digest)>>>;

struct MemorySnapshot {
    artifacts: Vec<(ArtifactMeta, Bytes)>,
    next: usize,
    chunk_size: usize,
    max_open: usize,
    drained: Drained,
    cancelled: CancellationToken,
    /// Names of what is taken over, and not read.
    earlier: BTreeSet<Cow<'static, str>>,
}

impl MemorySnapshot {
    /// What an artifact of which the digest is known adds to the report.
    fn describe(
        (meta, bytes): &(ArtifactMeta, Bytes),
        sha256: Digest,
        items: &mut ItemSpool,
        proofs: &mut Proofs,
    ) -> Result<()> {
        items.push(&whole_item(&meta.name, bytes.len() as u64, sha256))?;
        proofs.entry(WHOLE_BYTES.to_owned()).or_default().merge(&whole_proof(&meta.name, &sha256));
        Ok(())
    }
}

#[async_trait]
impl Snapshot for MemorySnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        let Some((meta, bytes)) = self.artifacts.get(self.next).cloned() else { return Ok(None) };
        let flow = Flow {
            rest: bytes,
            chunk_size: self.chunk_size,
            hasher: Hasher::new(),
            number: self.next,
            drained: Arc::clone(&self.drained),
            cancelled: self.cancelled.clone(),
        };
        if self.earlier.contains(&meta.name) {
            lock(&self.drained).push((self.next, Digest::of(&flow.rest)));
        }
        self.next += 1;
        Ok(Some(Artifact { meta, data: flow.stream() }))
    }

    fn max_open(&self) -> usize {
        self.max_open
    }

    fn estimate(&self) -> Option<u64> {
        Some(self.artifacts.iter().map(|(_, bytes)| bytes.len() as u64).sum())
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let mut drained = lock(&self.drained).clone();
        if drained.len() != self.artifacts.len() {
            return Err(Error::new(ErrorKind::SourceFailed, "finish snapshot")
                .message("not every artifact was read to its end")
                .with("read", drained.len())
                .with("artifacts", self.artifacts.len()));
        }
        drained.sort_unstable_by_key(|(number, _)| *number);
        let mut report = SourceReport::default();
        for (artifact, (_, sha256)) in self.artifacts.iter().zip(drained) {
            Self::describe(artifact, sha256, &mut report.items, &mut report.proofs)?;
        }
        Ok(report)
    }

    fn finished(&mut self, artifact: &str) -> Option<Finished> {
        let (number, found) =
            self.artifacts.iter().enumerate().find(|(_, (meta, _))| meta.name == artifact)?;
        let sha256 = lock(&self.drained).iter().find(|(drained, _)| *drained == number)?.1;
        let mut finished = Finished { state: Some(state(sha256)), ..Finished::default() };
        Self::describe(found, sha256, &mut finished.items, &mut finished.proofs).ok()?;
        Some(finished)
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        Ok(())
    }
}

/// One artifact on its way.
struct Flow {
    rest: Bytes,
    chunk_size: usize,
    hasher: Hasher,
    number: usize,
    drained: Drained,
    cancelled: CancellationToken,
}

impl Flow {
    fn stream(self) -> ByteStream {
        futures::stream::unfold(Some(self), |state| async move {
            let mut flow = state?;
            if flow.cancelled.is_cancelled() {
                return Some((Err(Error::cancelled("read artifact")), None));
            }
            if flow.rest.is_empty() {
                lock(&flow.drained).push((flow.number, flow.hasher.finish()));
                return None;
            }
            let chunk = flow.rest.split_to(flow.chunk_size.min(flow.rest.len()));
            flow.hasher.update(&chunk);
            Some((Ok(chunk), Some(flow)))
        })
        .boxed()
    }
}
