//! Changes tables that are in use: one transaction, no CASCADE, every foreign key checked again.

use std::collections::BTreeMap;

use backup_core::{Error, ErrorKind, Result, Undo, async_trait};

use super::definitions::Definitions;
use super::remove_schema;
use crate::config::PgConfig;
use crate::ident::{Qualified, column_list, literal, quote};
use crate::session::Session;

/// Tables in use and the restored ones beside them.
pub(super) struct Live<'a> {
    pub(super) session: &'a Session,
    /// The schema of the restored tables.
    pub(super) side: &'a str,
    /// The tables with their columns.
    pub(super) tables: &'a BTreeMap<Qualified, Vec<String>>,
    pub(super) definitions: &'a Definitions,
}

/// A foreign key of another table that refers to one of ours.
struct Reference {
    table: String,
    name: String,
    definition: String,
}

async fn exists(session: &Session, table: &Qualified) -> Result<bool> {
    let sql = format!("SELECT pg_catalog.to_regclass({}) IS NOT NULL", literal(&table.sql()));
    Ok(session.value("look for table", &sql).await?.as_deref() == Some("t"))
}

/// Looks whether the tables can take the rows, before anything is restored.
pub(super) async fn check(
    session: &Session,
    replace: bool,
    create: bool,
    tables: &BTreeMap<Qualified, Vec<String>>,
) -> Result<()> {
    for (table, columns) in tables {
        if !exists(session, table).await? {
            if replace && create {
                continue;
            }
            return Err(Error::new(ErrorKind::NotFound, "begin restore")
                .message(
                    "rows alone are to be restored into a table that does not exist; `replace` creates it, unless with \
                     `data_only`",
                )
                .with("table", table.display()));
        }
        let here = session
            .rows(
                "look at columns",
                &format!(
                    "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = {}::pg_catalog.regclass \
                     AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
                    literal(&table.sql())
                ),
            )
            .await?;
        let here: Vec<String> = here.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        let differing: Vec<&String> = columns
            .iter()
            .filter(|c| !here.contains(c))
            .chain(here.iter().filter(|c| !columns.contains(c)))
            .collect();
        if !differing.is_empty() {
            return Err(Error::new(ErrorKind::TargetFailed, "begin restore")
                .message("the table has other columns than in the backup; restore it into a side schema and move the rows yourself")
                .with("table", table.display())
                .with("columns", differing.into_iter().cloned().collect::<Vec<_>>().join(", ")));
        }
        if replace {
            refuse_partition_references(session, table).await?;
        } else {
            let unique = session
                .value(
                    "look for key",
                    &format!(
                        "SELECT 1 FROM pg_catalog.pg_index WHERE indrelid = {}::pg_catalog.regclass \
                         AND indisunique AND indpred IS NULL LIMIT 1",
                        literal(&table.sql())
                    ),
                )
                .await?;
            if unique.is_none() {
                return Err(Error::new(ErrorKind::Unsupported, "begin restore")
                    .message("the table has no key, so it cannot be said which rows are missing; restore it into a side schema")
                    .with("table", table.display()));
            }
        }
    }
    Ok(())
}

/// A key that refers to a partitioned parent cannot be taken off one partition.
async fn refuse_partition_references(session: &Session, table: &Qualified) -> Result<()> {
    let sql = format!(
        "SELECT pg_catalog.format('%s (%s)', conrelid::pg_catalog.regclass, conname) FROM pg_catalog.pg_constraint \
         WHERE contype = 'f' AND confrelid = {}::pg_catalog.regclass AND conparentid <> 0",
        literal(&table.sql())
    );
    let rows = session.rows("look at foreign keys", &sql).await?;
    let names: Vec<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "begin restore")
        .message("foreign keys refer to the partitioned table this one is a part of, so its rows cannot be exchanged alone; restore it into a side schema")
        .with("table", table.display())
        .with("dependants", names.join(", ")))
}

impl Live<'_> {
    /// Exchanges the rows of every table. Returns the tables whose old rows are kept in schema `old`.
    pub(super) async fn replace(&self, old: &str) -> Result<Vec<(Qualified, Vec<String>)>> {
        self.session.exec("replace tables", "BEGIN").await?;
        let result = self.replace_inside(old).await;
        self.end(result).await
    }

    /// Adds the rows whose key is absent. Returns how many by table.
    pub(super) async fn insert_missing(&self) -> Result<BTreeMap<String, u64>> {
        self.session.exec("insert rows", "BEGIN").await?;
        let result = self.insert_inside().await;
        self.end(result).await
    }

    async fn end<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => {
                self.session.exec("commit restored tables", "COMMIT").await?;
                Ok(value)
            }
            Err(error) => {
                // If even this fails the connection is gone, and the server rolls back by itself.
                let _ = self.session.try_exec("ROLLBACK").await;
                Err(error)
            }
        }
    }

    async fn replace_inside(&self, old: &str) -> Result<Vec<(Qualified, Vec<String>)>> {
        let session = self.session;
        let mut present = Vec::new();
        let mut absent = Vec::new();
        for (table, columns) in self.tables {
            if exists(session, table).await? {
                session
                    .exec("lock table", &format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", table.sql()))
                    .await?;
                present.push((table.clone(), columns.clone()));
            } else {
                absent.push(table.clone());
            }
        }
        let references = references(session, &present).await?;
        drop_references(session, &references).await?;
        if !present.is_empty() {
            session.exec("keep old rows", &format!("CREATE SCHEMA {}", quote(old))).await?;
        }
        for (table, columns) in &present {
            let kept = Qualified::new(old, &table.name);
            session
                .exec(
                    "keep old rows",
                    &format!("CREATE TABLE {} AS SELECT * FROM ONLY {}", kept.sql(), table.sql()),
                )
                .await?;
            exchange(session, table, columns, &Qualified::new(self.side, &table.name)).await?;
        }
        for table in &absent {
            self.create(table).await?;
        }
        self.set_sequences(&absent).await?;
        add_references(session, &references).await?;
        Ok(present)
    }

    /// Moves a restored table to the place of one that does not exist.
    async fn create(&self, table: &Qualified) -> Result<()> {
        let side = Qualified::new(self.side, &table.name);
        let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", quote(&table.schema));
        self.session.exec("create table", &schema).await?;
        let sql = format!("ALTER TABLE {} SET SCHEMA {}", side.sql(), quote(&table.schema));
        self.session.exec("create table", &sql).await?;
        for (_, statement) in self.definitions.finish.iter().filter(|(name, _)| name == table) {
            self.session.exec("create table", statement).await?;
        }
        Ok(())
    }

    /// Lets the sequences of the tables continue behind both what is here and what was restored.
    async fn set_sequences(&self, absent: &[Qualified]) -> Result<()> {
        for (side, value, called) in &self.definitions.sequences {
            // Those of created tables moved with them; those of others stayed where they were.
            for schema in self.tables.keys().map(|t| &t.schema) {
                let here = Qualified::new(schema, &side.name);
                if !exists(self.session, &here).await? {
                    continue;
                }
                let name = literal(&here.sql());
                let sql = if absent.is_empty() {
                    format!(
                        "SELECT pg_catalog.setval({name}, {value}, {called}) FROM {} s \
                         JOIN pg_catalog.pg_sequence q ON q.seqrelid = {name}::pg_catalog.regclass \
                         WHERE CASE WHEN q.seqincrement > 0 THEN s.last_value < {value} ELSE s.last_value > {value} END",
                        here.sql()
                    )
                } else {
                    format!("SELECT pg_catalog.setval({name}, {value}, {called})")
                };
                self.session.rows("set sequence", &sql).await?;
            }
        }
        Ok(())
    }

    async fn insert_inside(&self) -> Result<BTreeMap<String, u64>> {
        let mut inserted = BTreeMap::new();
        for (table, columns) in self.tables {
            let list = column_list(columns);
            let sql = format!(
                "WITH added AS (INSERT INTO {} ({list}) OVERRIDING SYSTEM VALUE SELECT {list} FROM {} \
                 ON CONFLICT DO NOTHING RETURNING 1) SELECT pg_catalog.count(*) FROM added",
                table.sql(),
                Qualified::new(self.side, &table.name).sql()
            );
            let count = self.session.value("insert rows", &sql).await?;
            inserted.insert(table.display(), count.and_then(|c| c.parse().ok()).unwrap_or(0));
        }
        self.set_sequences(&[]).await?;
        Ok(inserted)
    }
}

/// Empties a table and fills it from another, with its own triggers off.
async fn exchange(session: &Session, table: &Qualified, columns: &[String], from: &Qualified) -> Result<()> {
    let name = table.sql();
    let triggers = session
        .rows(
            "look at triggers",
            &format!(
                "SELECT tgname, tgenabled FROM pg_catalog.pg_trigger WHERE tgrelid = {}::pg_catalog.regclass \
                 AND NOT tgisinternal AND tgenabled <> 'D'",
                literal(&name)
            ),
        )
        .await?;
    session.exec("exchange rows", &format!("ALTER TABLE ONLY {name} DISABLE TRIGGER USER")).await?;
    session.exec("exchange rows", &format!("TRUNCATE ONLY {name}")).await?;
    let list = column_list(columns);
    let insert = if list.is_empty() {
        format!("INSERT INTO {name} SELECT FROM ONLY {}", from.sql())
    } else {
        format!("INSERT INTO {name} ({list}) OVERRIDING SYSTEM VALUE SELECT {list} FROM ONLY {}", from.sql())
    };
    session.exec("exchange rows", &insert).await?;
    for row in triggers {
        let [Some(trigger), Some(state)] = row.as_slice() else { continue };
        let how = match state.as_str() {
            "A" => "ENABLE ALWAYS",
            "R" => "ENABLE REPLICA",
            _ => "ENABLE",
        };
        let sql = format!("ALTER TABLE ONLY {name} {how} TRIGGER {}", quote(trigger));
        session.exec("exchange rows", &sql).await?;
    }
    Ok(())
}

/// Foreign keys that refer to the tables, from anywhere.
async fn references(session: &Session, tables: &[(Qualified, Vec<String>)]) -> Result<Vec<Reference>> {
    let mut all = Vec::new();
    for (table, _) in tables {
        refuse_partition_references(session, table).await?;
        let sql = format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), k.conname, pg_catalog.pg_get_constraintdef(k.oid) \
             FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE k.contype = 'f' AND k.confrelid = {}::pg_catalog.regclass ORDER BY k.oid",
            literal(&table.sql())
        );
        for row in session.rows("look at foreign keys", &sql).await? {
            if let [Some(table), Some(name), Some(definition)] = row.as_slice() {
                all.push(Reference {
                    table: table.clone(),
                    name: name.clone(),
                    definition: definition.clone(),
                });
            }
        }
    }
    Ok(all)
}

async fn drop_references(session: &Session, references: &[Reference]) -> Result<()> {
    for key in references {
        let sql = format!("ALTER TABLE {} DROP CONSTRAINT {}", key.table, quote(&key.name));
        session.exec("take off foreign key", &sql).await?;
    }
    Ok(())
}

/// Puts the keys on again, which checks every row of the tables that have them.
async fn add_references(session: &Session, references: &[Reference]) -> Result<()> {
    for key in references {
        let sql = format!("ALTER TABLE {} ADD CONSTRAINT {} {}", key.table, quote(&key.name), key.definition);
        session.exec("check foreign key", &sql).await.map_err(|e| {
            Error::new(ErrorKind::TargetFailed, "check foreign key")
                .message("rows of another table refer to rows the backup does not have; nothing was changed")
                .with("table", &key.table)
                .with("constraint", &key.name)
                .caused_by(e)
        })?;
    }
    Ok(())
}

/// The way back after rows were exchanged.
#[derive(Debug)]
pub(super) struct RowsUndo {
    pub(super) config: PgConfig,
    pub(super) schema: String,
    pub(super) kept: Vec<(Qualified, Vec<String>)>,
}

impl RowsUndo {
    async fn put_back(&self, session: &Session) -> Result<()> {
        let references = references(session, &self.kept).await?;
        drop_references(session, &references).await?;
        for (table, columns) in &self.kept {
            exchange(session, table, columns, &Qualified::new(&self.schema, &table.name)).await?;
        }
        add_references(session, &references).await
    }
}

#[async_trait]
impl Undo for RowsUndo {
    /// Puts the old rows back. Tables the restore created stay.
    async fn undo(self: Box<Self>) -> Result<()> {
        let session = Session::canonical(&self.config).await?;
        session.exec("undo restore", "BEGIN").await?;
        match self.put_back(&session).await {
            Ok(()) => session.exec("undo restore", "COMMIT").await?,
            Err(error) => {
                // As the server would do by itself when the connection goes.
                let _ = session.try_exec("ROLLBACK").await;
                return Err(error);
            }
        }
        self.drop_old().await
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        let session = Session::canonical(&self.config).await?;
        remove_schema(&session, &self.schema, self.kept.iter().map(|(t, _)| t.name.as_str())).await
    }
}
