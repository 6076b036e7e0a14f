//! Backing up: [`RedisRdb`].

use std::collections::VecDeque;

use async_trait::async_trait;
use backup_core::{
    Artifact, ArtifactFormat, ArtifactMeta, ByteStream, CancellationToken, CheckReport, Error, ErrorKind,
    Finding, Outcome, Result, Snapshot, SnapshotRequest, Source, SourceReport, Warning,
};
use futures::StreamExt as _;
use serde_json::{Map, Value};

use crate::config::{Address, RedisConfig};
use crate::connect::Connection;
use crate::discover::{Server, cluster_slots, connect, connect_to, info, primaries};
use crate::feed::{Feed, Slot};
use crate::rdb::RdbReader;
use crate::recipe::recipe;
use crate::scan;
use crate::tally::Tally;
use crate::transfer::Transfer;

/// The format of the artifacts: an RDB file, as `redis-server` loads it.
pub const RDB: ArtifactFormat = ArtifactFormat::new("redis.rdb", "rdb");

/// Backs up a Redis or Valkey server over its replication protocol: the server forks and streams its RDB, which is
/// parsed, checked and proved while it passes.
///
/// The user needs no more than [`PERMISSIONS`](Self::PERMISSIONS) (and `+cluster|slots` in a cluster); such a user
/// can read all data, so its password is worth protecting. One backup costs the server one fork.
///
/// In a cluster there is one artifact for each primary, one after the other: each is a point in time of its shard,
/// not of the cluster.
#[derive(Clone, Debug)]
pub struct RedisRdb {
    config: RedisConfig,
    scan: bool,
}

impl RedisRdb {
    /// What the user of a backup needs, as `ACL SETUSER` takes it; no key pattern.
    pub const PERMISSIONS: &str = "+psync +sync +replconf +ping";

    /// A source for the server at `url`; see [`RedisConfig`]. Connects when it is used.
    pub fn connect(url: &str) -> Result<Self> {
        RedisConfig::parse(url).map(Self::new)
    }

    /// A source for the server of `config`.
    pub fn new(config: RedisConfig) -> Self {
        Self { config, scan: false }
    }

    /// Where the server forbids replication (managed services): reads key by key with `SCAN` and `DUMP` instead.
    /// That is not a single point in time, which the report says, and needs about 20 bytes of memory a key.
    pub fn allow_scan(mut self) -> Self {
        self.scan = true;
        self
    }

    /// A connection, what its server said of itself, and the nodes to back up.
    async fn nodes(&self) -> Result<(Connection, Server, VecDeque<Node>)> {
        let (mut connection, server) = connect(&self.config).await?;
        let nodes = if server.cluster {
            primaries(&cluster_slots(&mut connection).await?)
                .into_iter()
                .enumerate()
                .map(|(n, address)| Node { name: format!("shard-{n:03}"), address })
                .collect()
        } else {
            [Node { name: "dump".to_owned(), address: connection.address.clone() }].into()
        };
        Ok((connection, server, nodes))
    }
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    address: Address,
}

#[async_trait]
impl Source for RedisRdb {
    fn kind(&self) -> &'static str {
        "redis"
    }

    async fn check(&self) -> Result<CheckReport> {
        let (_, server, nodes) = self.nodes().await?;
        let mut report = CheckReport { server_version: server.describe(), ..CheckReport::default() };
        for node in nodes {
            let (mut connection, _) = connect_to(&self.config, &node.address).await?;
            // Asking to be a replica costs nothing until PSYNC, and shows the permission.
            if let Err(e) = connection.call("start replication", &["REPLCONF", "capa", "eof"]).await {
                report.findings.push(Finding {
                    fatal: !self.scan,
                    code: "no-replication".into(),
                    message: format!(
                        "{}: {}; grant `{}`, or allow the scan, which is no single point in time",
                        node.address,
                        e.chain(),
                        Self::PERMISSIONS
                    ),
                });
            }
            let state = info(&mut connection, "everything").await?;
            let is = |name: &str, value: &str| state.get(name).is_some_and(|v| v == value);
            if is("loading", "1") {
                report.findings.push(finding(
                    true,
                    "loading",
                    &node,
                    "the server is loading its data: wait until it has",
                ));
            }
            if is("role", "slave") && is("master_link_status", "down") {
                report.findings.push(finding(
                    true,
                    "replica-without-primary",
                    &node,
                    "this replica has no link to its primary: name another node",
                ));
            }
            if let Some(bytes) = state.get("used_memory_dataset").and_then(|v| v.parse::<u64>().ok()) {
                // Memory holds more than the RDB: an upper estimate.
                report.estimated_bytes = Some(report.estimated_bytes.unwrap_or(0) + bytes);
            }
        }
        Ok(report)
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        if !request.selection.is_all() {
            return Err(Error::invalid(
                "back up Redis",
                "a server sends its keys all or none: back up everything and select when restoring",
            ));
        }
        let (connection, server, nodes) = self.nodes().await?;
        let connection = (!server.cluster).then_some(connection);
        let mut snapshot = RdbSnapshot {
            source: self.clone(),
            server,
            shards: nodes.len(),
            nodes,
            begun: None,
            artifacts: Vec::new(),
            warnings: Vec::new(),
            cancelled: request.cancelled.clone(),
        };
        // Begins at once: what is wrong shows here, and this is the consistent point.
        snapshot.begin_next(connection).await?;
        Ok(Box::new(snapshot))
    }
}

fn finding(fatal: bool, code: &'static str, node: &Node, message: &str) -> Finding {
    Finding { fatal, code: code.into(), message: format!("{}: {message}", node.address) }
}

struct RdbSnapshot {
    source: RedisRdb,
    server: Server,
    shards: usize,
    nodes: VecDeque<Node>,
    begun: Option<Begun>,
    artifacts: Vec<(String, Map<String, Value>, Slot<Tally>)>,
    warnings: Vec<Warning>,
    cancelled: CancellationToken,
}

/// An RDB that a server has begun to send.
struct Begun {
    node: Node,
    bytes: ByteStream,
    length: Option<u64>,
    details: Map<String, Value>,
}

impl RdbSnapshot {
    /// Asks the next node for its RDB, over `connection` if there is one to it already.
    async fn begin_next(&mut self, connection: Option<Connection>) -> Result<()> {
        let Some(node) = self.nodes.pop_front() else { return Ok(()) };
        let connection = match connection {
            Some(connection) => connection,
            None => connect_to(&self.source.config, &node.address).await?.0,
        };
        let mut details = Map::new();
        details.insert("node".to_owned(), node.address.to_string().into());
        let begun = match Transfer::start(connection, self.cancelled.clone()).await {
            Ok(transfer) => {
                details.insert("replication_id".to_owned(), transfer.position.0.clone().into());
                details.insert("replication_offset".to_owned(), transfer.position.1.into());
                Begun { node, length: transfer.length, details, bytes: transfer.bytes() }
            }
            Err(e)
                if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported)
                    && self.source.scan =>
            {
                let (connection, server) = connect_to(&self.source.config, &node.address).await?;
                details.insert("method".to_owned(), "scan".into());
                self.warnings.push(Warning::new(
                    "not-a-single-point-in-time",
                    format!(
                        "{} does not allow replication: its keys were read one after the other while writers may have been active",
                        node.address
                    ),
                ));
                let bytes = scan::bytes(connection, &server, self.cancelled.clone()).await?;
                Begun { node, length: None, details, bytes }
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                return Err(e.with("needed", RedisRdb::PERMISSIONS));
            }
            Err(e) => return Err(e),
        };
        self.begun = Some(begun);
        Ok(())
    }
}

#[async_trait]
impl Snapshot for RdbSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        if self.begun.is_none() {
            self.begin_next(None).await?;
        }
        let Some(begun) = self.begun.take() else { return Ok(None) };
        let tally = Slot::empty();
        let mut meta = ArtifactMeta::new(begun.node.name.clone(), RDB);
        if let Some(length) = begun.length {
            meta = meta.size_hint(length);
        }
        self.artifacts.push((begun.node.name, begun.details, tally.clone()));
        Ok(Some(Artifact { meta, data: tallied(begun.bytes, tally) }))
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let mut report = SourceReport {
            server_version: self.server.describe(),
            warnings: std::mem::take(&mut self.warnings),
            ..SourceReport::default()
        };
        for (name, details, tally) in std::mem::take(&mut self.artifacts) {
            let tally = tally.take().ok_or_else(|| {
                Error::new(ErrorKind::SourceFailed, "finish Redis backup")
                    .message("the RDB was not read to its end")
                    .with("artifact", &name)
            })?;
            let prefix = if self.server.cluster { format!("{name}/") } else { String::new() };
            tally.report(&name, &prefix, &mut report)?;
            if let Some(known) = report.artifacts.get_mut(&name) {
                known.extend(details);
            }
            report.consistent_at = match (report.consistent_at, tally.taken_at()) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        if report.artifacts.len() != self.shards || !self.nodes.is_empty() {
            return Err(Error::new(ErrorKind::SourceFailed, "finish Redis backup")
                .message("not every shard was backed up"));
        }
        report.recipe = recipe(&self.server, report.artifacts.keys().map(String::as_str));
        if self.server.cluster {
            report.details.insert("cluster".to_owned(), true.into());
            if self.shards > 1 {
                report.warnings.push(Warning::new(
                    "shards-at-different-moments",
                    "each shard of a cluster is consistent in itself; the shards were read one after the other",
                ));
            }
        }
        Ok(report)
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        // Dropping the connections is all the server needs.
        Ok(())
    }
}

/// Passes `bytes` on while they are parsed and proved beside. What was learned is put into `tally` when they were a
/// whole and sound RDB; otherwise the stream ends in an error.
fn tallied(bytes: ByteStream, tally: Slot<Tally>) -> ByteStream {
    struct State {
        bytes: ByteStream,
        feed: Feed<Tally>,
        tally: Slot<Tally>,
    }
    let state = State { bytes, feed: Feed::start(RdbReader::new(), Tally::new()), tally };
    futures::stream::unfold(Some(state), |state| async {
        let mut state = state?;
        match state.bytes.next().await {
            Some(Ok(chunk)) => match state.feed.push(chunk.clone()).await {
                Ok(()) => Some((Ok(chunk), Some(state))),
                Err(e) => Some((Err(e), None)),
            },
            Some(Err(e)) => Some((Err(e), None)),
            None => match state.feed.finish().await {
                Ok(tally) => {
                    state.tally.put(tally);
                    None
                }
                Err(e) => Some((Err(e), None)),
            },
        }
    })
    .boxed()
}
