//! A continuous log to test with: an append-only file of lines, its source, the state it leads to, and a target that
//! replays it. And the suite for authors of [`LogSource`](backup_core::LogSource)s.
//!
//! [`LogFile`] is the datastore: [`append`](LogFile::append) adds a line to its log and to its state. [`LogFile::source`] is
//! its log, to be followed; [`LogFile::state`] is a full backup of its state, which knows its place in the log; and
//! [`LogTarget`] restores the state and replays the log to a moment or a position.

mod file;
mod source;
mod state;
mod suite;
mod target;

pub use file::LogFile;
pub use source::LogFileSource;
pub use state::LogState;
pub use suite::{LogSourceSuite, LogWorld};
pub use target::LogTarget;

use backup_core::{ArtifactFormat, Error, ErrorKind, LogPosition, Proof, Result};
use chrono::{DateTime, Utc};

/// Bytes of the line that every file of the log begins with: `#log`, a blank, and its number.
const HEADER: u64 = 22;
/// Lines of a log.
const LINES: ArtifactFormat = ArtifactFormat::new("log.lines", "lines");
/// Lines of a state.
const STATE: ArtifactFormat = ArtifactFormat::new("log.state", "lines");
/// The name of the proofs.
const ENTRIES: &str = "entries";

/// A place in the log: the number of a file, and bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: u64,
    offset: u64,
}

impl Place {
    fn position(self) -> LogPosition {
        LogPosition::parse(format!("{:016x}.{:016x}", self.file, self.offset)).expect("hexadecimal digits")
    }

    fn parse(position: &LogPosition) -> Result<Self> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        position
            .as_str()
            .split_once('.')
            .and_then(|(file, offset)| Some(Self { file: number(file)?, offset: number(offset)? }))
            .ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, "read log position")
                    .message("this is no position of a log file")
                    .with("position", position)
            })
    }
}

/// The moment a line was written, by what it begins with.
fn time_of(line: &[u8]) -> Result<DateTime<Utc>> {
    let text = line.split(|b| *b == b' ').next().and_then(|stamp| std::str::from_utf8(stamp).ok());
    text.and_then(|stamp| DateTime::parse_from_rfc3339(stamp).ok())
        .map(|time| time.with_timezone(&Utc))
        .ok_or_else(|| Error::corrupt("read log", "a line does not begin with its time"))
}

/// Lines with their ends; the last may have none.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|b| *b == b'\n')
}

fn prove(bytes: &[u8]) -> Proof {
    let mut proof = Proof::empty();
    for line in lines(bytes) {
        proof.add([line]);
    }
    proof
}
