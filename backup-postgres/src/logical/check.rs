//! Whether a backup would succeed, and what to do where it would not.

use std::borrow::Cow;

use backup_core::{CheckReport, Finding, Result};

use super::dump::version_text;
use super::options::{DumpOptions, Scope};
use crate::config::PgConfig;
use crate::session::Session;
use crate::source::DumpFormat;

fn finding(fatal: bool, code: &'static str, message: impl Into<String>) -> Finding {
    Finding { fatal, code: Cow::Borrowed(code), message: message.into() }
}

/// Looks at what commonly is denied.
pub(crate) async fn check(config: &PgConfig, options: &DumpOptions) -> Result<CheckReport> {
    let session = Session::canonical(config).await?;
    let other = Session::connect(config).await?;
    let version = session.version().await?;
    let mut findings = Vec::new();
    if shares_a_backend(&session, &other).await? {
        findings.push(finding(
            true,
            "transaction-pooler",
            "the connection goes through a pooler in transaction mode: sessions share a server process, so settings, \
             exported snapshots and pg_dump do not work; connect to the server itself, or to a pool in session mode",
        ));
    }
    if let Err(error) = options.tools.find("pg_dump", version / 10_000).await {
        findings.push(finding(true, "pg-dump", error.to_string()));
    }
    unreadable_tables(&session, &mut findings).await?;
    row_security(&session, &mut findings).await?;
    if options.wants_large_objects() {
        foreign_large_objects(&session, &mut findings).await?;
    }
    if options.scope == Scope::Cluster && options.role_passwords {
        let readable = session
            .value(
                "check privileges",
                "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')",
            )
            .await?;
        if readable.as_deref() != Some("t") {
            findings.push(finding(
                true,
                "pg-authid-unreadable",
                "pg_authid cannot be read, so the passwords of roles cannot be dumped, as with most managed servers; \
                 use `role_passwords(false)` and set passwords after a restore, or grant pg_read_all_data",
            ));
        }
    }
    if options.format == DumpFormat::Parallel {
        let row = session
            .rows(
                "check connections",
                "SELECT pg_catalog.current_setting('max_connections')::int \
                   - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend')",
            )
            .await?;
        let free: i64 = row.first().and_then(|r| r.first()?.as_deref()?.parse().ok()).unwrap_or(i64::MAX);
        if free < i64::try_from(options.jobs).unwrap_or(0) + 2 {
            findings.push(finding(
                false,
                "few-connections",
                format!(
                    "only {free} connections are free, and the backup would use {}; lower `jobs`",
                    options.jobs + 2
                ),
            ));
        }
    }
    let size = session
        .value("read size", "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")
        .await
        .unwrap_or_default();
    Ok(CheckReport {
        server_version: Some(version_text(version)),
        estimated_bytes: size.and_then(|s| s.parse().ok()),
        findings,
    })
}

/// Two idle connections have two server processes, unless a pooler lends them the same one.
async fn shares_a_backend(one: &Session, other: &Session) -> Result<bool> {
    let sql = "SELECT pg_catalog.pg_backend_pid()";
    for _ in 0..3 {
        let pids = (one.value("look for pooler", sql).await?, other.value("look for pooler", sql).await?);
        if pids.0 == pids.1 {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn names(session: &Session, sql: &str) -> Result<(usize, String)> {
    let rows = session.rows("check privileges", sql).await?;
    let all: Vec<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    let shown = all.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    Ok((all.len(), if all.len() > 5 { format!("{shown} and {} more", all.len() - 5) } else { shown }))
}

async fn unreadable_tables(session: &Session, findings: &mut Vec<Finding>) -> Result<()> {
    let (count, shown) = names(
        session,
        "SELECT c.oid::regclass FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT ( \
           pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND CASE c.relkind WHEN 'S' \
             THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') \
             ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END) ORDER BY 1",
    )
    .await?;
    if count > 0 {
        findings.push(finding(
            true,
            "tables-unreadable",
            format!("the role may not read {shown}; grant it pg_read_all_data, or exclude them"),
        ));
    }
    Ok(())
}

async fn row_security(session: &Session, findings: &mut Vec<Finding>) -> Result<()> {
    let (count, shown) = names(
        session,
        "SELECT c.oid::regclass FROM pg_catalog.pg_class c WHERE c.relrowsecurity AND c.relkind IN ('r', 'p') \
         AND pg_catalog.row_security_active(c.oid) ORDER BY 1",
    )
    .await?;
    if count > 0 {
        findings.push(finding(
            true,
            "row-security",
            format!(
                "row security would hide rows of {shown} from the role, so pg_dump refuses; give the role BYPASSRLS, or \
                 back up as the owner"
            ),
        ));
    }
    Ok(())
}

async fn foreign_large_objects(session: &Session, findings: &mut Vec<Finding>) -> Result<()> {
    let (count, shown) = names(
        session,
        "SELECT m.oid FROM pg_catalog.pg_largeobject_metadata m WHERE NOT (\
           (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) \
           OR pg_catalog.pg_has_role(m.lomowner, 'USAGE') \
           OR EXISTS (SELECT FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT' \
             AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))) ORDER BY 1",
    )
    .await?;
    if count > 0 {
        findings.push(finding(
            true,
            "large-objects-unreadable",
            format!(
                "the role may not read the large objects {shown}: pg_read_all_data does not cover them; back up as their \
                 owner or a superuser, or use `large_objects(false)`"
            ),
        ));
    }
    Ok(())
}
