//! What a server, or the way to it, can answer, and how that reads as [`backup_core::Error`].

use backup_core::{Error, ErrorKind};

/// An error reply: `-CODE message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server answered: {0}")]
pub(crate) struct ServerError(pub(crate) String);

impl ServerError {
    /// The first word, by which errors are told apart: `NOPERM`, `MOVED`.
    pub(crate) fn code(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// What it means, and what to do; `other` is the kind of an error without a meaning of its own.
    fn meaning(&self, other: ErrorKind) -> (ErrorKind, &'static str) {
        match self.code() {
            "NOAUTH" => (
                ErrorKind::PermissionDenied,
                "the server wants a password: put user and password into the URL",
            ),
            "WRONGPASS" => (ErrorKind::PermissionDenied, "the server refused user or password"),
            "NOPERM" => (ErrorKind::PermissionDenied, "the server's ACL does not let this user do that"),
            "DENIED" => {
                (ErrorKind::PermissionDenied, "the server is in protected mode: set a password there")
            }
            "LOADING" => (ErrorKind::Unavailable, "the server is loading its data: try again when it has"),
            "MASTERDOWN" | "NOMASTERLINK" => {
                (ErrorKind::Unavailable, "this replica has no link to its primary: use another node or wait")
            }
            "CLUSTERDOWN" | "TRYAGAIN" => {
                (ErrorKind::Unavailable, "the cluster is not complete now: try again")
            }
            "BUSY" => (ErrorKind::Unavailable, "the server is busy with a script: try again later"),
            "OOM" => (ErrorKind::StorageFull, "the server has reached its `maxmemory`"),
            "READONLY" => (ErrorKind::ReadOnly, "this is a replica: name its primary"),
            "MISCONF" => {
                (ErrorKind::ReadOnly, "the server takes no writes because it cannot save to its disk")
            }
            "ERR" if self.is_password() => {
                (ErrorKind::PermissionDenied, "the server refused user or password")
            }
            "ERR" if self.is_unknown_command() => {
                (ErrorKind::Unsupported, "the server does not have this command, or it was renamed")
            }
            _ => (other, "the server refused"),
        }
    }

    fn is_password(&self) -> bool {
        self.0.contains("invalid password") || self.0.contains("AUTH")
    }

    /// Whether the server does not know the command.
    pub(crate) fn is_unknown_command(&self) -> bool {
        self.0.contains("unknown command")
    }

    /// The error of `operation`.
    pub(crate) fn into_error(self, operation: &'static str, other: ErrorKind) -> Error {
        let (kind, message) = self.meaning(other);
        Error::new(kind, operation).message(message).caused_by(self)
    }
}

/// The other side does not speak the protocol.
pub(crate) fn protocol(operation: &'static str, message: &'static str) -> Error {
    Error::corrupt(operation, message)
}

/// Nothing moved for too long.
pub(crate) fn stalled(operation: &'static str, seconds: u64) -> Error {
    Error::new(ErrorKind::Timeout, operation)
        .message("the server sent nothing, or took nothing, for too long")
        .with("seconds", seconds)
}

/// The connection is over.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).message("the server closed the connection")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_kinds_and_the_chain_says_each_thing_once() {
        let error = ServerError("LOADING Redis is loading the dataset in memory".to_owned())
            .into_error("back up", ErrorKind::SourceFailed);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_retryable());
        assert_eq!(error.chain().matches("loading the dataset").count(), 1);
        let error = ServerError("ERR something new".to_owned()).into_error("x", ErrorKind::SourceFailed);
        assert_eq!(error.kind(), ErrorKind::SourceFailed);
    }
}
