//! Restores whole databases: one into a name, or all of a backup into theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{
    ArtifactMeta, ArtifactReader, Error, ErrorKind, Proofs, Restore, RestorePlan, RestoreReport, Result,
    Undo, Warning,
};
use futures::TryStreamExt as _;
use serde_json::{Map, Value};

use super::archive::{Loader, read_head};
use super::gunzip::Gunzip;
use super::prove::{Expected, prove};
use super::stage::{DatabaseUndo, STAGING, Stage};
use super::traffic::Traffic;
use super::{RestoreOptions, Warnings, globals, warn};
use crate::config::PgConfig;
use crate::ident::{Qualified, literal};
use crate::logical::archive::{HeadReader, Progress};
use crate::logical::collected::item_name;
use crate::logical::dump::parallel::refreshed;
use crate::logical::options::{COPY, COPY_TAR, CUSTOM, EXTRA_SQL, GLOBALS, PLAIN, SCHEMA};
use crate::logical::sql::Splitter;
use crate::session::Session;

/// One database on its way back.
struct One {
    /// Its name in the backup; empty where the backup does not say.
    source: String,
    /// Whether names of items begin with it.
    prefix: String,
    stage: Stage,
    loader: Loader,
    expected: Expected,
    /// The schema of a parallel backup, whose last section follows the rows.
    schema: tokio::sync::Mutex<Option<Schema>>,
}

impl One {
    /// Runs the last section of a parallel backup and fills materialized views.
    async fn post_data(&self, schema: Option<Schema>) -> Result<()> {
        let Some(schema) = schema else { return Ok(()) };
        let mut script = self.loader.definer().await?;
        self.loader.section(&mut script, &schema.head, "post-data").await?;
        for view in schema.refresh.iter().filter(|_| self.loader.options.data) {
            let sql = format!("REFRESH MATERIALIZED VIEW {}", view.sql());
            script.session().exec("fill materialized view", &sql).await?;
        }
        Ok(())
    }
}

/// What is left to do after the rows of a parallel backup.
struct Schema {
    /// The archive without data.
    head: Vec<u8>,
    /// Materialized views to fill, in order.
    refresh: Vec<Qualified>,
}

/// Restores databases beside what is there, proves them, and swaps.
pub(crate) struct DatabasesRestore {
    config: PgConfig,
    options: RestoreOptions,
    warnings: Warnings,
    databases: Vec<One>,
    details: BTreeMap<String, Map<String, Value>>,
    proofs: Proofs,
    several: bool,
    parallel: bool,
    items: u64,
    bytes: u64,
}

/// Where a restore goes.
#[derive(Clone, Debug)]
pub(crate) enum Into {
    /// One database, under this name.
    Database(String),
    /// Every database under its own name, and the globals.
    Cluster,
    /// Tables, into the database connected to.
    Tables,
}

/// The definitions of the database that exists, as a custom archive without data.
async fn definitions_of(config: &PgConfig, options: &RestoreOptions, name: &str) -> Result<Schema> {
    let own = config.with_database(name);
    let session = Session::connect(&own).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "begin restore")
            .message("rows alone need a database that has the definitions, and this one does not exist")
            .with("database", name),
        _ => e,
    })?;
    let version = session.version().await?;
    let pg_dump = options.tools.find("pg_dump", version / 10_000).await?;
    let arguments =
        ["--format=custom", "--compress=0", "--schema-only", "--no-password"].map(ToOwned::to_owned);
    let mut running = pg_dump.start(&own, &arguments, false)?;
    let (mut bytes, mut reader, mut views) = (Vec::new(), HeadReader::default(), None);
    loop {
        let chunk = running.read().await?;
        if chunk.is_empty() {
            break;
        }
        bytes.extend_from_slice(&chunk);
        if views.is_none()
            && let Progress::Complete(head, _) = reader.push(&chunk)?
        {
            let named = head.entries.iter().filter(|e| e.desc == "MATERIALIZED VIEW");
            views = Some(named.map(|e| Qualified::new(&e.namespace, &e.tag)).collect::<Vec<_>>());
        }
    }
    running.finish().await?;
    Ok(Schema { head: bytes, refresh: refreshed(&session, &views.unwrap_or_default()).await? })
}

/// The databases of a backup by name, with what it records of them.
pub(super) fn recorded(plan: &RestorePlan) -> BTreeMap<String, Map<String, Value>> {
    let all = plan.details.get("databases").and_then(Value::as_object);
    all.into_iter().flatten().filter_map(|(name, d)| Some((name.clone(), d.as_object()?.clone()))).collect()
}

impl DatabasesRestore {
    pub(crate) async fn begin(
        config: &PgConfig,
        options: &RestoreOptions,
        into: &Into,
        plan: &RestorePlan,
    ) -> Result<Self> {
        let recorded = recorded(plan);
        let details: BTreeMap<String, Map<String, Value>> =
            plan.artifacts.iter().map(|a| (a.meta.name.to_string(), a.details.clone())).collect();
        let mut expected: BTreeMap<String, Expected> = BTreeMap::new();
        let (mut items, mut bytes) = (0, 0);
        let mut stream = plan.items.stream();
        while let Some(item) = stream.try_next().await? {
            let database = item.attributes.get("database").and_then(Value::as_str).unwrap_or("").to_owned();
            expected.entry(database).or_default().add(&item)?;
            items += 1;
            bytes += item.size;
        }
        let several =
            recorded.len() > 1 || details.contains_key("globals") || expected.keys().any(|k| !k.is_empty());
        let mut chosen: Vec<(String, String)> = match into {
            Into::Database(name) => {
                let source = the_one(&recorded, options, &expected)?;
                vec![(source, name.clone())]
            }
            Into::Cluster | Into::Tables => {
                recorded.keys().map(|name| (name.clone(), name.clone())).collect()
            }
        };
        if matches!(into, Into::Cluster) && !plan.selection.is_all() {
            chosen.retain(|(source, _)| expected.contains_key(source));
        }
        let warnings = Warnings::default();
        let mut databases = Vec::new();
        for (source, name) in chosen {
            let own = recorded.get(&source).cloned().unwrap_or_default();
            let prefix = if several { source.clone() } else { String::new() };
            let expected = expected.remove(&prefix).unwrap_or_default();
            let prepare = prepare(&own);
            let definitions =
                if options.schema { None } else { Some(definitions_of(config, options, &name).await?) };
            let stage = Stage::create(config, &name, own, plan.replace).await?;
            let only = (!plan.selection.is_all())
                .then(|| Arc::new(expected.tables.keys().cloned().collect::<BTreeSet<_>>()));
            let loader = Loader {
                config: stage.config(),
                options: options.clone(),
                warnings: Arc::clone(&warnings),
                prepare,
                staging: STAGING,
                traffic: Traffic::default(),
                only,
                schema: None,
            };
            if let Some(schema) = &definitions {
                loader.section(&mut loader.definer().await?, &schema.head, "pre-data").await?;
            }
            databases.push(One {
                source,
                prefix,
                stage,
                loader,
                expected,
                schema: tokio::sync::Mutex::new(definitions),
            });
        }
        let parallel = plan.artifacts.iter().any(|a| a.meta.format == COPY || a.meta.format == COPY_TAR);
        Ok(Self {
            config: config.clone(),
            options: options.clone(),
            warnings,
            databases,
            details,
            proofs: plan.proofs.clone(),
            several,
            parallel,
            items,
            bytes,
        })
    }

    /// The database an artifact belongs to, among those that are being restored.
    fn database_of(&self, name: &str) -> Option<&One> {
        let own = self.details.get(name).and_then(|d| d.get("database")).and_then(Value::as_str);
        match own {
            Some(own) if self.several => self.databases.iter().find(|d| d.source == own),
            _ => self.databases.first(),
        }
    }
}

/// The one database of a backup, or the one chosen of several.
pub(super) fn the_one(
    recorded: &BTreeMap<String, Map<String, Value>>,
    options: &RestoreOptions,
    expected: &BTreeMap<String, Expected>,
) -> Result<String> {
    if let Some(chosen) = &options.from_database {
        if recorded.contains_key(chosen) {
            return Ok(chosen.clone());
        }
        return Err(Error::new(ErrorKind::NotFound, "begin restore")
            .message("the backup has no such database")
            .with("database", chosen)
            .with("databases", recorded.keys().cloned().collect::<Vec<_>>().join(", ")));
    }
    let mut names = recorded.keys();
    match (names.next(), names.next()) {
        (None, _) => Ok(String::new()),
        (Some(only), None) => Ok(only.clone()),
        _ if expected.len() == 1 => Ok(expected.keys().next().cloned().unwrap_or_default()),
        _ => Err(Error::invalid(
            "begin restore",
            "the backup has several databases; choose one with `from_database`, or restore all with `PgRestore::cluster`",
        )
        .with("databases", recorded.keys().cloned().collect::<Vec<_>>().join(", "))),
    }
}

/// Statements for sessions that load or prove rows: what the dump's own sessions found set.
pub(super) fn prepare(details: &Map<String, Value>) -> String {
    let mut all = Vec::new();
    for name in ["bytea_output", "lc_monetary"] {
        if let Some(value) = details.get(name).and_then(Value::as_str) {
            all.push(format!("SET {name} = {}", literal(value)));
        }
    }
    if details.get("encoding").and_then(Value::as_str) == Some("SQL_ASCII") {
        all.push("SET client_encoding = 'SQL_ASCII'".to_owned());
    }
    all.join("; ")
}

#[async_trait]
impl Restore for DatabasesRestore {
    fn wants(&self, meta: &ArtifactMeta) -> bool {
        if meta.format == GLOBALS {
            return self.databases.len() > 1 || self.options.from_database.is_none();
        }
        let rows = meta.format == COPY || meta.format == COPY_TAR || meta.format == EXTRA_SQL;
        let known = rows || [CUSTOM, PLAIN, SCHEMA].contains(&meta.format);
        known && self.database_of(&meta.name).is_some() && (self.options.data || !rows)
    }

    fn max_open(&self) -> usize {
        if self.parallel { self.options.jobs } else { 1 }
    }

    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let meta = reader.meta();
        if meta.format == GLOBALS {
            let session = Session::canonical(&self.config).await?;
            return globals::restore(&session, &reader, &self.warnings).await;
        }
        let nothing = Map::new();
        let details = self.details.get(meta.name.as_ref()).unwrap_or(&nothing);
        let one = self.database_of(&meta.name).ok_or_else(|| {
            Error::corrupt("restore database", "an artifact belongs to no database of the backup")
                .with("artifact", &meta.name)
        })?;
        let loader = &one.loader;
        match &meta.format {
            f if *f == CUSTOM => loader.archive(&reader).await,
            f if *f == PLAIN => plain(loader, &reader).await,
            f if *f == SCHEMA => {
                let mut stream = reader.stream().await?;
                let Some((head, _)) = read_head(&mut stream).await? else {
                    return Err(Error::new(ErrorKind::Unsupported, "restore schema")
                        .message("this archive's version is not known to this build; follow RESTORE.txt"));
                };
                if !self.options.schema {
                    return Ok(());
                }
                let bare = head.without_data();
                loader.section(&mut loader.script().await?, &bare, "pre-data").await?;
                let refresh = details.get("refresh").and_then(Value::as_array).into_iter().flatten();
                let name = |v: &Value| {
                    let text = |name: &str| v.get(name).and_then(Value::as_str);
                    Some(Qualified::new(text("schema")?, text("name")?))
                };
                let refresh = refresh.filter_map(name).collect();
                *one.schema.lock().await = Some(Schema { head: bare, refresh });
                Ok(())
            }
            f if *f == COPY => loader.rows(&reader, details).await,
            f if *f == COPY_TAR => loader.small(&reader, details).await,
            f if *f == EXTRA_SQL && loader.only.is_none() => loader.sql(&reader).await,
            _ => Ok(()),
        }
    }

    async fn prove(&self) -> Result<Proofs> {
        let mut proofs = Proofs::new();
        for one in &self.databases {
            let schema = one.schema.lock().await.take();
            let refresh = schema.as_ref().is_some_and(|s| self.options.data && !s.refresh.is_empty());
            if self.options.data && !refresh {
                // Indexes and constraints change no row, so rows are read back while they are built.
                let proving = prove(&one.loader, &one.expected, &one.prefix, Clone::clone);
                let ((), proved) = tokio::try_join!(one.post_data(schema), proving)?;
                proofs.extend(proved);
            } else if self.options.data {
                // A view's query may call what changes rows: prove after it.
                one.post_data(schema).await?;
                proofs.extend(prove(&one.loader, &one.expected, &one.prefix, Clone::clone).await?);
            } else {
                one.post_data(schema).await?;
                // Rows were not asked for, so there are none to prove; the caller is told.
                let own = |name: &String| name.starts_with(&item_name(&one.prefix, ""));
                proofs.extend(self.proofs.iter().filter(|(name, _)| own(name)).map(|(n, p)| (n.clone(), *p)));
                warn(
                    &self.warnings,
                    Warning::new(
                        "rows-not-restored",
                        "only definitions were restored, as asked; no rows were proved",
                    ),
                );
            }
        }
        // What another database of the backup proves is not this restore's matter.
        for (name, proof) in &self.proofs {
            let ours = self.databases.iter().any(|d| name.starts_with(&item_name(&d.prefix, "")));
            if self.several && !ours {
                proofs.insert(name.clone(), *proof);
            }
        }
        Ok(proofs)
    }

    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let Self { options, warnings, databases, items, bytes, .. } = *self;
        let mut undos = Vec::new();
        for one in databases {
            let One { stage, loader, .. } = one;
            drop(loader);
            match stage.commit(options.disconnect_others, &warnings).await {
                Ok(undo) => undos.extend(undo),
                Err(error) => {
                    // Databases cannot be swapped together: those that were go back.
                    for undo in undos {
                        Box::new(undo).undo().await?;
                    }
                    return Err(error);
                }
            }
        }
        let old: Vec<String> = undos.iter().map(|u: &DatabaseUndo| u.old.clone()).collect();
        let report = RestoreReport {
            items,
            bytes,
            old_kept_at: (!old.is_empty()).then(|| old.join(", ")),
            warnings: std::mem::take(
                &mut *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            ),
            details: Map::new(),
        };
        let undo: Option<Box<dyn Undo>> = if undos.is_empty() { None } else { Some(Box::new(Undos(undos))) };
        Ok((report, undo))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        let mut result = Ok(());
        for one in self.databases {
            let removed = one.stage.abort().await;
            result = result.and(removed);
        }
        result
    }
}

/// Replays SQL text.
async fn plain(loader: &Loader, reader: &ArtifactReader) -> Result<()> {
    let mut script = loader.script().await?;
    let mut splitter = Splitter::default();
    let mut gunzip = Gunzip::default();
    let mut stream = reader.stream().await?;
    while let Some(bytes) = stream.try_next().await? {
        for text in gunzip.push(&bytes) {
            script.feed(&mut splitter, &text?).await?;
        }
    }
    script.feed(&mut splitter, &gunzip.finish()?).await?;
    script.finish(splitter).await
}

/// Several databases that go back together.
#[derive(Debug)]
struct Undos(Vec<DatabaseUndo>);

#[async_trait]
impl Undo for Undos {
    async fn undo(self: Box<Self>) -> Result<()> {
        let mut result = Ok(());
        for undo in self.0 {
            let done = Box::new(undo).undo().await;
            result = result.and(done);
        }
        result
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        let mut result = Ok(());
        for undo in self.0 {
            let done = Box::new(undo).drop_old().await;
            result = result.and(done);
        }
        result
    }
}
