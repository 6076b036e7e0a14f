//! A backup in progress: [`PgSnapshot`].

mod globals;
pub(crate) mod parallel;
mod recipe;
mod stream;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use backup_core::{
    Artifact, ArtifactMeta, CancellationToken, Error, ErrorKind, Outcome, Result, Selection, Snapshot,
    SourceReport, Warning,
};
use serde_json::{Map, Value, json};

use super::collected::{Collected, item_name};
use super::flow::{at_hand, counted};
use super::inspect::{Exported, database_details};
use super::options::{CUSTOM, DumpOptions, GLOBALS, PLAIN, Scope, TOC};
use super::tools::Tool;
use crate::config::PgConfig;
use crate::ident::Qualified;
use crate::session::Session;
use crate::source::DumpFormat;

/// One database of the backup.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) config: PgConfig,
    pub(crate) exported: Exported,
    pub(crate) details: Map<String, Value>,
    /// Its name, where items must be told apart by database; empty otherwise.
    pub(crate) prefix: String,
    /// What follows the names of its artifacts: empty, or `-0002`.
    pub(crate) suffix: String,
    pub(crate) options: DumpOptions,
}

impl Database {
    pub(crate) fn artifact_name(&self, base: &str) -> String {
        format!("{base}{}", self.suffix)
    }

    /// Details of an artifact that say which database it belongs to.
    pub(crate) fn artifact_details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        details.insert("database".to_owned(), json!(self.config.database()));
        details
    }

    /// The encoding rows are written in. Bytes of `SQL_ASCII` have no known meaning and cannot be converted.
    pub(crate) fn encoding(&self) -> &'static str {
        if self.details.get("encoding").and_then(Value::as_str) == Some("SQL_ASCII") {
            "SQL_ASCII"
        } else {
            "UTF8"
        }
    }
}

/// What comes next.
enum Planned {
    Globals,
    Dump(Arc<Database>),
    /// The table of contents of the dump before, made when that was read.
    Toc(Arc<Database>),
    Parallel(Arc<Database>, parallel::Part),
}

/// A backup at one point in time per database.
pub(crate) struct PgSnapshot {
    config: PgConfig,
    options: DumpOptions,
    pg_dump: Tool,
    databases: Vec<Arc<Database>>,
    planned: VecDeque<Planned>,
    given: usize,
    /// Artifacts that were read to their end.
    drained: Arc<AtomicUsize>,
    collected: Collected,
    tocs: stream::Tocs,
    cancelled: CancellationToken,
}

impl PgSnapshot {
    pub(crate) async fn begin(
        config: &PgConfig,
        options: &DumpOptions,
        selection: Selection,
        cancelled: CancellationToken,
    ) -> Result<Self> {
        let first = Session::connect(config).await?;
        let version = first.version().await?;
        let pg_dump = options.tools.find("pg_dump", version / 10_000).await?;
        let names = database_names(&first, config, &options.scope).await?;
        drop(first);
        let several = options.scope != Scope::Connected;
        let mut databases = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let config = config.with_database(name);
            let exported = Exported::begin(&config).await?;
            let mut details = database_details(&exported.session).await?;
            if options.format == DumpFormat::Parallel {
                details.insert("bytea_output".to_owned(), json!("hex"));
            }
            let prefix = if several { name.clone() } else { String::new() };
            let mut options = options.clone();
            if !selection.is_all() && !select(&exported.session, &selection, &prefix, &mut options).await? {
                continue;
            }
            let suffix = if several { format!("-{:04}", number + 1) } else { String::new() };
            databases.push(Arc::new(Database { config, exported, details, prefix, suffix, options }));
        }
        if databases.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "begin backup")
                .message("no table matches the selection; names are written `schema.table`"));
        }
        let collected = Collected::default();
        let mut planned = VecDeque::new();
        if options.scope == Scope::Cluster {
            planned.push_back(Planned::Globals);
        }
        for database in &databases {
            if options.format == DumpFormat::Parallel {
                let parts = parallel::plan(database, &pg_dump, &collected).await?;
                planned.extend(parts.into_iter().map(|part| Planned::Parallel(Arc::clone(database), part)));
            } else {
                planned.push_back(Planned::Dump(Arc::clone(database)));
                if options.format == DumpFormat::Custom {
                    planned.push_back(Planned::Toc(Arc::clone(database)));
                }
            }
        }
        Ok(Self {
            config: config.clone(),
            options: options.clone(),
            pg_dump,
            databases,
            planned,
            given: 0,
            drained: Arc::default(),
            collected,
            tocs: Arc::default(),
            cancelled,
        })
    }

    fn report(&self) -> SourceReport {
        let mut report = std::mem::take(&mut self.collected.lock().report);
        let format = match self.options.format {
            DumpFormat::Custom => "custom",
            DumpFormat::Plain => "plain",
            DumpFormat::Parallel => "parallel",
        };
        report.details.insert("format".to_owned(), json!(format));
        report.details.insert("pg_dump".to_owned(), json!(self.pg_dump.version));
        let mut all = Map::new();
        for database in &self.databases {
            let mut details = database.details.clone();
            details.insert("lsn".to_owned(), json!(database.exported.lsn));
            let name = details.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
            all.insert(name, details.into());
            report.server_version = Some(version_text(database.exported.version));
        }
        report.details.insert("databases".to_owned(), all.into());
        if self.databases.len() > 1 {
            report.warnings.push(Warning::new(
                "databases-at-different-moments",
                "each database is consistent in itself, but they were read one after the other: PostgreSQL has no \
                 snapshot across databases",
            ));
        }
        report.recipe = recipe::recipe(&self.databases, &self.options, &report.artifacts);
        report
    }
}

#[async_trait]
impl Snapshot for PgSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        loop {
            let Some(planned) = self.planned.pop_front() else { return Ok(None) };
            let artifact = match planned {
                Planned::Globals => Artifact {
                    meta: ArtifactMeta::new("globals", GLOBALS),
                    data: globals::stream(
                        &self.config,
                        &self.options,
                        &self.pg_dump,
                        &self.collected,
                        self.cancelled.clone(),
                    ),
                },
                Planned::Dump(database) => {
                    let format = if self.options.format == DumpFormat::Plain { PLAIN } else { CUSTOM };
                    let name = database.artifact_name("database");
                    let mut meta = ArtifactMeta::new(name.clone(), format);
                    meta.phase = 1;
                    meta.size_hint = database.details.get("size").and_then(Value::as_u64);
                    let data = stream::dump(
                        database,
                        self.pg_dump.clone(),
                        name,
                        self.collected.clone(),
                        Arc::clone(&self.tocs),
                        self.cancelled.clone(),
                    );
                    Artifact { meta, data }
                }
                Planned::Toc(database) => {
                    let dump = database.artifact_name("database");
                    let mut tocs = self.tocs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let Some(at) = tocs.iter().position(|(name, _)| *name == dump) else { continue };
                    let (_, bytes) = tocs.swap_remove(at);
                    drop(tocs);
                    let name = database.artifact_name("database-toc");
                    let mut details = database.artifact_details();
                    details.insert("of".to_owned(), json!(dump));
                    // Before the dump when restoring: it tells where in the dump to read.
                    let meta = ArtifactMeta::new(name.clone(), TOC).phase(0).size_hint(bytes.len() as u64);
                    let collected = self.collected.clone();
                    let data = at_hand(bytes.into(), move || {
                        collected.lock().done(&name, details);
                        Ok(())
                    });
                    Artifact { meta, data }
                }
                Planned::Parallel(database, part) => {
                    part.artifact(database, self.collected.clone(), self.cancelled.clone())
                }
            };
            self.given += 1;
            let Artifact { meta, data } = artifact;
            return Ok(Some(Artifact { meta, data: counted(data, Arc::clone(&self.drained)) }));
        }
    }

    fn max_open(&self) -> usize {
        if self.options.format == DumpFormat::Parallel { self.options.jobs } else { 1 }
    }

    fn estimate(&self) -> Option<u64> {
        self.databases.iter().map(|d| d.details.get("size").and_then(Value::as_u64)).sum()
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let drained = self.drained.load(Ordering::SeqCst);
        if !self.planned.is_empty() || drained < self.given {
            return Err(Error::new(ErrorKind::SourceFailed, "finish snapshot")
                .message("not every artifact of the dump was asked for and read to its end")
                .with("left", self.planned.len() + self.given - drained));
        }
        // The snapshots must have been held to the end: a broken connection would have let one go.
        for database in &self.databases {
            database.exported.session.exec("finish snapshot", "SELECT 1").await.map_err(|e| {
                Error::new(ErrorKind::SourceFailed, "finish snapshot")
                    .message("the connection that held the snapshot broke during the backup")
                    .caused_by(e)
            })?;
        }
        Ok(self.report())
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        for database in &self.databases {
            // Nothing to save: a transaction that cannot be ended is ended by closing its connection.
            let _ = database.exported.session.try_exec("ROLLBACK").await;
        }
        Ok(())
    }
}

/// 15.18 for 150018.
pub(crate) fn version_text(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

async fn database_names(session: &Session, config: &PgConfig, scope: &Scope) -> Result<Vec<String>> {
    match scope {
        Scope::Connected => Ok(vec![config.database().to_owned()]),
        Scope::Databases(names) => Ok(names.clone()),
        Scope::Cluster => {
            let rows = session
                .rows(
                    "list databases",
                    "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1",
                )
                .await?;
            Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
        }
    }
}

/// Narrows the options to the tables a selection names. Returns whether there are any.
async fn select(
    session: &Session,
    selection: &Selection,
    prefix: &str,
    options: &mut DumpOptions,
) -> Result<bool> {
    if !prefix.is_empty() && selection.matches(&prefix.into()) {
        return Ok(true);
    }
    let rows = session
        .rows(
            "list tables",
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname <> 'information_schema' \
             AND n.nspname !~ '^pg_'",
        )
        .await?;
    let names = rows.into_iter().filter_map(|row| {
        let mut row = row.into_iter().flatten();
        Some(Qualified::new(row.next()?, row.next()?))
    });
    let chosen: Vec<String> = names
        .filter(|name| selection.matches(&item_name(prefix, &name.display()).as_str().into()))
        .map(|name| name.pattern())
        .collect();
    let any = !chosen.is_empty();
    options.include_tables = chosen;
    Ok(any)
}
