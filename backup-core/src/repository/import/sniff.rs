//! Whether decrypted bytes are what the name of the file says: encryption without authentication cannot tell.

use bytes::{Bytes, BytesMut};

use super::openssl::wrong_password;
use crate::error::Result;
use crate::transform::{Codec, Emit};

/// What the first bytes must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Begins(&'static [u8]),
    /// A header of a tar archive, or the zeros of an empty one.
    Tar,
    /// No byte that text does not have.
    Text,
}

/// Bytes of text that are looked at. Among as many random bytes, one is zero almost certainly.
const TEXT: usize = 4096;
/// Bytes of a header of a tar archive.
const TAR: usize = 512;

impl Expected {
    /// By the extension of a name.
    pub(super) fn of(extension: &str) -> Option<Self> {
        match extension {
            "gz" => Some(Self::Begins(&[0x1f, 0x8b])),
            "tar" => Some(Self::Tar),
            // The archive of pg_dump's custom format, and a dump of Redis.
            "dump" => Some(Self::Begins(b"PGDMP")),
            "rdb" => Some(Self::Begins(b"REDIS")),
            "sql" | "json" | "jsonl" | "csv" | "txt" | "yml" | "yaml" | "env" | "conf" => Some(Self::Text),
            _ => None,
        }
    }

    fn needs(self) -> usize {
        match self {
            Self::Begins(magic) => magic.len(),
            Self::Tar => TAR,
            Self::Text => TEXT,
        }
    }

    fn fits(self, bytes: &[u8]) -> bool {
        match self {
            Self::Begins(magic) => bytes.starts_with(magic),
            Self::Tar => {
                bytes.get(..TAR).is_some_and(|header| is_tar(header) || header.iter().all(|b| *b == 0))
            }
            Self::Text => !bytes.iter().take(TEXT).any(|b| *b == 0),
        }
    }
}

/// Whether the checksum of a header fits (POSIX.1-2001, ustar): the sum of its bytes, with blanks for the checksum.
fn is_tar(header: &[u8]) -> bool {
    let said = header.get(148..156).unwrap_or_default();
    let digits: Vec<u8> = said.iter().copied().filter(|b| (b'0'..b'8').contains(b)).collect();
    let said = digits.iter().fold(0_u32, |sum, digit| sum << 3 | u32::from(digit - b'0'));
    let sum: u32 = (0_usize..)
        .zip(header)
        .map(|(at, b)| u32::from(if (148..156).contains(&at) { b' ' } else { *b }))
        .sum();
    !digits.is_empty() && said == sum
}

/// Holds the first bytes back until they were looked at.
pub(super) struct Sniffer {
    expected: Expected,
    held: Option<BytesMut>,
}

impl Sniffer {
    pub(super) fn new(expected: Expected) -> Self {
        Self { expected, held: Some(BytesMut::new()) }
    }

    fn judge(&mut self, out: &mut dyn Emit) -> Result<()> {
        match self.held.take() {
            Some(held) if !self.expected.fits(&held) => Err(wrong_password()),
            Some(held) if !held.is_empty() => out.data(held.freeze()),
            _ => Ok(()),
        }
    }
}

impl Codec for Sniffer {
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        let Some(held) = &mut self.held else { return out.data(input) };
        held.extend_from_slice(&input);
        if held.len() < self.expected.needs() { Ok(()) } else { self.judge(out) }
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        self.judge(out)
    }
}
