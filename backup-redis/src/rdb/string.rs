//! A string as an RDB stores it: plain, as an integer, or compressed.

use std::io::Write as _;

use super::error::RdbError;
use super::length::{Head, head};
use super::lzf;

/// A string whose stored bytes are all at hand.
#[derive(Clone, Copy, Debug)]
pub struct StoredString<'a> {
    pub(crate) head: Head,
    pub(crate) body: &'a [u8],
}

impl<'a> StoredString<'a> {
    /// Bytes of the plain string. A number stored as integer counts as its longest text, 11.
    pub fn plain_len(&self) -> u64 {
        match self.head {
            Head::Plain(n) => n,
            Head::Integer(_) => 11,
            Head::Lzf { plain, .. } => plain,
        }
    }

    /// The plain string. `scratch` is overwritten and holds it where it had to be made.
    ///
    /// # Errors
    ///
    /// [`RdbError::Malformed`] when a compressed string does not decompress to the length it claims.
    pub fn plain<'s>(&self, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], RdbError>
    where
        'a: 's,
    {
        match self.head {
            Head::Plain(_) => Ok(self.body),
            Head::Integer(_) => {
                scratch.clear();
                // Writing into memory does not fail.
                let _ = write!(scratch, "{}", little_endian(self.body));
                Ok(scratch)
            }
            Head::Lzf { plain, .. } => {
                scratch.clear();
                let plain = usize::try_from(plain)
                    .map_err(|_| RdbError::malformed("a compressed string is too long"))?;
                lzf::decompress(self.body, plain, scratch)?;
                Ok(scratch)
            }
        }
    }

    /// The plain string, in memory of its own.
    pub fn to_vec(&self) -> Result<Vec<u8>, RdbError> {
        let mut scratch = Vec::new();
        let length = self.plain(&mut scratch)?.len();
        if scratch.len() == length && !matches!(self.head, Head::Plain(_)) {
            Ok(scratch)
        } else {
            Ok(self.body.to_vec())
        }
    }

    /// Cuts a whole string off the front of `input`. `None`: it is not all there.
    #[inline]
    pub(crate) fn cut(input: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, RdbError> {
        let Some((head, used)) = head(input)? else { return Ok(None) };
        let rest = input.get(used..).unwrap_or_default();
        let Ok(length) = usize::try_from(head.body()) else { return Ok(None) };
        Ok(rest.split_at_checked(length).map(|(body, after)| (Self { head, body }, after)))
    }
}

/// A signed little-endian integer of 1, 2, 3, 4 or 8 bytes; 0 for other lengths, which callers rule out.
pub(crate) fn little_endian(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|&top| top & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => low.copy_from_slice(bytes),
        None => return 0,
    }
    i64::from_le_bytes(wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_out_as_text() {
        for (stored, text) in [
            (&[0xc0u8, 0x85][..], "-123"),
            (&[0xc1, 0x39, 0x30], "12345"),
            (&[0xc2, 0x00, 0x00, 0x00, 0x80], "-2147483648"),
        ] {
            let (string, rest) = StoredString::cut(stored).unwrap().unwrap();
            assert!(rest.is_empty());
            assert_eq!(string.to_vec().unwrap(), text.as_bytes());
        }
        assert_eq!(StoredString::cut(&[3, b'a', b'b', b'c']).unwrap().unwrap().0.to_vec().unwrap(), b"abc");
        assert!(StoredString::cut(&[3, b'a', b'b']).unwrap().is_none());
    }
}
