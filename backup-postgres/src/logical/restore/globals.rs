//! Roles, memberships and tablespaces: what is missing is created, what is there stays as it is.

use std::collections::BTreeSet;

use backup_core::{ArtifactReader, Error, ErrorKind, Result, Warning};
use futures::TryStreamExt as _;

use super::{Warnings, warn};
use crate::error::{PgError, quotable};
use crate::ident::read;
use crate::logical::sql::{Splitter, SqlEvent};
use crate::session::Session;

/// Most bytes of globals that are read: a cluster with a million roles has about 200 MiB.
const MAX_GLOBALS: usize = 1 << 28;

/// Creates the roles and tablespaces that do not exist, gives those roles their attributes and memberships, and leaves
/// existing ones untouched.
pub(super) async fn restore(session: &Session, reader: &ArtifactReader, warnings: &Warnings) -> Result<()> {
    let mut stream = reader.stream().await?;
    let mut splitter = Splitter::default();
    let mut statements = Vec::new();
    let mut bytes = 0;
    let mut on = |event: SqlEvent<'_>| {
        if let SqlEvent::Statement(statement) = event {
            bytes += statement.text.len();
            statements.push(statement.text);
        }
        if bytes > MAX_GLOBALS {
            return Err(Error::new(ErrorKind::LimitExceeded, "restore globals")
                .message("more than 256 MiB of globals"));
        }
        Ok(())
    };
    while let Some(chunk) = stream.try_next().await? {
        splitter.push(&chunk, &mut on)?;
    }
    splitter.finish(&mut on)?;

    let existing = |sql: &'static str| async move {
        let rows = session.rows("list globals", sql).await?;
        Ok::<_, Error>(
            rows.into_iter().filter_map(|r| r.into_iter().next().flatten()).collect::<BTreeSet<_>>(),
        )
    };
    let roles = existing("SELECT rolname FROM pg_catalog.pg_roles").await?;
    let tablespaces = existing("SELECT spcname FROM pg_catalog.pg_tablespace").await?;
    for text in statements {
        if !is_missing(&text, &roles, &tablespaces) {
            continue;
        }
        if let Err(failure) = session.try_exec(&text).await {
            // A tablespace needs a directory this server may not have, an attribute a privilege the role may not have.
            warn(
                warnings,
                Warning::new(
                    "global-not-created",
                    format!("{}: {}", quotable(&text), PgError::from(failure)),
                ),
            );
        }
    }
    Ok(())
}

/// Whether a statement of `pg_dumpall --globals-only` is about something that does not exist yet.
fn is_missing(text: &str, roles: &BTreeSet<String>, tablespaces: &BTreeSet<String>) -> bool {
    let absent =
        |rest: &str, known: &BTreeSet<String>| read(rest).is_some_and(|(name, _)| !known.contains(&name));
    for start in ["CREATE ROLE ", "ALTER ROLE ", "COMMENT ON ROLE "] {
        if let Some(rest) = text.strip_prefix(start) {
            return absent(rest, roles);
        }
    }
    for start in ["CREATE TABLESPACE ", "ALTER TABLESPACE ", "COMMENT ON TABLESPACE "] {
        if let Some(rest) = text.strip_prefix(start) {
            return absent(rest, tablespaces);
        }
    }
    if let Some(rest) = text.strip_prefix("GRANT ") {
        // A membership: `GRANT group TO member …`; both must not have existed to leave what is there alone.
        return match read(rest).and_then(|(_, rest)| rest.trim_start().strip_prefix("TO ")) {
            Some(member) => absent(member, roles),
            None => text.split_once(" ON TABLESPACE ").is_some_and(|(_, rest)| absent(rest, tablespaces)),
        };
    }
    if text.starts_with("REVOKE ") {
        return text.split_once(" ON TABLESPACE ").is_some_and(|(_, rest)| absent(rest, tablespaces));
    }
    text.starts_with("SET ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_created() {
        let roles: BTreeSet<String> = ["postgres".to_owned(), "Old".to_owned()].into();
        let spaces = BTreeSet::new();
        for (text, expected) in [
            ("CREATE ROLE postgres", false),
            ("ALTER ROLE postgres WITH SUPERUSER", false),
            ("CREATE ROLE \"Old\"", false),
            ("CREATE ROLE bob", true),
            ("GRANT readers TO bob WITH INHERIT TRUE GRANTED BY postgres", true),
            ("GRANT readers TO \"Old\"", false),
            ("CREATE TABLESPACE fast OWNER postgres LOCATION '/x'", true),
        ] {
            assert_eq!(is_missing(text, &roles, &spaces), expected, "{text}");
        }
    }
}
