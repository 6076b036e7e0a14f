//! What can be wrong with an RDB stream.

use backup_core::{Error, ErrorKind};

/// Why bytes are not a sound RDB stream. Offsets count from the first byte of the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RdbError {
    /// The magic is missing.
    #[error("this is not an RDB file: it does not begin with `REDIS` or `VALKEY` and a version")]
    NotRdb,
    /// A version this build does not know.
    #[error("RDB version {0} is not known to this build; a newer release may read it")]
    UnknownVersion(String),
    /// The stream stopped in the middle.
    #[error("the RDB stream ends early, after {offset} bytes")]
    Truncated {
        /// Bytes seen.
        offset: u64,
    },
    /// The checksum at the end is not that of the bytes before it.
    #[error("the RDB checksum is {stored:016x} but the bytes give {computed:016x}")]
    Checksum {
        /// As the stream says.
        stored: u64,
        /// As computed.
        computed: u64,
    },
    /// Something that cannot be.
    #[error("the RDB stream is malformed near byte {offset}: {what}")]
    Malformed {
        /// Where, or the start of the record it is in.
        offset: u64,
        /// What.
        what: &'static str,
    },
    /// A type or opcode this build does not know.
    #[error("the RDB stream has an unknown type or opcode {code} at byte {offset}")]
    UnknownType {
        /// Where.
        offset: u64,
        /// The byte.
        code: u8,
    },
    /// Something larger than this reader holds in memory.
    #[error("a {what} near byte {offset} of the RDB stream is longer than {limit} bytes")]
    TooLong {
        /// Where.
        offset: u64,
        /// A key, a library, …
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl RdbError {
    /// An error at an offset that the caller adds.
    pub(crate) const fn malformed(what: &'static str) -> Self {
        Self::Malformed { offset: 0, what }
    }

    /// Adds `base` to the offset, where there is one.
    pub(crate) fn shifted(mut self, base: u64) -> Self {
        match &mut self {
            Self::Malformed { offset, .. }
            | Self::UnknownType { offset, .. }
            | Self::TooLong { offset, .. } => {
                *offset = offset.saturating_add(base);
            }
            _ => {}
        }
        self
    }
}

impl From<RdbError> for Error {
    fn from(error: RdbError) -> Self {
        let kind = match &error {
            RdbError::UnknownVersion(_) | RdbError::UnknownType { .. } => ErrorKind::Unsupported,
            RdbError::TooLong { .. } => ErrorKind::LimitExceeded,
            _ => ErrorKind::Corrupt,
        };
        Error::new(kind, "read RDB").message(error.to_string())
    }
}
