//! Reads a restored database back and proves it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{Error, ErrorKind, Item, ItemKind, Proofs, Result};
use futures::TryStreamExt as _;
use serde_json::Value;
use tokio::task::JoinSet;

use super::archive::Loader;
use super::traffic::{Access, Traffic};
use crate::error;
use crate::ident::{Qualified, literal};
use crate::logical::collected::{LARGE_OBJECTS, SEQUENCES, SequenceValue, item_name, large_object_proof};
use crate::logical::dump::parallel::{Slice, Table};
use crate::logical::meter::unhex;
use crate::logical::rows::RowCounter;
use crate::session::Session;

/// Bytes on disk of what one connection reads at a time of a large table.
const SLICE: u64 = 64 * 1024 * 1024;
/// Bytes of a large object read at a time.
const PIECE: u64 = 128 * 1024;

/// What is to be proved, from the items of the backup.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// Columns of tables.
    pub(super) tables: BTreeMap<Qualified, Vec<String>>,
    sequences: Vec<Qualified>,
    large_objects: bool,
}

impl Expected {
    /// Forgets all but tables.
    pub(super) fn tables_only(&mut self) {
        self.sequences.clear();
        self.large_objects = false;
    }

    /// Takes an item of this database. Returns its name if it is a table.
    pub(super) fn add(&mut self, item: &Item) -> Result<Option<Qualified>> {
        let text = |name: &str| item.attributes.get(name).and_then(Value::as_str);
        let damaged = || Error::corrupt("read item", "an item does not say which table or sequence it is");
        let schema = || text("schema").ok_or_else(damaged);
        match (item.kind, text("what")) {
            (ItemKind::Table, _) => {
                let columns = item.attributes.get("columns").and_then(Value::as_array).ok_or_else(damaged)?;
                let columns = columns.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
                let table = Qualified::new(schema()?, text("table").ok_or_else(damaged)?);
                self.tables.insert(table.clone(), columns);
                return Ok(Some(table));
            }
            (_, Some("sequence")) => {
                self.sequences.push(Qualified::new(schema()?, text("sequence").ok_or_else(damaged)?));
            }
            (_, Some("large objects")) => self.large_objects = true,
            _ => {}
        }
        Ok(None)
    }
}

/// The proofs of a restored database, `place` telling where each table is to be read.
pub(super) async fn prove(
    loader: &Loader,
    expected: &Expected,
    prefix: &str,
    place: impl Fn(&Qualified) -> Qualified,
) -> Result<Proofs> {
    let session = loader.session().await?;
    let mut proofs = Proofs::new();
    let mut found = Vec::new();
    let sizes = sizes(&session).await?;
    for (name, columns) in &expected.tables {
        let proof_name = item_name(prefix, &name.display());
        proofs.entry(proof_name.clone()).or_default();
        let place = place(name);
        let Some((bytes, pages)) = sizes.get(&place).copied() else { continue };
        found.push((proof_name, Table::new(place, columns.clone(), bytes, pages)));
    }
    // The largest first, so that no connection is left alone with one at the end.
    found.sort_by_key(|(_, table)| std::cmp::Reverse(table.bytes));
    let mut queue = VecDeque::new();
    for (name, table) in found {
        let access = Access::Read(table.name.clone());
        let slices = table.slices(SLICE).into_iter();
        queue.extend(slices.map(|slice| (access.clone(), (name.clone(), table.clone(), slice))));
    }
    if !expected.sequences.is_empty() {
        let proof = proofs.entry(item_name(prefix, SEQUENCES)).or_default();
        for name in &expected.sequences {
            let rows = session
                .rows("prove sequences", &format!("SELECT last_value, is_called FROM {}", name.sql()))
                .await?;
            if let Some([Some(value), Some(called)]) = rows.first().map(Vec::as_slice) {
                let value =
                    SequenceValue { name: name.clone(), last_value: value.clone(), is_called: called == "t" };
                proof.merge(&value.proof());
            }
        }
    }
    if expected.large_objects {
        let proof = large_objects(&session).await?;
        proofs.insert(item_name(prefix, LARGE_OBJECTS), proof);
    }
    let workers = loader.options.jobs.min(queue.len());
    let work = Arc::new(Work {
        queue: Mutex::new(queue),
        traffic: loader.traffic.clone(),
        proofs: Mutex::new(proofs),
    });
    // Tasks of their own: beside the connections' tasks they are woken without another thread.
    let mut tasks = JoinSet::new();
    let mut session = Some(session);
    for _ in 0..workers {
        let session = match session.take() {
            Some(session) => session,
            None => loader.session().await?,
        };
        tasks.spawn(tables(session, Arc::clone(&work)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|e| Error::new(ErrorKind::Internal, "prove table").caused_by(e))??;
    }
    let proofs = std::mem::take(&mut *work.proofs.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(proofs)
}

/// A stretch of a table that is to be read, under the name of its proof.
type Stretch = (String, Table, Slice);

/// What is to be read, and what was found.
struct Work {
    queue: Mutex<VecDeque<(Access, Stretch)>>,
    traffic: Traffic,
    proofs: Mutex<Proofs>,
}

async fn tables(session: Session, work: Arc<Work>) -> Result<()> {
    while let Some(((name, table, slice), _pass)) = work.traffic.take(&work.queue).await {
        let sql = table.copy_out(&slice);
        let mut counter = RowCounter::default();
        let mut rows = std::pin::pin!(session.copy_out(&sql).await?);
        while let Some(row) = rows.try_next().await.map_err(|e| error::database("prove table", e))? {
            counter.push(&row);
        }
        let found = counter.finish();
        let mut proofs = work.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.entry(name).or_default().merge(&found.proof);
    }
    Ok(())
}

/// Bytes and heap pages of every ordinary table.
async fn sizes(session: &Session) -> Result<BTreeMap<Qualified, (u64, u64)>> {
    let rows = session
        .rows(
            "list tables",
            &format!(
                "SELECT n.nspname, c.relname, pg_catalog.pg_table_size(c.oid), \
                   CASE WHEN am.amname = {} THEN pg_catalog.pg_relation_size(c.oid) \
                     / pg_catalog.current_setting('block_size')::bigint ELSE 0 END \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam WHERE c.relkind = 'r'",
                literal("heap")
            ),
        )
        .await?;
    let mut all = BTreeMap::new();
    for row in rows {
        let [Some(schema), Some(name), bytes, pages] = row.as_slice() else { continue };
        let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse().ok()).unwrap_or(0);
        all.insert(Qualified::new(schema, name), (number(bytes), number(pages)));
    }
    Ok(all)
}

async fn large_objects(session: &Session) -> Result<backup_core::Proof> {
    let rows = session
        .rows("list large objects", "SELECT oid FROM pg_catalog.pg_largeobject_metadata ORDER BY oid")
        .await?;
    let mut proof = backup_core::Proof::empty();
    for oid in rows.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
        let mut hasher = backup_core::Hasher::new();
        let mut offset = 0;
        loop {
            let sql = format!("SELECT pg_catalog.encode(pg_catalog.lo_get({oid}, {offset}, {PIECE}), 'hex')");
            let piece = session.value("prove large object", &sql).await?.unwrap_or_default();
            let data = unhex(&piece).unwrap_or_default();
            hasher.update(&data);
            offset += data.len() as u64;
            if (data.len() as u64) < PIECE {
                break;
            }
        }
        proof.merge(&large_object_proof(oid.parse().unwrap_or(0), &hasher.finish()));
    }
    Ok(proof)
}
