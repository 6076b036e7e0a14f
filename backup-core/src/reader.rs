//! Reading an artifact of a stored backup: [`ArtifactReader`].

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, Result};
use crate::source::{ArtifactMeta, ByteStream};

/// What is behind an [`ArtifactReader`]: something that yields verified plain bytes of one artifact by range.
pub trait ArtifactBytes: Debug + Send + Sync {
    /// Opens the plain bytes in `range`; `None` is the whole artifact.
    fn open(&self, range: Option<Range<u64>>) -> BoxFuture<'static, Result<ByteStream>>;
}

/// An artifact as a [`Restore`](crate::Restore) sees it: plain bytes, verified, from whichever copy is intact.
///
/// Reading continues from another copy at the same offset when a block of one is missing or damaged; an error in
/// a stream therefore means that no copy has the block.
#[derive(Clone, Debug)]
pub struct ArtifactReader {
    meta: ArtifactMeta,
    plain_size: u64,
    parts: Option<Arc<[Range<u64>]>>,
    bytes: Arc<dyn ArtifactBytes>,
}

impl ArtifactReader {
    /// A reader over `bytes`. With `parts` (ascending, not overlapping), only these ranges were selected.
    pub fn new(
        meta: ArtifactMeta,
        plain_size: u64,
        parts: Option<Vec<Range<u64>>>,
        bytes: Arc<dyn ArtifactBytes>,
    ) -> Self {
        Self { meta, plain_size, parts: parts.map(Into::into), bytes }
    }

    /// A reader over bytes in memory, for tests of targets.
    pub fn from_bytes(meta: ArtifactMeta, plain: impl Into<Bytes>) -> Self {
        let plain = plain.into();
        Self::new(meta, plain.len() as u64, None, Arc::new(InMemory(plain)))
    }

    /// What the artifact is.
    pub fn meta(&self) -> &ArtifactMeta {
        &self.meta
    }

    /// Size of the whole artifact in plain bytes.
    pub fn plain_size(&self) -> u64 {
        self.plain_size
    }

    /// The plain ranges of the selected items, ascending; `None` means the whole artifact.
    pub fn parts(&self) -> Option<&[Range<u64>]> {
        self.parts.as_deref()
    }

    /// All plain bytes.
    pub async fn stream(&self) -> Result<ByteStream> {
        self.bytes.open(None).await
    }

    /// The plain bytes in `range`. Only the stored blocks that hold them are read.
    pub async fn range(&self, range: Range<u64>) -> Result<ByteStream> {
        if range.start > range.end || range.end > self.plain_size {
            return Err(Error::invalid("read artifact", "the range lies outside the artifact")
                .with("artifact", &self.meta.name)
                .with("size", self.plain_size));
        }
        self.bytes.open(Some(range)).await
    }

    /// The plain bytes of the selected items, one after the other: the whole stream, or its selected parts.
    /// For formats made of independent members (tar), this is again a stream of members.
    pub async fn selected(&self) -> Result<ByteStream> {
        let Some(parts) = self.parts.clone() else { return self.stream().await };
        let bytes = Arc::clone(&self.bytes);
        let ranges = (0..parts.len()).map(move |i| parts[i].clone());
        Ok(futures::stream::iter(ranges).then(move |range| bytes.open(Some(range))).try_flatten().boxed())
    }
}

#[derive(Debug)]
struct InMemory(Bytes);

impl ArtifactBytes for InMemory {
    fn open(&self, range: Option<Range<u64>>) -> BoxFuture<'static, Result<ByteStream>> {
        let whole = self.0.clone();
        async move {
            let piece = match range {
                None => whole,
                Some(range) => {
                    let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(whole.len());
                    whole.slice(index(range.start)..index(range.end))
                }
            };
            Ok(futures::stream::iter([Ok(piece)]).boxed())
        }
        .boxed()
    }
}
