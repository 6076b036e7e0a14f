//! One old backup as a source: its bytes with everything undone that was done to them.

use std::fmt;
use std::fs::Metadata;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::mpsc;

use super::gpg::Gpg;
use super::layers::{Layer, Layers};
use super::openssl::{self, Password};
use super::sniff::Sniffer;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::state::file_bytes;
use crate::source::{
    Artifact, ByteStream, CheckReport, Outcome, Snapshot, SnapshotRequest, Source, SourceReport,
};
use crate::transform::{ChainDecoder, Codec, CodecContext, Emit, Gzip, Transform as _};
use crate::whole::{WHOLE_BYTES, whole_item, whole_proof};
use crate::workers::Workers;

/// Bytes that may come out of any file, however small, before its ratio counts.
const RATIO_FREE: u64 = 16 << 20;
/// Decoded pieces that may wait.
const QUEUE: usize = 4;
/// Largest piece passed on, in bytes.
const PIECE: usize = 256 * 1024;

/// How much may come out of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Plain bytes.
    pub(super) size: u64,
    /// Plain bytes for each byte of the file.
    pub(super) ratio: u64,
}

/// What opens encrypted files.
#[derive(Clone, Default)]
pub(super) struct Secrets {
    pub(super) openssl: Option<Password>,
    pub(super) gpg: Gpg,
}

/// A file as it was when the folder was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) size: u64,
    pub(super) modified: Option<SystemTime>,
}

impl From<&Metadata> for Seen {
    fn from(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), modified: metadata.modified().ok() }
    }
}

pub(super) struct OldBackup {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) seen: Seen,
    pub(super) secrets: Secrets,
    pub(super) limits: Limits,
    pub(super) workers: Workers,
}

impl fmt::Debug for OldBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OldBackup")
            .field("path", &self.path)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

/// Digest and size of the plain bytes, once they were read to their end.
type Drained = Arc<Mutex<Option<(Digest, u64)>>>;

impl OldBackup {
    /// Codecs in the order in which the layers were put on, and the bytes to push into them.
    async fn open(&self, layers: &Layers, cx: &CodecContext<'_>) -> Result<(ChainDecoder, ByteStream)> {
        let mut codecs: Vec<Box<dyn Codec>> = Vec::new();
        let mut input = None;
        for (place, layer) in layers.layers.iter().enumerate() {
            match layer {
                Layer::Gzip => {
                    let gzip = Gzip::default();
                    codecs.push(gzip.decoder(&gzip.spec(), cx, None)?);
                }
                Layer::Openssl => {
                    let password = self.secrets.openssl.clone().ok_or_else(|| {
                        Error::invalid(
                            "import",
                            "the file is encrypted by `openssl enc`; give its password with `openssl`",
                        )
                    })?;
                    codecs.push(Box::new(openssl::Decoder::new(password)));
                    if let Some(expected) = layers.expected_after(place) {
                        codecs.push(Box::new(Sniffer::new(expected)));
                    }
                }
                Layer::Gpg if place == 0 => input = Some(self.secrets.gpg.decrypt(&self.path).await?),
                Layer::Gpg => {
                    return Err(Error::new(ErrorKind::Unsupported, "import")
                        .message("gpg inside something else is not undone; undo what is around it first"));
                }
            }
        }
        codecs.reverse();
        let input = input.unwrap_or_else(|| file_bytes(self.path.clone()));
        Ok((ChainDecoder::whole(codecs, None), input))
    }

    fn unchanged(&self) -> Result<()> {
        let metadata = std::fs::metadata(&self.path).map_err(|e| Error::io("import", e))?;
        if Seen::from(&metadata) == self.seen {
            return Ok(());
        }
        Err(Error::new(ErrorKind::SourceFailed, "import")
            .message("the file changed while it was imported: it is still being written; import again later"))
    }
}

#[async_trait]
impl Source for OldBackup {
    fn kind(&self) -> &'static str {
        "import"
    }

    async fn check(&self) -> Result<CheckReport> {
        self.unchanged()?;
        Ok(CheckReport::default())
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        self.unchanged()?;
        let layers = Layers::of(&self.name);
        // No part of the chain of an import depends on where it is put.
        let set = crate::name::SetName::parse("import")?;
        let id = crate::name::BackupId::new(chrono::DateTime::UNIX_EPOCH, 0);
        let cx =
            CodecContext { set: &set, id, artifact: &layers.meta.name, key: None, workers: &self.workers };
        let (decoder, input) = self.open(&layers, &cx).await?;
        let drained = Drained::default();
        let (to, mut from) = mpsc::channel(QUEUE);
        let out = Pieces {
            to,
            hasher: Hasher::new(),
            size: 0,
            limit: self.limits.size.min(self.seen.size.saturating_mul(self.limits.ratio).max(RATIO_FREE)),
            drained: Arc::clone(&drained),
        };
        let (runtime, cancelled) = (tokio::runtime::Handle::current(), request.cancelled);
        tokio::task::spawn_blocking(move || decode(decoder, input, out, &runtime, &cancelled));
        let data = futures::stream::poll_fn(move |cx| from.poll_recv(cx)).boxed();
        Ok(Box::new(Opened {
            path: self.path.clone(),
            seen: self.seen.clone(),
            artifact: Some(Artifact { meta: layers.meta.clone(), data }),
            layers,
            drained,
        }))
    }
}

struct Opened {
    path: PathBuf,
    seen: Seen,
    artifact: Option<Artifact>,
    layers: Layers,
    drained: Drained,
}

#[async_trait]
impl Snapshot for Opened {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        Ok(self.artifact.take())
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let drained = *self.drained.lock().unwrap_or_else(PoisonError::into_inner);
        let (sha256, size) = drained.ok_or_else(|| {
            Error::new(ErrorKind::SourceFailed, "import").message("the file was not read to its end")
        })?;
        let metadata = tokio::fs::metadata(&self.path).await.map_err(|e| Error::io("import", e))?;
        if Seen::from(&metadata) != self.seen {
            return Err(Error::new(ErrorKind::SourceFailed, "import").message(
                "the file changed while it was imported: it is still being written; import again later",
            ));
        }
        let name = &self.layers.meta.name;
        let mut report = SourceReport::default();
        report.items.push(&whole_item(name, size, sha256))?;
        report.proofs.insert(WHOLE_BYTES.to_owned(), whole_proof(name, &sha256));
        let layers =
            self.layers.layers.iter().map(|layer| Value::from(format!("{layer:?}").to_ascii_lowercase()));
        report.details.insert("undone".to_owned(), layers.collect());
        Ok(report)
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        Ok(())
    }
}

/// Decodes everything. An error is the last thing sent.
fn decode(
    mut decoder: ChainDecoder,
    mut input: ByteStream,
    mut out: Pieces,
    runtime: &tokio::runtime::Handle,
    cancelled: &tokio_util::sync::CancellationToken,
) {
    let mut run = || {
        loop {
            let to = out.to.clone();
            let next = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = cancelled.cancelled() => Some(Err(Error::cancelled("import"))),
                    () = to.closed() => Some(Err(Error::cancelled("import"))),
                    next = input.next() => next,
                }
            });
            match next {
                Some(bytes) => decoder.push(bytes?, &mut out)?,
                None => return Ok(()),
            }
        }
    };
    let result: Result<()> = run();
    if let Err(error) = result.and_then(|()| decoder.finish(&mut out)) {
        // A receiver that is gone does not want the error either.
        let _ = out.to.blocking_send(Err(error));
        return;
    }
    *out.drained.lock().unwrap_or_else(PoisonError::into_inner) = Some((out.hasher.finish(), out.size));
}

/// Hashes, counts and sends plain bytes.
struct Pieces {
    to: mpsc::Sender<Result<Bytes>>,
    hasher: Hasher,
    size: u64,
    limit: u64,
    drained: Drained,
}

impl Emit for Pieces {
    fn data(&mut self, mut bytes: Bytes) -> Result<()> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            return Err(Error::new(ErrorKind::LimitExceeded, "import")
                .message("more comes out of the file than is allowed; raise `max_size` or `max_ratio` if you trust it")
                .with("bytes", self.limit));
        }
        self.hasher.update(&bytes);
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.to.blocking_send(Ok(piece)).map_err(|_| Error::cancelled("import"))?;
        }
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}
