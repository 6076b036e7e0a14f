//! What a backup contains: the details object, read as a stream.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Inner;
use super::catalog::Opened;
use super::state::file_bytes;
use crate::digest::Digest;
use crate::engine::decode::PlainReader;
use crate::engine::encode::Scope;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{Item, parse_item};
use crate::layout::DETAILS;
use crate::manifest::{Manifest, StoredObject};
use crate::name::{BackupId, SetName};
use crate::proof::Proofs;
use crate::sink::Sink;
use crate::source::{ByteStream, SourceReport, Warning};
use crate::target::ItemList;
use crate::transform::Chain;

/// Largest first line of a details object, in bytes.
const HEAD_LIMIT: usize = 64 * 1024 * 1024;
/// Largest line that holds an item, in bytes.
const ITEM_LIMIT: usize = 1024 * 1024;

/// The first line of the details object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DetailsHead {
    pub(crate) format: u32,
    pub(crate) artifacts: BTreeMap<String, ArtifactDetails>,
    pub(crate) proofs: Proofs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Value>,
    #[serde(default)]
    pub(crate) details: Map<String, Value>,
    #[serde(default)]
    pub(crate) warnings: Vec<Warning>,
}

/// What the details record of an artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ArtifactDetails {
    /// SHA-256 of its plain bytes.
    pub(crate) sha256: Digest,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) details: Map<String, Value>,
}

impl ArtifactDetails {
    pub(crate) fn new(sha256: Digest) -> Self {
        Self { sha256, details: Map::new() }
    }
}

impl DetailsHead {
    /// Takes what belongs into the details out of a source's report.
    pub(crate) fn new(report: &mut SourceReport, mut artifacts: BTreeMap<String, ArtifactDetails>) -> Self {
        for (name, details) in std::mem::take(&mut report.artifacts) {
            if let Some(artifact) = artifacts.get_mut(&name) {
                artifact.details = details;
            }
        }
        Self {
            format: 1,
            artifacts,
            proofs: std::mem::take(&mut report.proofs),
            state: report.state.take(),
            details: std::mem::take(&mut report.details),
            warnings: std::mem::take(&mut report.warnings),
        }
    }
}

/// What a backup contains.
#[derive(Clone)]
pub struct Contents {
    pub(super) opened: Opened,
    pub(super) head: Arc<DetailsHead>,
    items: Arc<StoredItems>,
}

impl Contents {
    pub(super) async fn open(inner: &Inner, set: SetName, id: BackupId) -> Result<Self> {
        let catalog = inner.catalog(set);
        let opened = catalog.open(id).await?;
        Self::of(inner, opened, &catalog.watch).await
    }

    pub(super) async fn of(inner: &Inner, opened: Opened, watch: &Watch) -> Result<Self> {
        let copies = opened.readable(inner);
        Self::from_copies(inner, opened, &copies, watch).await
    }

    pub(super) async fn from_copies(
        inner: &Inner,
        opened: Opened,
        copies: &[Arc<dyn Sink>],
        watch: &Watch,
    ) -> Result<Self> {
        let reader =
            inner.plain_reader(&opened, DETAILS, &opened.manifest.details, None, copies, watch).await?;
        let (head, _) = read_head(reader.stream(None)).await?;
        let items = Arc::new(StoredItems { from: Details::Stored(Box::new(reader)), id: opened.manifest.id });
        Ok(Self { head: Arc::new(head), items, opened })
    }

    /// The contents of `opened`, from plain details in a file of this host.
    pub(super) async fn kept(opened: Opened, path: PathBuf) -> Result<Self> {
        let (head, _) = read_head(file_bytes(path.clone())).await?;
        let items = Arc::new(StoredItems { from: Details::File(path), id: opened.manifest.id });
        Ok(Self { head: Arc::new(head), items, opened })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.opened.manifest
    }

    /// What the content proves.
    pub fn proofs(&self) -> &Proofs {
        &self.head.proofs
    }

    /// What the source left for the next incremental.
    pub fn state(&self) -> Option<&Value> {
        self.head.state.as_ref()
    }

    /// The source's details of the whole.
    pub fn details(&self) -> &Map<String, Value> {
        &self.head.details
    }

    /// The source's details of one artifact.
    pub fn artifact_details(&self, artifact: &str) -> Option<&Map<String, Value>> {
        self.head.artifacts.get(artifact).map(|a| &a.details)
    }

    /// What was worth knowing when it was made.
    pub fn warnings(&self) -> &[Warning] {
        &self.head.warnings
    }

    /// Its items, in the order the source recorded them. Must be called within a tokio runtime.
    pub fn items(&self) -> BoxStream<'static, Result<Item>> {
        self.items.stream()
    }

    pub(super) fn item_list(&self) -> Arc<StoredItems> {
        Arc::clone(&self.items)
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").field("manifest", &self.opened.manifest).finish_non_exhaustive()
    }
}

/// The items of a stored backup.
pub(super) struct StoredItems {
    from: Details,
    id: BackupId,
}

/// Where the plain details are read.
enum Details {
    Stored(Box<PlainReader>),
    File(PathBuf),
}

impl ItemList for StoredItems {
    fn stream(&self) -> BoxStream<'static, Result<Item>> {
        let id = self.id;
        let stream = match &self.from {
            Details::Stored(reader) => reader.stream(None),
            Details::File(path) => file_bytes(path.clone()),
        };
        futures::stream::once(async move {
            let (_, rest) = read_head(stream).await?;
            Ok(lines(rest).map(move |line| {
                let mut item = parse_item(&line?)?;
                item.origin.get_or_insert(id);
                Ok(item)
            }))
        })
        .try_flatten()
        .boxed()
    }
}

/// A stream and the bytes of it that were read too far.
struct Rest {
    read: BytesMut,
    stream: ByteStream,
}

/// Reads the first line.
async fn read_head(stream: ByteStream) -> Result<(DetailsHead, Rest)> {
    let mut rest = Rest { read: BytesMut::new(), stream };
    let line = rest
        .line(HEAD_LIMIT)
        .await?
        .ok_or_else(|| Error::corrupt("read details", "the details are empty"))?;
    let head: DetailsHead = serde_json::from_slice(&line)
        .map_err(|e| Error::corrupt("read details", "the first line cannot be read").caused_by(e))?;
    if head.format != 1 {
        return Err(Error::new(ErrorKind::Unsupported, "read details").with("format", head.format));
    }
    Ok((head, rest))
}

fn lines(rest: Rest) -> BoxStream<'static, Result<Bytes>> {
    futures::stream::try_unfold(rest, |mut rest| async move {
        Ok(rest.line(ITEM_LIMIT).await?.map(|line| (line, rest)))
    })
    .boxed()
}

impl Rest {
    /// The next line without its end; `None` after the last.
    async fn line(&mut self, limit: usize) -> Result<Option<Bytes>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.read.get(searched..).and_then(|b| b.iter().position(|&b| b == b'\n')) {
                let mut line = self.read.split_to(searched + end + 1);
                line.truncate(searched + end);
                return Ok(Some(line.freeze()));
            }
            searched = self.read.len();
            if searched > limit {
                return Err(
                    Error::new(ErrorKind::LimitExceeded, "read details").message("a line is too long")
                );
            }
            match self.stream.try_next().await? {
                Some(bytes) => self.read.extend_from_slice(&bytes),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(Error::corrupt("read details", "the last line is not complete")),
            }
        }
    }
}

impl Inner {
    /// A reader of the plain bytes of an object of a backup.
    pub(super) async fn plain_reader(
        &self,
        opened: &Opened,
        name: &str,
        object: &StoredObject,
        sha256: Option<Digest>,
        copies: &[Arc<dyn Sink>],
        watch: &Watch,
    ) -> Result<PlainReader> {
        let manifest = &opened.manifest;
        let chain = Chain::from_specs(&manifest.chain, &self.known)?;
        let plain_size = object.plain_size.ok_or_else(|| {
            Error::corrupt("read manifest", "an object has no plain size").with("object", &object.object)
        })?;
        Ok(PlainReader {
            stored: opened.stored_reader(self, object, copies, watch).await?,
            chain: Arc::new(chain),
            scope: Scope {
                set: manifest.set.clone(),
                id: object.written_as.unwrap_or(manifest.id),
                name: name.to_owned(),
                key: opened.key.clone(),
                workers: self.workers.clone(),
            },
            plain_size,
            plain_sha256: sha256,
        })
    }
}
