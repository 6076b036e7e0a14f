//! Names: sets, backups, sinks.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::key::Key;

/// Top-level names that belong to the repository itself and cannot begin a set.
const RESERVED: [&str; 6] = ["keyring", "leases", "slots", "audit", "drills", "repository.json"];

/// What is backed up again and again under one name: `bookreader/postgres`.
///
/// One or more segments joined by `/`, without control characters. A segment cannot look like a backup id, be `log`, or, at the first
/// place, be one of the repository's own directories.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetName(String);

impl SetName {
    /// Checks a set name.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let refuse =
            |why: &'static str| Err(Error::invalid("name a set", why).with("set", text.escape_debug()));
        if text.is_empty() {
            return refuse("a set needs a name, for example `bookreader/postgres`");
        }
        if text.starts_with('-') || text.contains(char::is_control) {
            // It is written into commands that a person runs.
            return refuse("a set name does not begin with `-` and has no control characters");
        }
        for (i, segment) in text.split('/').enumerate() {
            if segment.is_empty() || segment == "." || segment == ".." {
                return refuse("a set name has no empty, `.` or `..` segment");
            }
            if i == 0 && RESERVED.contains(&segment) {
                return refuse("this first segment is reserved for the repository");
            }
            if segment == "log" || BackupId::from_str(segment).is_ok() {
                return refuse("a segment of a set name cannot be `log` or look like a backup id");
            }
        }
        let name = Self(text);
        name.key()?;
        Ok(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory of the set on a sink.
    pub fn key(&self) -> Result<Key> {
        self.0.split('/').try_fold(Key::root(), |key, segment| key.join(segment))
    }
}

impl TryFrom<String> for SetName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(text)
    }
}

impl From<SetName> for String {
    fn from(name: SetName) -> Self {
        name.0
    }
}

impl FromStr for SetName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetName({})", self.0)
    }
}

/// The name of one backup: `20261120T020000Z-9f04c1`, its start in UTC to the second and six random
/// hexadecimal digits. Sorts by time, never reused; those that one process makes in one second sort by their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId {
    time: DateTime<Utc>,
    random: u32,
}

const ID_TIME: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The id of a backup started at `time` (cut to the second); the low 24 bits of `random` are used.
    pub fn new(time: DateTime<Utc>, random: u32) -> Self {
        Self { time: time.trunc_subsecs(0), random: random & 0x00ff_ffff }
    }

    /// What tells ids of one second apart, in 24 bits.
    pub(crate) fn random(self) -> u32 {
        self.random
    }

    /// The start of the backup, as its producer's clock had it.
    pub fn time(&self) -> DateTime<Utc> {
        self.time
    }
}

impl FromStr for BackupId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || Error::invalid("read backup id", "not a backup id").with("id", text.escape_debug());
        let (time, random) = text.split_once('-').ok_or_else(refuse)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if time.len() != 16 || random.len() != 6 || !random.bytes().all(hex) {
            return Err(refuse());
        }
        let id = Self {
            time: NaiveDateTime::parse_from_str(time, ID_TIME).map_err(|_| refuse())?.and_utc(),
            random: u32::from_str_radix(random, 16).map_err(|_| refuse())?,
        };
        // One spelling only: what parses must print the same.
        if id.to_string() == text { Ok(id) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for BackupId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:06x}", self.time.format(ID_TIME), self.random)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupId({self})")
    }
}

/// How a sink is named in reports, options and errors: `local:/var/backups`, `s3://offsite/eu`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SinkId(String);

impl SinkId {
    /// Takes a name. It must not hold a secret: it is printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SinkId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_sorts_by_time_and_has_one_spelling() {
        let early: BackupId = "20261120T020000Z-ffffff".parse().unwrap();
        let late: BackupId = "20261120T020001Z-000000".parse().unwrap();
        assert!(early < late && early.to_string() < late.to_string());
        for bad in [
            "20261120T020000Z-FFFFFF",
            "20261120T020000Z",
            "20261320T020000Z-000000",
            "2026112 T020000Z-000000",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_set_cannot_be_mistaken_for_something_else() {
        for bad in [
            "",
            "-a",
            "a\ntouch b",
            "/a",
            "a/",
            "a//b",
            "a/..",
            "keyring/x",
            "a/log",
            "a/20261120T020000Z-ffffff",
        ] {
            assert!(SetName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(SetName::parse("Bücher/pg").unwrap().key().unwrap().as_str(), "B%C3%BCcher/pg");
    }
}
