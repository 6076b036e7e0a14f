//! From PostgreSQL's errors to [`backup_core::Error`].

use backup_core::{Error, ErrorKind};
use tokio_postgres::error::SqlState;

/// Longest piece of a statement quoted in an error, in characters.
const QUOTED_STATEMENT: usize = 300;

/// What the server or the connection said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PgError {
    /// The server refused, with its own words.
    #[error("{severity} {code}: {message}")]
    Server { severity: String, code: String, message: String },
    /// The connection failed; the cause is below.
    #[error("{0}")]
    Client(String, #[source] Option<std::io::Error>),
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let mut message = db.message().to_owned();
            for (name, part) in [("detail", db.detail()), ("hint", db.hint()), ("where", db.where_())] {
                if let Some(part) = part {
                    message.push_str("; ");
                    message.push_str(name);
                    message.push_str(": ");
                    message.push_str(&part.replace('\n', " "));
                }
            }
            return Self::Server {
                severity: db.severity().to_owned(),
                code: db.code().code().to_owned(),
                message,
            };
        }
        let text = error.to_string();
        let source = std::error::Error::source(&error).map(|s| std::io::Error::other(s.to_string()));
        Self::Client(text, source)
    }
}

/// The kind of a failure, from its SQLSTATE where it has one.
pub(crate) fn kind_of(error: &tokio_postgres::Error) -> ErrorKind {
    let Some(code) = error.code() else {
        return ErrorKind::Unavailable;
    };
    let code = code.code();
    match code.get(..2).unwrap_or("") {
        "28" => ErrorKind::PermissionDenied,
        "53" if code == SqlState::DISK_FULL.code() => ErrorKind::StorageFull,
        "08" | "53" | "57" => ErrorKind::Unavailable,
        "0A" => ErrorKind::Unsupported,
        _ => match code {
            "42501" => ErrorKind::PermissionDenied,
            "3D000" | "42P01" | "42704" | "3F000" => ErrorKind::NotFound,
            "42P04" | "42P07" | "42710" | "42P06" => ErrorKind::AlreadyExists,
            "25006" => ErrorKind::ReadOnly,
            _ => ErrorKind::TargetFailed,
        },
    }
}

/// An error of `operation` from what the driver reported.
pub(crate) fn database(operation: &'static str, error: tokio_postgres::Error) -> Error {
    Error::new(kind_of(&error), operation)
        .message("the server refused or the connection broke")
        .caused_by(PgError::from(error))
}

/// Like [`database`], for failures on the side that is being backed up.
pub(crate) fn source(operation: &'static str, error: tokio_postgres::Error) -> Error {
    let kind = match kind_of(&error) {
        ErrorKind::TargetFailed => ErrorKind::SourceFailed,
        other => other,
    };
    Error::new(kind, operation)
        .message("the server refused or the connection broke")
        .caused_by(PgError::from(error))
}

/// A statement as an error may quote it: one line, cut, and without what could be a password.
pub(crate) fn quotable(statement: &str) -> String {
    let upper = statement.to_ascii_uppercase();
    let shown = match upper.find("PASSWORD") {
        Some(at) if upper.contains("ROLE") || upper.contains("USER") => {
            format!("{} PASSWORD …", statement.get(..at).unwrap_or("").trim_end())
        }
        _ => statement.to_owned(),
    };
    let line = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > QUOTED_STATEMENT {
        format!("{}…", line.chars().take(QUOTED_STATEMENT).collect::<String>())
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_statement_shows_no_password_and_is_short() {
        let shown = quotable("ALTER ROLE bob WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:abc'");
        assert_eq!(shown, "ALTER ROLE bob WITH LOGIN PASSWORD …");
        assert!(quotable(&"x ".repeat(10_000)).chars().count() <= QUOTED_STATEMENT + 1);
    }
}
