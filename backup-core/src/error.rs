//! The error of every fallible operation in the workspace.
//!
//! One boxed struct: a copyable [`ErrorKind`] to decide on, the operation that failed, what it was done to,
//! and the error underneath. `Display` says what happened and what to do next; it never repeats its source,
//! so that a caller who prints the chain prints each sentence once.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, coarse enough to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object, backup, set or file does not exist.
    NotFound,
    /// A create-new found something under that name.
    AlreadyExists,
    /// The store or the operating system refused the operation.
    PermissionDenied,
    /// No space (or quota) left where the data was to be written.
    StorageFull,
    /// The place is mounted or configured read-only.
    ReadOnly,
    /// The place is not what it was: an unmounted disk, a missing marker, a different repository.
    WrongPlace,
    /// The other side cannot be reached, or the connection broke. Usually worth a retry.
    Unavailable,
    /// Something did not move for longer than it may.
    Timeout,
    /// The run was told to stop.
    Cancelled,
    /// Bytes are not what was written: a digest, tag, checksum or length does not match.
    Corrupt,
    /// Content arrived whole but is not what the manifest proves it to be.
    ProofMismatch,
    /// No key opens this, or the key that should is wrong.
    WrongKey,
    /// Encryption was required and something is, or would be, readable.
    Unencrypted,
    /// A format, version or feature this build does not know.
    Unsupported,
    /// A value given by the caller cannot work.
    InvalidInput,
    /// A limit that protects memory or disk was reached.
    LimitExceeded,
    /// The source did not say it succeeded.
    SourceFailed,
    /// The target refused or failed while restoring.
    TargetFailed,
    /// The target already holds something and replacing it was not asked for.
    TargetNotEmpty,
    /// The backup exists, but on fewer good sinks than required.
    TooFewCopies,
    /// The store lacks an ability the operation depends on.
    StoreInadequate,
    /// A retention plan was refused because it would forget too much, or cannot be trusted.
    PruneRefused,
    /// A continuous log does not go on where it should: entries are missing, and no moment after them can be restored from
    /// a backup before them.
    LogGap,
    /// An input/output error without a better name.
    Io,
    /// A defect of this library: please report it.
    Internal,
}

impl ErrorKind {
    /// Whether doing the same again may help. An adapter can override it with [`Error::retryable`].
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout)
    }
}

/// What failed, while doing what, to what, and why.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Cow<'static, str>,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    retryable: Option<bool>,
    source: Option<Cause>,
}

impl Error {
    /// An error of `kind` met while doing `operation` ("restore", "put object").
    pub fn new(kind: ErrorKind, operation: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: operation.into(),
            message: Cow::Borrowed(""),
            context: Vec::new(),
            retryable: None,
            source: None,
        }))
    }

    /// Says what happened and what to do about it, in a sentence without a secret.
    pub fn message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Names what the operation was done to: `("key", "books/…/manifest.json")`.
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// Attaches the error underneath.
    pub fn caused_by(mut self, source: impl Into<Cause>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Overrides whether a retry may help.
    pub fn retryable(mut self, yes: bool) -> Self {
        self.0.retryable = Some(yes);
        self
    }

    /// An error from a `std::io::Error`, its kind kept where it has a name here.
    pub fn io(operation: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied => ErrorKind::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::StorageFull,
            Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            Io::TimedOut => ErrorKind::Timeout,
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::NotConnected
            | Io::BrokenPipe
            | Io::HostUnreachable
            | Io::NetworkUnreachable
            | Io::NetworkDown => ErrorKind::Unavailable,
            _ => ErrorKind::Io,
        };
        Self::new(kind, operation).caused_by(source)
    }

    /// Shorthand for [`ErrorKind::Corrupt`].
    pub fn corrupt(operation: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, operation).message(message)
    }

    /// Shorthand for [`ErrorKind::InvalidInput`].
    pub fn invalid(operation: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, operation).message(message)
    }

    /// Shorthand for [`ErrorKind::Cancelled`].
    pub fn cancelled(operation: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Cancelled, operation).message("the run was stopped before it finished")
    }

    /// What went wrong, to decide on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// What it was done to, as name and value.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// The value of one context entry, if it was given.
    pub fn context_value(&self, name: &str) -> Option<&str> {
        self.0.context.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// Whether doing the same again may help.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable.unwrap_or_else(|| self.0.kind.is_retryable())
    }

    /// This error and everything beneath it, joined by `: `, each sentence once. For logs and reports.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.0.operation)?;
        if self.0.message.is_empty() {
            write!(f, "{}", plain_words(self.0.kind))?;
        } else {
            write!(f, "{}", self.0.message)?;
        }
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("message", &self.0.message)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

fn plain_words(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not found",
        ErrorKind::AlreadyExists => "already exists",
        ErrorKind::PermissionDenied => "permission denied",
        ErrorKind::StorageFull => "no space left",
        ErrorKind::ReadOnly => "read-only",
        ErrorKind::WrongPlace => "this is not the expected place",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Timeout => "timed out",
        ErrorKind::Cancelled => "stopped",
        ErrorKind::Corrupt => "damaged data",
        ErrorKind::ProofMismatch => "the content differs from its proof",
        ErrorKind::WrongKey => "no key opens it",
        ErrorKind::Unencrypted => "not encrypted",
        ErrorKind::Unsupported => "not supported",
        ErrorKind::InvalidInput => "invalid input",
        ErrorKind::LimitExceeded => "a limit was exceeded",
        ErrorKind::SourceFailed => "the source failed",
        ErrorKind::TargetFailed => "the target failed",
        ErrorKind::TargetNotEmpty => "the target is not empty",
        ErrorKind::TooFewCopies => "too few good copies",
        ErrorKind::StoreInadequate => "the store cannot do this safely",
        ErrorKind::PruneRefused => "prune refused",
        ErrorKind::LogGap => "entries of the log are missing",
        ErrorKind::Io => "input/output error",
        ErrorKind::Internal => "internal error, please report it",
    }
}
