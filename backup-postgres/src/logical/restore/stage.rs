//! A database beside the real one: made, put in place, taken back.

use std::fmt::Write as _;

use backup_core::{Error, ErrorKind, Result, Undo, Warning, async_trait};
use chrono::Utc;
use serde_json::{Map, Value};

use super::{Warnings, warn};
use crate::config::PgConfig;
use crate::ident::{derived, literal, quote, read};
use crate::logical::inspect::database_details;
use crate::session::Session;

/// Settings whose value is a list of names, which must not be quoted as one (`GUC_LIST_QUOTE` in PostgreSQL's
/// `src/backend/utils/misc/guc_tables.c`).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Settings of the sessions that fill a database which is still being restored. No commit of theirs waits for the disk: the
/// database counts when it has its name, and that commit waits, with everything the server wrote before it
/// ([`wait_for_the_disk`]).
pub(super) const STAGING: &str = "SET synchronous_commit = off";

/// The commits of this session are on the server's own disk when they are acknowledged, and with them all earlier ones, whatever the server,
/// database or role is set to.
async fn wait_for_the_disk(session: &Session) -> Result<()> {
    let sql = "SELECT pg_catalog.set_config('synchronous_commit', 'local', false) \
               WHERE pg_catalog.current_setting('synchronous_commit') = 'off'";
    session.rows("prepare session", sql).await?;
    Ok(())
}

/// A database that is being restored under another name.
#[derive(Debug)]
pub(super) struct Stage {
    /// A connection configuration for another database of the server, from which databases can be renamed.
    maintenance: PgConfig,
    /// The name it is to have.
    pub(super) name: String,
    /// The name it has while it is being restored.
    pub(super) temporary: String,
    /// What stands there, if anything.
    existing: Option<Existing>,
    /// What the backup records of the database.
    recorded: Map<String, Value>,
    finished: bool,
}

#[derive(Debug)]
struct Existing {
    empty: bool,
}

/// Connects to some database of the server that is not `name`.
pub(super) async fn maintenance(config: &PgConfig, name: &str) -> Result<(PgConfig, Session)> {
    let mut candidates = vec![config.database().to_owned(), "postgres".to_owned(), "template1".to_owned()];
    candidates.retain(|c| c != name);
    let mut last = None;
    for candidate in candidates {
        let config = config.with_database(&candidate);
        match Session::canonical(&config).await {
            Ok(session) => return Ok((config, session)),
            Err(error) if error.kind() == ErrorKind::NotFound => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "connect to PostgreSQL")))
}

/// Objects users made, in a database: anything in a schema that is not the system's, or such a schema.
const IS_EMPTY: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class c \
       JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
       WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')) \
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
       WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')) \
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n \
       WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')) \
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)";

async fn is_empty(config: &PgConfig) -> Result<bool> {
    let session = Session::canonical(config).await?;
    Ok(session.value("look into database", IS_EMPTY).await?.as_deref() == Some("t"))
}

impl Stage {
    /// Makes the database beside `name`, after looking whether it may take its place.
    pub(super) async fn create(
        config: &PgConfig,
        name: &str,
        recorded: Map<String, Value>,
        replace: bool,
    ) -> Result<Self> {
        let (maintenance, session) = maintenance(config, name).await?;
        let may = session
            .value(
                "check privileges",
                "SELECT rolcreatedb OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user",
            )
            .await?;
        if may.as_deref() != Some("t") {
            return Err(Error::new(ErrorKind::PermissionDenied, "begin restore").message(
                "a restore is made in a database of its own before it takes its place, and the role may not create \
                 databases; grant it CREATEDB",
            ));
        }
        let exists = session
            .value(
                "look for database",
                &format!("SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}", literal(name)),
            )
            .await?;
        let mut like = recorded.clone();
        let existing = if exists.is_some() {
            let own = config.with_database(name);
            let empty = is_empty(&own).await?;
            if !empty && !replace {
                return Err(Error::new(ErrorKind::TargetNotEmpty, "begin restore")
                    .message("the database exists and is not empty; restore under another name, or ask for `replace`")
                    .with("database", name));
            }
            like = database_details(&Session::canonical(&own).await?).await?;
            Some(Existing { empty })
        } else {
            None
        };
        let temporary = derived(name, &format!("_restoring_{}", random_hex()?));
        session.exec("create database", &create_statement(&temporary, &like)).await?;
        let stage =
            Self { maintenance, name: name.to_owned(), temporary, existing, recorded, finished: false };
        let comment = format!("being restored by backup-postgres since {}", Utc::now().format("%FT%TZ"));
        let sql = format!("COMMENT ON DATABASE {} IS {}", quote(&stage.temporary), literal(&comment));
        session.exec("create database", &sql).await?;
        Ok(stage)
    }

    /// How to connect to the database being restored.
    pub(super) fn config(&self) -> PgConfig {
        self.maintenance.with_database(&self.temporary)
    }

    /// Puts the database in place. `disconnect` ends the sessions that are in the way.
    pub(super) async fn commit(
        mut self,
        disconnect: bool,
        warnings: &Warnings,
    ) -> Result<Option<DatabaseUndo>> {
        let session = Session::canonical(&self.maintenance).await?;
        wait_for_the_disk(&session).await?;
        let details = match &self.existing {
            Some(_) => {
                database_details(&Session::canonical(&self.maintenance.with_database(&self.name)).await?)
                    .await?
            }
            None => std::mem::take(&mut self.recorded),
        };
        dress(&session, &self.temporary, &details, self.existing.is_some(), warnings).await?;
        let (from, to) = (quote(&self.temporary), quote(&self.name));
        let Some(existing) = &self.existing else {
            session.exec("name database", &format!("ALTER DATABASE {from} RENAME TO {to}")).await?;
            self.finished = true;
            return Ok(None);
        };
        let now = Utc::now().format("_old_%Y%m%dt%H%M%Sz").to_string();
        let old = derived(&self.name, &now);
        let was_empty = existing.empty;
        swap(&session, &self.name, &self.temporary, &old, disconnect).await?;
        self.finished = true;
        let undo =
            DatabaseUndo { maintenance: self.maintenance.clone(), name: self.name.clone(), old: old.clone() };
        if was_empty && is_empty(&self.maintenance.with_database(&old)).await.unwrap_or(false) {
            // Nothing was in it when we came, and nothing is in it now.
            session.exec("drop empty database", &format!("DROP DATABASE {}", quote(&old))).await?;
            return Ok(None);
        }
        Ok(Some(undo))
    }

    /// Removes the database being restored.
    pub(super) async fn abort(mut self) -> Result<()> {
        self.finished = true;
        remove(&self.maintenance, &self.temporary).await
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // A dropped restore is an aborted one; there is nobody left to hear of a failure.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (config, name) = (self.maintenance.clone(), self.temporary.clone());
            runtime.spawn(async move {
                let _ = remove(&config, &name).await;
            });
        }
    }
}

async fn remove(maintenance: &PgConfig, name: &str) -> Result<()> {
    let session = Session::canonical(maintenance).await?;
    session.exec("drop database", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(name))).await
}

fn random_hex() -> Result<String> {
    let mut bytes = [0_u8; 4];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).map_err(|_| {
        Error::new(ErrorKind::Io, "make random name").message("the system has no random numbers")
    })?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

/// `CREATE DATABASE` with the encoding and locale recorded in `details`.
fn create_statement(name: &str, details: &Map<String, Value>) -> String {
    let text = |key: &str| details.get(key).and_then(Value::as_str);
    let mut sql = format!("CREATE DATABASE {} TEMPLATE template0", quote(name));
    let mut add = |word: &str, value: Option<&str>| {
        if let Some(value) = value {
            let _ = write!(sql, " {word} {}", literal(value));
        }
    };
    add("ENCODING", text("encoding"));
    add("LC_COLLATE", text("collate"));
    add("LC_CTYPE", text("ctype"));
    match text("locale_provider") {
        Some("i") => {
            add("LOCALE_PROVIDER", Some("icu"));
            add("ICU_LOCALE", text("locale"));
            add("ICU_RULES", text("icu_rules"));
        }
        Some("b") => {
            add("LOCALE_PROVIDER", Some("builtin"));
            add("BUILTIN_LOCALE", text("locale"));
        }
        _ => {}
    }
    sql
}

/// Gives the restored database what belongs to a database rather than to what is in it: owner, privileges, settings,
/// limit, comment. Of one that is replaced all of it must come along; of a backup, what this server can take.
async fn dress(
    session: &Session,
    name: &str,
    details: &Map<String, Value>,
    strict: bool,
    warnings: &Warnings,
) -> Result<()> {
    let database = quote(name);
    let mut statements = Vec::new();
    if let Some(settings) = details.get("settings").and_then(Value::as_array) {
        for entry in settings {
            let Some((key, value)) =
                entry.get("setting").and_then(Value::as_str).and_then(|s| s.split_once('='))
            else {
                continue;
            };
            let key = key.split('.').map(quote).collect::<Vec<_>>().join(".");
            let value = setting_value(key.trim_matches('"'), value);
            statements.push(match entry.get("role").and_then(Value::as_str) {
                Some(role) => {
                    format!("ALTER ROLE {} IN DATABASE {database} SET {key} TO {value}", quote(role))
                }
                None => format!("ALTER DATABASE {database} SET {key} TO {value}"),
            });
        }
    }
    if let Some(acl) = details.get("acl").and_then(Value::as_array) {
        statements.push(format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"));
        for entry in acl {
            let (role, privilege, grantable) =
                (entry.get(0), entry.get(1).and_then(Value::as_str), entry.get(2));
            let Some(privilege) = privilege else { continue };
            let role = role.and_then(Value::as_str).map_or("PUBLIC".to_owned(), quote);
            let option = if grantable == Some(&Value::Bool(true)) { " WITH GRANT OPTION" } else { "" };
            statements.push(format!("GRANT {privilege} ON DATABASE {database} TO {role}{option}"));
        }
    }
    if let Some(limit) = details.get("connection_limit").and_then(Value::as_i64).filter(|l| *l != -1) {
        statements.push(format!("ALTER DATABASE {database} CONNECTION LIMIT {limit}"));
    }
    let comment = details.get("comment").and_then(Value::as_str).map_or("NULL".to_owned(), literal);
    statements.push(format!("COMMENT ON DATABASE {database} IS {comment}"));
    // Last: who is not a superuser can no longer change what belongs to another.
    if let Some(owner) = details.get("owner").and_then(Value::as_str) {
        statements.push(format!("ALTER DATABASE {database} OWNER TO {}", quote(owner)));
    }
    for statement in statements {
        match session.exec("set up database", &statement).await {
            Ok(()) => {}
            Err(error) if !strict => {
                warn(warnings, Warning::new("database-property", format!("{statement}: {}", error.chain())));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn setting_value(key: &str, value: &str) -> String {
    if !LISTS.contains(&key) {
        return literal(value);
    }
    let mut parts = Vec::new();
    let mut rest = value.trim();
    while let Some((name, after)) = read(rest) {
        parts.push(literal(&name));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    if rest.is_empty() && !parts.is_empty() { parts.join(", ") } else { literal(value) }
}

/// Lets two databases change places: `new` becomes `name`, and what was `name` becomes `old`.
async fn swap(session: &Session, name: &str, new: &str, old: &str, disconnect: bool) -> Result<()> {
    let in_the_way = wait_for_sessions(session, name, disconnect).await?;
    if !in_the_way.is_empty() && !disconnect {
        return Err(Error::new(ErrorKind::TargetFailed, "swap databases")
            .message(
                "other sessions use the database, so it cannot be renamed; stop them, or ask for `disconnect_others`, \
                 which bars new ones and ends these",
            )
            .with("database", name)
            .with("sessions", in_the_way.join("; ")));
    }
    let database = quote(name);
    if disconnect {
        // Committed first: a transaction could not keep new sessions out.
        session
            .exec("bar new sessions", &format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false"))
            .await?;
    }
    let renamed = rename_both(session, name, new, old, disconnect).await;
    if disconnect {
        let barred = if renamed.is_ok() { old } else { name };
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", quote(barred));
        let allowed = session.exec("allow sessions again", &sql).await;
        renamed.and(allowed)
    } else {
        renamed
    }
}

async fn rename_both(session: &Session, name: &str, new: &str, old: &str, disconnect: bool) -> Result<()> {
    if disconnect {
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
             WHERE datname = {} AND pid <> pg_catalog.pg_backend_pid()",
            literal(name)
        );
        session.rows("end sessions", &sql).await?;
        for _ in 0..100 {
            if sessions(session, name).await?.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let sql = format!(
        "BEGIN; ALTER DATABASE {name} RENAME TO {old}; ALTER DATABASE {new} RENAME TO {name}; COMMIT",
        name = quote(name),
        old = quote(old),
        new = quote(new)
    );
    let result = session.exec("swap databases", &sql).await;
    if result.is_err() {
        // The transaction failed as a whole; end it so that the session can go on.
        let _ = session.try_exec("ROLLBACK").await;
    }
    result
}

/// Who is still connected after a moment: sessions of our own that were just closed take a while to be gone.
async fn wait_for_sessions(session: &Session, name: &str, disconnect: bool) -> Result<Vec<String>> {
    let mut found = sessions(session, name).await?;
    for _ in 0..60 {
        let others = found.iter().any(|session| !session.contains("application 'backup-postgres'"));
        if found.is_empty() || disconnect || others {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        found = sessions(session, name).await?;
    }
    Ok(found)
}

/// Who is connected to a database, described.
async fn sessions(session: &Session, name: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT pg_catalog.format('pid %s, role %s, application %s, from %s', pid, usename, \
           pg_catalog.quote_literal(application_name), COALESCE(client_addr::text, 'local')) \
         FROM pg_catalog.pg_stat_activity \
         WHERE datname = {} AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid",
        literal(name)
    );
    let rows = session.rows("list sessions", &sql).await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// The way back after a database was replaced.
#[derive(Debug)]
pub(super) struct DatabaseUndo {
    maintenance: PgConfig,
    name: String,
    /// Where the old one is.
    pub(super) old: String,
}

#[async_trait]
impl Undo for DatabaseUndo {
    /// Puts the old database back and drops the restored one. Sessions in the way are ended: whoever asks for this
    /// wants the old state now.
    async fn undo(self: Box<Self>) -> Result<()> {
        let session = Session::canonical(&self.maintenance).await?;
        let undone = derived(&self.name, &format!("_undone_{}", random_hex()?));
        swap(&session, &self.name, &self.old, &undone, true).await?;
        remove(&self.maintenance, &undone).await
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        let session = Session::canonical(&self.maintenance).await?;
        session.exec("drop old database", &format!("DROP DATABASE {}", quote(&self.old))).await
    }
}
