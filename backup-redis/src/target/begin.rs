//! What is looked at, and prepared, before anything is written.

use std::collections::BTreeSet;
use std::path::Path;

use backup_core::{Error, ErrorKind, Restore, RestorePlan, Result};
use chrono::Utc;
use futures::StreamExt as _;

use super::build::{Filter, Manner, Proving};
use super::functions;
use super::load::{Loader, Writers, route};
use super::pipe::Existing;
use super::running::{Running, State};
use super::safety::{Safety, reader};
use super::stage::{Database, Databases, databases, mark, no_spare, sweep};
use super::{OnConflict, RedisRestore, Way};
use crate::connect::Connection;
use crate::discover::{Server, cluster_slots, connect, connect_to, info, primaries, rdb_version};
use crate::rdb::{Class, FUNCTIONS, KEYS, Kind, RdbReader, Statistics};

const BEGIN: &str = "begin Redis restore";
/// `proto-max-bulk-len` unless configured otherwise.
const MAX_BULK: u64 = 512 * 1024 * 1024;

pub(super) async fn begin(target: &RedisRestore, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
    if !plan.log.is_empty() || plan.until.is_some() {
        return Err(Error::new(ErrorKind::Unsupported, BEGIN)
            .message("Redis backups have no log to replay up to a moment"));
    }
    let (mut connection, loader, mut manner) = prepare(target).await?;
    let filter = Filter {
        selection: plan.selection.clone(),
        prefix: String::new(),
        databases: target.databases.clone(),
        keys: target.keys.clone(),
    };
    // What the target itself leaves out is part of the backup's proof, but is not read back.
    let leaves_out = target.keys.is_some() || target.databases.is_some();
    if manner.proving == Proving::Sent && !leaves_out && plan.proofs.contains_key(KEYS) {
        manner.proving = Proving::Backup;
    }
    let from_cluster = plan.details.get("cluster").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let wanted = wanted(plan, &filter, from_cluster);
    let mut present = present(&mut connection, &loader).await?;
    let swept = sweep(&mut connection, &mut present).await?;
    let concerned = |d: &&Database| d.keys > 0 && wanted.as_ref().is_none_or(|w| w.contains(&d.number));
    let occupied: BTreeSet<u64> = present.iter().filter(concerned).map(|d| d.number).collect();

    let libraries = functions::present(&mut connection).await?;
    let brings_functions = plan.proofs.get(FUNCTIONS).is_some_and(|p| p.count > 0);
    if brings_functions && libraries.is_none() {
        return Err(Error::new(ErrorKind::Unsupported, BEGIN).message(
            "the backup holds functions, which this server does not have (they came with 7.0): select `db*` to restore without them",
        ));
    }
    let has_functions = libraries.as_ref().is_some_and(|l| !l.is_empty());
    let merging = matches!(target.way, Way::Merge(_));
    if !merging && !plan.replace {
        if let Some(db) = occupied.first() {
            return Err(Error::new(ErrorKind::TargetNotEmpty, BEGIN)
                .message("a database that the backup holds is not empty: ask to replace it, or merge")
                .with("database", db));
        }
        if brings_functions && has_functions {
            return Err(Error::new(ErrorKind::TargetNotEmpty, BEGIN)
                .message("the server has functions, and the backup too: ask to replace them, or merge"));
        }
    }
    if !merging && filter.is_partial() && !occupied.is_empty() {
        return Err(Error::invalid(
            BEGIN,
            "replacing a database by some of its keys would lose the others: merge them instead",
        ));
    }
    space(&mut connection, plan).await?;

    let stage = match target.way {
        Way::Swap => stage(&mut connection, &loader.server, &present, wanted.as_ref()).await?,
        Way::InPlace | Way::Merge(_) => Databases::in_place(),
    };
    let overwrites = !occupied.is_empty() && target.way != Way::Swap;
    let safety = match &target.safety {
        Some(directory) if overwrites => Some(Safety::take(&loader, directory, occupied.clone()).await?),
        None if overwrites && target.way == Way::InPlace => {
            return Err(Error::invalid(
                BEGIN,
                "replacing in place needs a place for the safety backup: name it with `safety_backup`",
            ));
        }
        _ => None,
    };
    Ok(Box::new(Running::new(State {
        way: target.way,
        loader,
        manner,
        filter,
        from_cluster,
        stage,
        occupied,
        safety,
        libraries,
        wanted_proofs: plan.proofs.clone(),
        swept,
    })))
}

/// Connects, and learns of the server what every restore must know.
async fn prepare(target: &RedisRestore) -> Result<(Connection, Loader, Manner)> {
    let (mut connection, server) = connect(&target.config).await?;
    if server.replica && !server.cluster {
        return Err(Error::new(ErrorKind::ReadOnly, BEGIN)
            .message("this is a replica: restore into its primary")
            .with("server", &connection.address));
    }
    let (nodes, route) = if server.cluster {
        if target.way == Way::Swap {
            return Err(Error::new(ErrorKind::StoreInadequate, BEGIN).message(
                "a cluster has one database and none to exchange it with: restore in place with a safety backup, or merge",
            ));
        }
        let slots = cluster_slots(&mut connection).await?;
        let nodes = primaries(&slots);
        let route = route(&slots, &nodes);
        (nodes, Some(route))
    } else {
        (vec![connection.address.clone()], None)
    };
    let now = time(&mut connection).await?;
    let max_bulk = connection
        .command(&["CONFIG", "GET", "proto-max-bulk-len"])
        .await?
        .array()
        .get(1)
        .and_then(crate::resp::Reply::int)
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(MAX_BULK);
    let (existing, proving) = match target.way {
        Way::Swap | Way::InPlace => (Existing::None, Proving::Sent),
        Way::Merge(OnConflict::Keep) => (Existing::Keep, Proving::EachBatch),
        Way::Merge(OnConflict::Replace) => (Existing::Replace, Proving::EachBatch),
    };
    let manner = Manner { version: rdb_version(&server), existing, proving, max_bulk, now };
    let writers = Writers::default();
    let loader = Loader { config: target.config.clone(), server, nodes, route, writers };
    Ok((connection, loader, manner))
}

/// The server's time, in milliseconds since 1970.
async fn time(connection: &mut Connection) -> Result<i64> {
    let reply = connection.call(BEGIN, &["TIME"]).await?;
    Ok(match reply.array() {
        [seconds, micros] => seconds.int().unwrap_or(0) * 1000 + micros.int().unwrap_or(0) / 1000,
        _ => Utc::now().timestamp_millis(),
    })
}

/// Databases that the restore will write; `None` where the backup does not tell.
fn wanted(plan: &RestorePlan, filter: &Filter, from_cluster: bool) -> Option<BTreeSet<u64>> {
    let mut wanted = BTreeSet::new();
    for artifact in &plan.artifacts {
        let filter = Filter {
            prefix: if from_cluster { format!("{}/", artifact.meta.name) } else { String::new() },
            ..filter.clone()
        };
        for count in artifact.details.get("counts")?.as_array()? {
            let db = count.get("db")?.as_u64()?;
            let kind = count.get("type")?.as_str()?;
            let kind = Kind::ALL.into_iter().find(|k| k.name() == kind)?;
            if Class::ALL.into_iter().any(|class| filter.item(db, kind, class))
                && filter.databases.as_ref().is_none_or(|dbs| dbs.contains(&db))
            {
                wanted.insert(db);
            }
        }
    }
    Some(wanted)
}

/// The server's databases; of a cluster its one, with the keys of all nodes.
async fn present(connection: &mut Connection, loader: &Loader) -> Result<Vec<Database>> {
    if loader.route.is_none() {
        return databases(connection).await;
    }
    let mut keys = 0;
    for node in &loader.nodes {
        let (mut node, _) = connect_to(&loader.config, node).await?;
        keys += node.call(BEGIN, &["DBSIZE"]).await?.int().unwrap_or(0);
    }
    Ok(vec![Database { number: 0, keys, staging_since: None }])
}

/// Whether there is room. A server at its limit would refuse, or worse, evict what it has.
async fn space(connection: &mut Connection, plan: &RestorePlan) -> Result<()> {
    let memory = info(connection, "memory").await?;
    let number = |name: &str| memory.get(name).and_then(|v| v.parse::<u64>().ok());
    if let (Some(limit @ 1..), Some(used)) = (number("maxmemory"), number("used_memory"))
        && used.saturating_add(plan.logical_bytes) > limit
    {
        return Err(Error::new(ErrorKind::StorageFull, BEGIN)
            .message("present and restored data together exceed `maxmemory`: raise it, or restore in place")
            .with("maxmemory", limit)
            .with("used_memory", used)
            .with("backup_bytes", plan.logical_bytes));
    }
    Ok(())
}

/// Sets spare databases aside and marks them.
async fn stage(
    connection: &mut Connection,
    server: &Server,
    present: &[Database],
    wanted: Option<&BTreeSet<u64>>,
) -> Result<Databases> {
    debug_assert!(!server.cluster);
    // The highest are the least likely to be anyone's next choice; they are taken from the end of the list.
    let free: Vec<u64> = present
        .iter()
        .filter(|d| d.keys == 0 && wanted.is_none_or(|w| !w.contains(&d.number)))
        .map(|d| d.number)
        .collect();
    let needed = wanted.map_or(free.len(), BTreeSet::len);
    let spare = free.len().checked_sub(needed).and_then(|from| free.get(from..)).ok_or_else(no_spare)?;
    mark(connection, spare).await?;
    Ok(Databases::staged(spare.to_vec()))
}

/// See [`RedisRestore::put_back`].
pub(super) async fn put_back(target: &RedisRestore, path: &Path) -> Result<()> {
    let way = Way::InPlace;
    let target = RedisRestore { way, ..target.clone() };
    let (_, loader, manner) = prepare(&target).await?;
    let mut statistics = Statistics::new(Utc::now());
    let mut rdb = RdbReader::new();
    let mut bytes = reader(path).await?.stream().await?;
    while let Some(chunk) = bytes.next().await {
        rdb.push(&chunk?, &mut statistics)?;
    }
    rdb.finish()?;
    let databases = statistics.counts().keys().map(|(db, _)| *db).collect();
    Safety { files: vec![path.to_owned()], databases }.put_back(&loader, &manner).await
}
