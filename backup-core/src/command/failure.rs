//! [`CommandFailure`].

use std::fmt;
use std::process::ExitStatus;

/// How much of the standard error `Display` shows, in bytes from its end.
const SHOWN: usize = 2048;

/// How a program ended, and the last it said. The source of an [`Error`](crate::Error) of a command.
#[derive(Clone, Debug)]
pub struct CommandFailure {
    pub(super) program: String,
    pub(super) status: Option<ExitStatus>,
    pub(super) stderr: Vec<u8>,
    pub(super) stderr_total: u64,
}

impl CommandFailure {
    /// Exit code or signal; `None` when it was stopped before it ended by itself.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// The end of its standard error, at most 64 KiB.
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// How many bytes it wrote to its standard error in all.
    pub fn stderr_total(&self) -> u64 {
        self.stderr_total
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{} ended with {status}", self.program)?,
            None => write!(f, "{} was stopped", self.program)?,
        }
        let end = self.stderr.len();
        let shown = self.stderr.get(end.saturating_sub(SHOWN)..).unwrap_or_default();
        if shown.is_empty() {
            return f.write_str(" and said nothing on its standard error");
        }
        f.write_str(", saying: ")?;
        if (shown.len() as u64) < self.stderr_total {
            f.write_str("…")?;
        }
        write!(f, "{}", printable(shown))
    }
}

impl std::error::Error for CommandFailure {}

/// Text for a terminal: control characters other than line ends and tabs are escaped.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.trim_ascii_end()).chars().fold(String::new(), |mut text, c| {
        if c.is_control() && c != '\n' && c != '\t' {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
        text
    })
}
