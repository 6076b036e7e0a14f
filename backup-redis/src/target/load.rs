//! Loads an RDB into servers: parsing on one thread, sending to every node beside it.

use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{ArtifactReader, Error, ErrorKind, Result};
use futures::StreamExt as _;
use tokio::task::{JoinError, JoinSet};

use super::build::{Builder, Built, Deferred, Filter, Manner, Proving};
use super::large::LargeValues;
use super::pipe::{self, Written};
use super::slots::slot;
use super::stage::Databases;
use crate::config::{Address, RedisConfig};
use crate::connect::Connection;
use crate::discover::{SLOTS, Server, Slots, connect_to};
use crate::feed::Feed;
use crate::rdb::RdbReader;
use crate::resp::Reply;

/// Values up to this many bytes are sent as they pass; larger ones are read a second time.
const WINDOW: usize = 2 * 1024 * 1024;

/// Where to load into.
#[derive(Clone, Debug)]
pub(crate) struct Loader {
    pub(crate) config: RedisConfig,
    pub(crate) server: Server,
    pub(crate) nodes: Vec<Address>,
    /// Which node owns a slot, in a cluster.
    pub(crate) route: Option<Arc<[u16]>>,
    /// Connections that write, by node and id, so that they can be ended before anything is undone.
    pub(crate) writers: Writers,
}

/// Connections that write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writers(Arc<Mutex<Vec<(Address, i64)>>>);

impl Writers {
    fn add(&self, node: &Address, id: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((node.clone(), id));
    }

    /// Ends them on the server, so that nothing they sent is still being carried out afterwards.
    pub(crate) async fn end(&self, config: &RedisConfig) -> Result<()> {
        let writers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (node, id) in writers {
            let (mut connection, _) = connect_to(config, &node).await?;
            // It may be gone already, or this user may not: then it has ended or will by itself.
            connection.command(&["CLIENT", "KILL", "ID", &id.to_string()]).await?;
        }
        Ok(())
    }
}

/// For each slot the position of its node.
pub(crate) fn route(slots: &Slots, nodes: &[Address]) -> Arc<[u16]> {
    let mut route = vec![0u16; usize::from(SLOTS)];
    for (range, address) in slots {
        let node = nodes.iter().position(|n| n == address).and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
        for slot in range.clone() {
            if let Some(entry) = route.get_mut(usize::from(slot)) {
                *entry = node;
            }
        }
    }
    route.into()
}

impl Loader {
    /// Loads one artifact.
    pub(crate) async fn load(
        &self,
        reader: &ArtifactReader,
        filter: Filter,
        manner: &Manner,
        databases: &Databases,
    ) -> Result<(Built, Written)> {
        let verified = manner.proving == Proving::EachBatch;
        let mut pipes = JoinSet::new();
        let mut ways = Vec::new();
        for node in &self.nodes {
            let (connection, server) = self.writer(node).await?;
            let config = self.config.clone();
            ways.push(pipe::start(&mut pipes, connection, server, config, manner.existing, verified));
        }
        let builder = Builder::new(filter, manner.clone(), databases.clone(), ways, self.route.clone());
        let built = feed(reader, Feed::start(RdbReader::new().window(WINDOW), builder)).await;
        // The nodes' tasks end when the builder is gone. An error of theirs is why the builder failed, if it did.
        let mut written = Written::default();
        while let Some(ended) = pipes.join_next().await {
            written.merge(ended.map_err(lost)??);
        }
        let mut built = built?;
        written.merge(std::mem::take(&mut built.refused));
        self.large(reader, &built.deferred, manner, &mut written).await?;
        written.check()?;
        Ok((built, written))
    }

    /// A connection that writes, noted as one.
    async fn writer(&self, node: &Address) -> Result<(Connection, Server)> {
        let (mut connection, server) = connect_to(&self.config, node).await?;
        if let Reply::Int(id) = connection.command(&["CLIENT", "ID"]).await? {
            self.writers.add(node, id);
        }
        Ok((connection, server))
    }

    async fn large(
        &self,
        reader: &ArtifactReader,
        deferred: &[Deferred],
        manner: &Manner,
        written: &mut Written,
    ) -> Result<()> {
        for value in deferred {
            let node = self
                .route
                .as_ref()
                .map_or(0, |route| route.get(usize::from(slot(&value.key))).copied().map_or(0, usize::from));
            let node =
                self.nodes.get(node).ok_or_else(|| Error::new(ErrorKind::Internal, "restore Redis keys"))?;
            let (connection, server) = self.writer(node).await?;
            let large = LargeValues { connection, server: &server, config: &self.config, manner, reader };
            large.write(std::slice::from_ref(value), written).await?;
        }
        Ok(())
    }
}

/// Passes all bytes of the artifact through `feed`.
async fn feed(reader: &ArtifactReader, mut feed: Feed<Builder>) -> Result<Built> {
    let mut bytes = reader.stream().await?;
    while let Some(chunk) = bytes.next().await {
        feed.push(chunk?).await?;
    }
    feed.finish().await.map(|builder| builder.done)
}

fn lost(e: JoinError) -> Error {
    Error::new(ErrorKind::Internal, "restore Redis keys")
        .message("a sending task ended without a result")
        .caused_by(e)
}
