//! Members of the tar archives of a parallel backup, as they stream.

use backup_core::{Error, Result};
use bytes::{Buf as _, Bytes, BytesMut};

const BLOCK: usize = 512;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// A member begins.
    Begin(String),
    /// Bytes of it.
    Data(Bytes),
}

/// Reads members from pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Tar {
    held: BytesMut,
    left: u64,
    padding: u64,
    ended: bool,
}

impl Tar {
    pub(super) fn push(&mut self, bytes: &[u8], mut on: impl FnMut(Member)) -> Result<()> {
        self.held.extend_from_slice(bytes);
        loop {
            if self.left > 0 {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.held.len());
                if n == 0 {
                    return Ok(());
                }
                self.left -= n as u64;
                on(Member::Data(self.held.split_to(n).freeze()));
                continue;
            }
            if self.padding > 0 {
                let n = usize::try_from(self.padding).unwrap_or(usize::MAX).min(self.held.len());
                if n == 0 {
                    return Ok(());
                }
                self.padding -= n as u64;
                self.held.advance(n);
                continue;
            }
            if self.held.len() < BLOCK {
                return Ok(());
            }
            let header = self.held.split_to(BLOCK);
            if header.iter().all(|&b| b == 0) {
                self.ended = true;
                continue;
            }
            if self.ended {
                return Err(damaged("something follows the end of the archive"));
            }
            let field = |range: std::ops::Range<usize>| {
                let bytes = header.get(range).unwrap_or(&[]);
                let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
                String::from_utf8_lossy(bytes.get(..end).unwrap_or(&[])).trim().to_owned()
            };
            let number = |range| u64::from_str_radix(&field(range), 8).ok();
            let sum: u64 = header
                .iter()
                .enumerate()
                .map(|(i, &b)| if (148..156).contains(&i) { u64::from(b' ') } else { u64::from(b) })
                .sum();
            if number(148..156) != Some(sum) {
                return Err(damaged("the checksum of a header does not match"));
            }
            let size = number(124..136).ok_or_else(|| damaged("a member has no size"))?;
            self.left = size;
            self.padding = size.next_multiple_of(BLOCK as u64) - size;
            on(Member::Begin(field(0..100)));
        }
    }

    /// The input is complete.
    pub(super) fn finish(&self) -> Result<()> {
        if self.left == 0 && self.padding == 0 && self.held.is_empty() {
            Ok(())
        } else {
            Err(damaged("the archive ends inside a member"))
        }
    }
}

fn damaged(why: &'static str) -> Error {
    Error::corrupt("read tar", why)
}
