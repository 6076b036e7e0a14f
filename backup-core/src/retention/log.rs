//! Positions in a continuous log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest position: two of them and a random part fit one segment of an object name.
const MAX_LENGTH: usize = 100;

/// A place between two entries of a continuous log: an LSN, an oplog timestamp, a byte offset.
///
/// Opaque but for one promise its source makes: **the order of the text is the order of the log**. Numbers are
/// therefore written with a fixed width: `0000000003000148`, not `3000148`. Letters, digits, `.` and `_`
/// only, 1 to 100 of them, because slices carry their positions in their names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogPosition(String);

impl LogPosition {
    /// Checks a position.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'_';
        if text.is_empty() || text.len() > MAX_LENGTH || !text.bytes().all(allowed) {
            let why = "a log position is 1 to 100 letters, digits, `.` or `_`";
            let shown: String = text.chars().take(MAX_LENGTH).collect();
            return Err(Error::invalid("read log position", why).with("position", shown.escape_debug()));
        }
        Ok(Self(text))
    }

    /// A position that is a number, written so that text order is number order.
    pub fn from_number(number: u64) -> Self {
        Self(format!("{number:016x}"))
    }

    /// The position as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LogPosition {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(text)
    }
}

impl From<LogPosition> for String {
    fn from(position: LogPosition) -> Self {
        position.0
    }
}

impl FromStr for LogPosition {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogPosition({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_fits_an_object_name_and_cannot_hide_its_separator() {
        for bad in ["", "a-b", "a/b", "ä", "a b", &"0".repeat(101)] {
            assert!(LogPosition::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(LogPosition::parse("00000001.0A_f").unwrap().as_str(), "00000001.0A_f");
        assert!(serde_json::from_str::<LogPosition>("\"a-b\"").is_err());
    }

    #[test]
    fn numbers_sort_as_numbers() {
        assert!(LogPosition::from_number(9) < LogPosition::from_number(10));
        assert!(LogPosition::from_number(255) < LogPosition::from_number(u64::MAX));
    }
}
