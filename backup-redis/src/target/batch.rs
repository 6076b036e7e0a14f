//! Commands on their way to a server.

use backup_core::Digest;

use crate::rdb::crc64::crc64;
use crate::resp;

/// Bytes of commands gathered before they are sent.
pub(crate) const BATCH_BYTES: usize = 256 * 1024;
/// Commands gathered before they are sent.
pub(crate) const BATCH_COMMANDS: usize = 1000;

/// Commands for one database of one node.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) db: u64,
    /// The commands, as they go over the wire.
    pub(crate) wire: Vec<u8>,
    /// Where each begins.
    pub(crate) starts: Vec<usize>,
    /// What each key must prove to be when it is read back; used when merging.
    pub(crate) expected: Vec<Expected>,
}

/// A key as it must be found after it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) digest: Digest,
    pub(crate) expires_at: Option<i64>,
    /// The database its digest names.
    pub(crate) db: u64,
    pub(crate) opaque: bool,
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.wire.len() >= BATCH_BYTES || self.starts.len() >= BATCH_COMMANDS
    }

    /// Begins a command.
    pub(crate) fn begin(&mut self, arguments: u64) {
        self.starts.push(self.wire.len());
        resp::header(&mut self.wire, b'*', arguments);
    }

    /// Adds an argument to the command begun.
    pub(crate) fn argument(&mut self, bytes: &[u8]) {
        resp::bulk(&mut self.wire, bytes);
    }

    /// The bytes of a command.
    pub(crate) fn command(&self, n: usize) -> &[u8] {
        let start = self.starts.get(n).copied().unwrap_or_default();
        let end = self.starts.get(n + 1).copied().unwrap_or(self.wire.len());
        self.wire.get(start..end).unwrap_or_default()
    }

    /// The key of a command: its second argument, whichever command it is.
    pub(crate) fn key(&self, n: usize) -> &[u8] {
        argument(self.command(n), 1)
    }
}

/// The `n`th argument of a command on the wire.
fn argument(command: &[u8], n: usize) -> &[u8] {
    let mut rest = line(command).1;
    for at in 0..=n {
        let (length, after) = line(rest);
        let length = length
            .strip_prefix(b"$")
            .and_then(|t| std::str::from_utf8(t).ok()?.trim_end().parse::<usize>().ok())
            .unwrap_or(0);
        let Some((bytes, after)) = after.split_at_checked(length) else { return &[] };
        if at == n {
            return bytes;
        }
        rest = after.get(2..).unwrap_or_default();
    }
    &[]
}

fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|&b| b == b'\n').map_or(bytes.len(), |at| at + 1);
    bytes.split_at_checked(end).unwrap_or((bytes, &[]))
}

/// What `RESTORE` is told beside key and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RestoreOptions {
    pub(crate) expires_at: Option<i64>,
    pub(crate) idle: Option<u64>,
    pub(crate) frequency: Option<u8>,
    pub(crate) replace: bool,
}

impl RestoreOptions {
    /// Arguments after the value.
    pub(crate) fn arguments(self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.expires_at.is_some() {
            arguments.push("ABSTTL".to_owned());
        }
        if self.replace {
            arguments.push("REPLACE".to_owned());
        }
        if let Some(frequency) = self.frequency {
            arguments.extend(["FREQ".to_owned(), frequency.to_string()]);
        } else if let Some(idle) = self.idle {
            arguments.extend(["IDLETIME".to_owned(), idle.to_string()]);
        }
        arguments
    }

    /// The expiry argument. A key that expires at 0 or before is not written at all; 0 means never here.
    pub(crate) fn ttl(self) -> String {
        self.expires_at.unwrap_or(0).to_string()
    }
}

/// Appends what ends a value for `RESTORE`: the version and the checksum of everything before it, `start` on.
pub(crate) fn seal(out: &mut Vec<u8>, start: usize, version: u32) {
    let version = u16::try_from(version).unwrap_or(u16::MAX);
    out.extend_from_slice(&version.to_le_bytes());
    let crc = crc64(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Appends a `SET` of a string whose key must not exist. The server's answer is nil if it does.
pub(crate) fn set(batch: &mut Batch, key: &[u8], value: &[u8]) {
    batch.begin(4);
    for argument in [&b"SET"[..], key, value, b"NX"] {
        batch.argument(argument);
    }
}

/// Appends a whole `RESTORE`.
pub(crate) fn restore(
    batch: &mut Batch,
    key: &[u8],
    code: u8,
    raw: &[u8],
    version: u32,
    options: RestoreOptions,
) {
    let more = options.arguments();
    batch.begin(4 + more.len() as u64);
    batch.argument(b"RESTORE");
    batch.argument(key);
    batch.argument(options.ttl().as_bytes());
    resp::header(&mut batch.wire, b'$', raw.len() as u64 + super::build::AROUND);
    let start = batch.wire.len();
    batch.wire.push(code);
    batch.wire.extend_from_slice(raw);
    seal(&mut batch.wire, start, version);
    batch.wire.extend_from_slice(b"\r\n");
    for argument in more {
        batch.argument(argument.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_and_its_key_are_found_again() {
        let mut batch = Batch::default();
        restore(&mut batch, b"first", 0, b"\x01a", 9, RestoreOptions::default());
        let options = RestoreOptions { expires_at: Some(7), replace: true, ..RestoreOptions::default() };
        restore(&mut batch, b"se\r\ncond", 0, b"\x01b", 9, options);
        assert_eq!((batch.key(0), batch.key(1)), (&b"first"[..], &b"se\r\ncond"[..]));
        assert!(batch.command(0).starts_with(b"*4\r\n$7\r\nRESTORE\r\n$5\r\nfirst\r\n$1\r\n0\r\n$13\r\n"));
        assert!(batch.command(1).ends_with(b"$6\r\nABSTTL\r\n$7\r\nREPLACE\r\n"));
        set(&mut batch, b"third", b"value");
        assert_eq!((batch.key(1), batch.key(2)), (&b"se\r\ncond"[..], &b"third"[..]));
    }
}
