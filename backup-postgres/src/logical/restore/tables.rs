//! Restores selected tables into a database that is in use.

mod definitions;
mod live;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use backup_core::{
    ArtifactMeta, ArtifactReader, Error, ErrorKind, Item, Proofs, Restore, RestorePlan, RestoreReport,
    Result, Undo,
};
use chrono::Utc;
use futures::TryStreamExt as _;
use serde_json::{Map, Value, json};

use self::definitions::Definitions;
use self::live::{Live, RowsUndo};
use super::archive::{Loader, read_head};
use super::database::{prepare, recorded, the_one};
use super::prove::{Expected, prove};
use super::traffic::Traffic;
use super::{RestoreOptions, Warnings};
use crate::config::PgConfig;
use crate::error::quotable;
use crate::ident::{Qualified, quote};
use crate::logical::archive::Head;
use crate::logical::collected::SequenceValue;
use crate::logical::options::{COPY, COPY_TAR, CUSTOM, PLAIN, SCHEMA, TOC};
use crate::logical::sql::{Splitter, SqlEvent, Statement};
use crate::session::Session;

/// What becomes of tables that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Beside,
    Replace,
    InsertMissing,
}

/// Tables on their way into a database in use, in a schema of their own until they are proved.
pub(crate) struct TablesRestore {
    config: PgConfig,
    mode: Mode,
    schema: String,
    loader: Loader,
    expected: Expected,
    prefix: String,
    source: String,
    details: BTreeMap<String, Map<String, Value>>,
    /// Where in SQL text the rows of the tables are.
    ranges: BTreeMap<Qualified, Range<u64>>,
    proofs: Proofs,
    definitions: tokio::sync::Mutex<Option<Definitions>>,
    /// The table of contents of a custom archive, where it is kept beside it.
    head: tokio::sync::Mutex<Option<Box<Head>>>,
    warnings: Warnings,
    items: u64,
    bytes: u64,
}

impl TablesRestore {
    pub(crate) async fn begin(
        config: &PgConfig,
        options: &RestoreOptions,
        plan: &RestorePlan,
    ) -> Result<Self> {
        if options.insert_missing && plan.replace {
            return Err(Error::invalid("begin restore", "`replace` and `insert_missing` exclude each other"));
        }
        let mode = match (plan.replace, options.insert_missing) {
            (true, _) => Mode::Replace,
            (_, true) => Mode::InsertMissing,
            _ => Mode::Beside,
        };
        let recorded = recorded(plan);
        let mut by_database: BTreeMap<String, Expected> = BTreeMap::new();
        let (mut items, mut bytes) = (0, 0);
        let mut ranges = BTreeMap::new();
        let mut stream = plan.items.stream();
        while let Some(item) = stream.try_next().await? {
            let database = item.attributes.get("database").and_then(Value::as_str).unwrap_or("").to_owned();
            let table = by_database.entry(database).or_default().add(&item)?;
            ranges.extend(table.map(|table| (table, item.offset..item.offset + item.length)));
            items += 1;
            bytes += item.size;
        }
        let source = the_one(&recorded, options, &by_database)?;
        let (prefix, mut expected) = match by_database.pop_first() {
            Some(only) if by_database.is_empty() => only,
            _ => {
                return Err(Error::invalid(
                    "begin restore",
                    "the selection names tables of no database, or of several; select tables of one",
                ));
            }
        };
        expected.tables_only();
        distinct(expected.tables.keys())?;
        if mode == Mode::Beside && !options.schema {
            return Err(Error::invalid(
                "begin restore",
                "rows alone go into tables that exist; ask for `replace` or `insert_missing`",
            ));
        }
        let schema = match &options.side_schema {
            Some(name) => name.clone(),
            None => format!("restored_{}", Utc::now().format("%Y%m%dt%H%M%S%fz")),
        };
        let warnings = Warnings::default();
        let loader = Loader {
            config: config.clone(),
            options: options.clone(),
            warnings: Arc::clone(&warnings),
            prepare: prepare(&recorded.get(&source).cloned().unwrap_or_default()),
            staging: "",
            traffic: Traffic::default(),
            only: Some(Arc::new(expected.tables.keys().cloned().collect())),
            schema: Some(schema.clone()),
        };
        let session = Session::canonical(config).await?;
        if mode != Mode::Beside {
            live::check(&session, mode == Mode::Replace, options.schema, &expected.tables).await?;
        }
        session.exec("create schema", &format!("CREATE SCHEMA {}", quote(&schema))).await?;
        Ok(Self {
            config: config.clone(),
            mode,
            schema,
            loader,
            expected,
            prefix,
            source,
            details: plan.artifacts.iter().map(|a| (a.meta.name.to_string(), a.details.clone())).collect(),
            ranges,
            proofs: plan.proofs.clone(),
            definitions: tokio::sync::Mutex::new(None),
            head: tokio::sync::Mutex::new(None),
            warnings,
            items,
            bytes,
        })
    }

    /// Creates the tables in the side schema, and remembers what else belongs to them.
    async fn define(&self, head: &[u8], details: &Map<String, Value>) -> Result<()> {
        let mut all = Vec::new();
        for section in ["pre-data", "data", "post-data"] {
            all.extend(self.loader.statements(head, section).await?);
        }
        self.create(&all, sequences(details)).await
    }

    async fn create(&self, statements: &[Statement], sequences: Vec<SequenceValue>) -> Result<()> {
        let names: BTreeSet<Qualified> = self.expected.tables.keys().cloned().collect();
        let definitions = Definitions::of(&names, statements, sequences, &self.schema, &self.loader.options)?;
        let session = self.loader.session().await?;
        for statement in &definitions.tables {
            session.exec("create table", statement).await?;
        }
        *self.definitions.lock().await = Some(definitions);
        Ok(())
    }

    /// Restores from SQL text: once through it for the definitions, then each table's rows by their range.
    async fn text(&self, reader: &ArtifactReader) -> Result<()> {
        let mut statements = Vec::new();
        let mut keep = |event: SqlEvent<'_>| {
            if let SqlEvent::Statement(statement) = event
                && !matches!(statement.entry.as_str(), "BLOB" | "BLOBS" | "BLOB METADATA" | "TABLE DATA")
            {
                statements.push(statement);
            }
            Ok(())
        };
        let mut splitter = Splitter::default();
        let mut stream = reader.stream().await?;
        while let Some(bytes) = stream.try_next().await? {
            splitter.push(&bytes, &mut keep)?;
        }
        splitter.finish(&mut keep)?;
        self.create(&statements, Vec::new()).await?;
        for (table, columns) in &self.expected.tables {
            if let Some(range) = self.ranges.get(table).filter(|range| !range.is_empty()) {
                self.loader.load(table, columns, reader.range(range.clone()).await?).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        let session = Session::canonical(&self.config).await?;
        remove_schema(&session, &self.schema, self.expected.tables.keys().map(|t| t.name.as_str())).await
    }
}

/// The states of sequences that a parallel backup keeps beside its schema.
fn sequences(details: &Map<String, Value>) -> Vec<SequenceValue> {
    let all = details.get("sequences").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|v| {
        let text = |i: usize| v.get(i).and_then(Value::as_str);
        let last_value = text(2).filter(|t| t.parse::<i64>().is_ok())?.to_owned();
        let is_called = v.get(3).and_then(Value::as_bool)?;
        Some(SequenceValue { name: Qualified::new(text(0)?, text(1)?), last_value, is_called })
    })
    .collect()
}

/// Removes a schema of our own and the tables in it, and nothing that may depend on them.
async fn remove_schema<'a>(
    session: &Session,
    schema: &str,
    tables: impl Iterator<Item = &'a str>,
) -> Result<()> {
    for table in tables {
        let sql = format!("DROP TABLE IF EXISTS {}", Qualified::new(schema, table).sql());
        session.exec("remove side schema", &sql).await?;
    }
    session.exec("remove side schema", &format!("DROP SCHEMA IF EXISTS {}", quote(schema))).await
}

fn distinct<'a>(tables: impl Iterator<Item = &'a Qualified>) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut any = false;
    for table in tables {
        any = true;
        if !seen.insert(&table.name) {
            return Err(Error::invalid(
                "begin restore",
                "two selected tables have the same name in different schemas; restore them one after the other",
            )
            .with("table", &table.name));
        }
    }
    if any {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::NotFound, "begin restore").message("the selection has no table"))
    }
}

#[async_trait]
impl Restore for TablesRestore {
    fn wants(&self, meta: &ArtifactMeta) -> bool {
        let own =
            self.details.get(meta.name.as_ref()).and_then(|d| d.get("database")).and_then(Value::as_str);
        [TOC, CUSTOM, PLAIN, SCHEMA, COPY, COPY_TAR].contains(&meta.format)
            && (self.source.is_empty() || own.is_none_or(|own| own == self.source))
    }

    async fn needs(&self, item: &Item) -> Result<bool> {
        // A selected sequence comes with the table that owns it.
        Ok(item.kind == backup_core::ItemKind::Table)
    }

    fn max_open(&self) -> usize {
        self.loader.options.jobs
    }

    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let meta = reader.meta();
        let nothing = Map::new();
        let details = self.details.get(meta.name.as_ref()).unwrap_or(&nothing);
        if meta.format == COPY {
            return self.loader.rows(&reader, details).await;
        }
        if meta.format == PLAIN {
            return self.text(&reader).await;
        }
        if meta.format == COPY_TAR {
            return self.loader.small(&reader, details).await;
        }
        let known = self.head.lock().await.take();
        let (head, defined) = if let Some(head) = known {
            (head, true)
        } else {
            let mut stream = reader.stream().await?;
            let Some((head, _)) = read_head(&mut stream).await? else {
                return Err(Error::new(ErrorKind::Unsupported, "restore tables").message(
                    "this archive's version is not known to this build; restore the whole into another database",
                ));
            };
            (head, false)
        };
        if !defined {
            self.define(&head.without_data(), details).await?;
        }
        if meta.format == CUSTOM {
            self.loader.parts(&head, &reader).await?;
        } else if meta.format == TOC {
            *self.head.lock().await = Some(head);
        }
        Ok(())
    }

    async fn prove(&self) -> Result<Proofs> {
        let mut proofs =
            prove(&self.loader, &self.expected, &self.prefix, |table| self.loader.place(table)).await?;
        if let Some(definitions) = &*self.definitions.lock().await {
            let session = self.loader.session().await?;
            for statement in &definitions.indexes {
                session.exec("build index", statement).await?;
            }
        }
        // Sequences and large objects that a pattern happened to match are not restored with tables.
        for (name, proof) in &self.proofs {
            if !proofs.contains_key(name) {
                proofs.insert(name.clone(), *proof);
            }
        }
        Ok(proofs)
    }

    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let definitions = self
            .definitions
            .lock()
            .await
            .take()
            .ok_or_else(|| Error::corrupt("restore tables", "the backup has no definitions of tables"))?;
        let session = Session::canonical(&self.config).await?;
        let mut report = RestoreReport { items: self.items, bytes: self.bytes, ..RestoreReport::default() };
        let mut undo: Option<Box<dyn Undo>> = None;
        if self.mode == Mode::Beside {
            report.details.insert("schema".to_owned(), json!(self.schema));
        } else {
            let live = Live {
                session: &session,
                side: &self.schema,
                tables: &self.expected.tables,
                definitions: &definitions,
            };
            if self.mode == Mode::Replace {
                let old = format!("replaced_{}", Utc::now().format("%Y%m%dt%H%M%S%fz"));
                let kept = live.replace(&old).await?;
                report.old_kept_at = (!kept.is_empty()).then(|| old.clone());
                undo = Some(Box::new(RowsUndo { config: self.config.clone(), schema: old, kept }));
            } else {
                let inserted = live.insert_missing().await?;
                report.details.insert("inserted".to_owned(), json!(inserted));
            }
            self.remove().await?;
        }
        report.warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((report, undo))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.remove().await
    }
}

/// An error that quotes a statement of a definition that cannot be used.
fn unusable(statement: &str, why: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "restore tables").message(why).with("statement", quotable(statement))
}
