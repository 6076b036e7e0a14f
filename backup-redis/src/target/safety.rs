//! A backup of what is there, taken before it is overwritten in place.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use backup_core::{
    ArtifactBytes, ArtifactMeta, ArtifactReader, ByteStream, CancellationToken, Error, Result, Selection,
};
use bytes::BytesMut;
use chrono::Utc;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::build::{Filter, Manner, Proving};
use super::load::Loader;
use super::pipe::Existing;
use super::readback::{compare, read_back};
use super::stage::{Databases, empty};
use crate::discover::connect_to;
use crate::feed::Feed;
use crate::rdb::{Ignore, RdbReader};
use crate::source::RDB;
use crate::transfer::Transfer;

const SAFETY: &str = "take safety backup of Redis";
const CHUNK: usize = 256 * 1024;

/// Files that hold what the affected databases held.
#[derive(Clone, Debug)]
pub(crate) struct Safety {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) databases: BTreeSet<u64>,
}

impl Safety {
    /// Streams every node's RDB into a new file of `dir`, readable by its owner alone. Leaves none when it fails.
    pub(crate) async fn take(loader: &Loader, dir: &Path, databases: BTreeSet<u64>) -> Result<Self> {
        let mut safety = Self { files: Vec::new(), databases };
        match safety.fill(loader, dir).await {
            Ok(()) => Ok(safety),
            Err(e) => match safety.remove().await {
                Ok(()) => Err(e),
                Err(removing) => Err(e.with("left_behind", removing.chain())),
            },
        }
    }

    async fn fill(&mut self, loader: &Loader, dir: &Path) -> Result<()> {
        let time = Utc::now().format("%Y%m%dT%H%M%S%6fZ");
        for (n, node) in loader.nodes.iter().enumerate() {
            let path = dir.join(format!("redis-safety-{time}-{n:03}.rdb"));
            let (connection, _) = connect_to(&loader.config, node).await?;
            let transfer = Transfer::start(connection, CancellationToken::new()).await?;
            let io = |e: io::Error| Error::io(SAFETY, e).with("file", path.display());
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await.map_err(io)?;
            self.files.push(path.clone());
            let mut feed = Feed::start(RdbReader::new(), Ignore);
            let mut bytes = transfer.bytes();
            while let Some(chunk) = bytes.next().await {
                let chunk = chunk?;
                feed.push(chunk.clone()).await?;
                file.write_all(&chunk).await.map_err(io)?;
            }
            feed.finish().await?;
            file.sync_all().await.map_err(io)?;
        }
        let io = |e: io::Error| Error::io(SAFETY, e).with("directory", dir.display());
        File::open(dir).await.map_err(io)?.sync_all().await.map_err(io)
    }

    /// Empties the affected databases, writes back what they held, and proves it.
    pub(crate) async fn put_back(&self, loader: &Loader, manner: &Manner) -> Result<()> {
        let mut nodes = Vec::new();
        for node in &loader.nodes {
            nodes.push(connect_to(&loader.config, node).await?.0);
        }
        for connection in &mut nodes {
            for db in &self.databases {
                empty(connection, *db).await?;
            }
        }
        let manner = Manner { existing: Existing::None, proving: Proving::Sent, ..manner.clone() };
        let filter = Filter {
            selection: Selection::all(),
            prefix: String::new(),
            databases: Some(self.databases.clone()),
            keys: None,
        };
        let databases = Databases::in_place();
        let mut written = crate::rdb::proof::Sums::default();
        let mut opaque = BTreeSet::new();
        for path in &self.files {
            let reader = reader(path).await?;
            let (built, _) = loader.load(&reader, filter.clone(), &manner, &databases).await?;
            written.merge(&built.written);
            opaque.extend(built.opaque);
        }
        let map = self.databases.iter().map(|db| (*db, *db)).collect();
        let found = read_back(&loader.config, &loader.nodes, &map, &opaque).await?;
        compare(&written, &found, manner.proving)
    }

    /// Removes the files.
    pub(crate) async fn remove(&self) -> Result<()> {
        for path in &self.files {
            tokio::fs::remove_file(path)
                .await
                .map_err(|e| Error::io("remove safety backup", e).with("file", path.display()))?;
        }
        Ok(())
    }

    /// The files, for messages.
    pub(crate) fn names(&self) -> String {
        self.files.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// A reader over a file of this machine.
pub(crate) async fn reader(path: &Path) -> Result<ArtifactReader> {
    let size = tokio::fs::metadata(path)
        .await
        .map_err(|e| Error::io("read RDB file", e).with("file", path.display()))?
        .len();
    let bytes = FileBytes(path.to_owned());
    Ok(ArtifactReader::new(ArtifactMeta::new("dump", RDB), size, None, std::sync::Arc::new(bytes)))
}

#[derive(Clone, Debug)]
struct FileBytes(PathBuf);

impl ArtifactBytes for FileBytes {
    fn open(&self, range: Option<Range<u64>>) -> BoxFuture<'static, Result<ByteStream>> {
        let path = self.0.clone();
        async move {
            let name = path.display().to_string();
            let io = move |e: io::Error| Error::io("read RDB file", e).with("file", &name);
            let mut file = File::open(&path).await.map_err(&io)?;
            let range = range.unwrap_or(0..u64::MAX);
            file.seek(io::SeekFrom::Start(range.start)).await.map_err(&io)?;
            let bytes = file.take(range.end - range.start);
            Ok(futures::stream::try_unfold((bytes, io), |(mut bytes, io)| async move {
                let mut chunk = BytesMut::with_capacity(CHUNK);
                let n = bytes.read_buf(&mut chunk).await.map_err(&io)?;
                Ok((n > 0).then(|| (chunk.freeze(), (bytes, io))))
            })
            .boxed())
        }
        .boxed()
    }
}
