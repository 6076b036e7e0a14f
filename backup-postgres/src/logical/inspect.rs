//! What a backup records of a server and a database, and the snapshot it reads.

use backup_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use crate::config::PgConfig;
use crate::ident::literal;
use crate::session::Session;

/// A transaction that holds one point in time and has told its name, so that others can read the same.
#[derive(Debug)]
pub(crate) struct Exported {
    pub(crate) session: Session,
    pub(crate) id: String,
    /// Position in the write-ahead log at that point.
    pub(crate) lsn: String,
    pub(crate) version: u32,
    pub(crate) on_standby: bool,
}

impl Exported {
    /// Begins a transaction and exports its snapshot.
    pub(crate) async fn begin(config: &PgConfig) -> Result<Self> {
        let session = Session::canonical(config).await?;
        let version = session.version().await?;
        session.exec("begin snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        if version >= 170_000 {
            session.exec("begin snapshot", "SET transaction_timeout = 0").await?;
        }
        let rows = session
            .rows(
                "export snapshot",
                "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.pg_is_in_recovery(), \
                 CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                 ELSE pg_catalog.pg_current_wal_lsn() END",
            )
            .await?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut next = || row.next().flatten();
        let (Some(id), standby, lsn) = (next(), next(), next()) else {
            return Err(Error::new(ErrorKind::SourceFailed, "export snapshot")
                .message("the server did not name the snapshot"));
        };
        Ok(Self {
            session,
            id,
            lsn: lsn.unwrap_or_default(),
            version,
            on_standby: standby.as_deref() == Some("t"),
        })
    }

    /// Another session that reads the same point.
    pub(crate) async fn join(&self, config: &PgConfig) -> Result<Session> {
        join(config, &self.id, self.version).await
    }
}

/// A session that reads the point of an exported snapshot.
pub(crate) async fn join(config: &PgConfig, id: &str, version: u32) -> Result<Session> {
    let session = Session::canonical(config).await?;
    if version >= 170_000 {
        session.exec("prepare session", "SET transaction_timeout = 0").await?;
    }
    let sql =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", literal(id));
    session.exec("join snapshot", &sql).await?;
    Ok(session)
}

/// The database as the catalog has it: encoding, locale, owner, settings, extensions, size.
pub(crate) async fn database_details(session: &Session) -> Result<Map<String, Value>> {
    // `to_jsonb` gives whichever columns this version has: the names of locale columns changed in 15 and 17.
    let row = session
        .value(
            "read database",
            "SELECT pg_catalog.to_jsonb(d) || pg_catalog.jsonb_build_object(\
               'encoding', pg_catalog.pg_encoding_to_char(d.encoding), \
               'owner', pg_catalog.pg_get_userbyid(d.datdba), \
               'acl', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(\
                   CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee) END, \
                   a.privilege_type, a.is_grantable)) FROM pg_catalog.aclexplode(d.datacl) a), \
               'tablespace', (SELECT spcname FROM pg_catalog.pg_tablespace t WHERE t.oid = d.dattablespace), \
               'size', CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') \
                       THEN pg_catalog.pg_database_size(d.oid) END, \
               'comment', pg_catalog.shobj_description(d.oid, 'pg_database'), \
               'settings', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(\
                   'role', CASE WHEN s.setrole <> 0 THEN pg_catalog.pg_get_userbyid(s.setrole) END, \
                   'setting', c)) \
                 FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c \
                 WHERE s.setdatabase = d.oid)) \
             FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
        )
        .await?
        .unwrap_or_default();
    let catalog: Map<String, Value> = serde_json::from_str(&row).map_err(|e| {
        Error::new(ErrorKind::SourceFailed, "read database")
            .message("the catalog row is not JSON")
            .caused_by(e)
    })?;
    let mut details = Map::new();
    let rename = [
        ("datname", "name"),
        ("encoding", "encoding"),
        ("owner", "owner"),
        ("acl", "acl"),
        ("tablespace", "tablespace"),
        ("size", "size"),
        ("comment", "comment"),
        ("settings", "settings"),
        ("datconnlimit", "connection_limit"),
        ("datlocprovider", "locale_provider"),
        ("datcollate", "collate"),
        ("datctype", "ctype"),
        ("daticulocale", "locale"),
        ("datlocale", "locale"),
        ("daticurules", "icu_rules"),
    ];
    for (from, to) in rename {
        if let Some(value) = catalog.get(from).filter(|v| !v.is_null()) {
            details.insert(to.to_owned(), value.clone());
        }
    }
    let extensions = session
        .rows("read extensions", "SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY 1")
        .await?;
    let extensions: Map<String, Value> = extensions
        .into_iter()
        .filter_map(|row| {
            let mut row = row.into_iter().flatten();
            Some((row.next()?, json!(row.next()?)))
        })
        .collect();
    details.insert("extensions".to_owned(), extensions.into());
    // Prints of money and bytea depend on these, and pg_dump does not set them.
    // What a program finds set, whatever this session has set for itself.
    let settings = session
        .rows(
            "read settings",
            "SELECT name, reset_val FROM pg_catalog.pg_settings WHERE name IN ('lc_monetary', 'bytea_output')",
        )
        .await?;
    for row in settings {
        if let [Some(name), Some(value)] = row.as_slice() {
            details.insert(name.clone(), json!(value));
        }
    }
    Ok(details)
}
