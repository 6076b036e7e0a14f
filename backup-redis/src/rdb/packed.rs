//! Small collections that the servers keep, and save, as one run of bytes.
//!
//! Each reader hands its entries to a closure, in order, as [`Entry`]. Lengths inside are checked against the run;
//! nothing is allocated by them.

mod intset;
mod listpack;
mod ziplist;
mod zipmap;

pub(crate) use intset::intset;
pub(crate) use listpack::listpack;
pub(crate) use ziplist::ziplist;
pub(crate) use zipmap::zipmap;

use super::error::RdbError;

/// An entry of a packed collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// A number; its text is meant.
    Int(i64),
}

/// Longest text of an `i64`.
const TEXT: usize = 20;

impl<'a> Entry<'a> {
    /// The bytes meant. `text` holds them for a number.
    pub(crate) fn bytes<'s>(&self, text: &'s mut [u8; TEXT]) -> &'s [u8]
    where
        'a: 's,
    {
        match *self {
            Self::Bytes(bytes) => bytes,
            Self::Int(n) => decimal(n, text),
        }
    }

    /// The number meant, if it is one.
    pub(crate) fn int(&self) -> Option<i64> {
        match *self {
            Self::Int(n) => Some(n),
            Self::Bytes(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        }
    }

    /// The score meant, if it is one.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the servers store a score as integer only where it is exact"
    )]
    pub(crate) fn score(&self) -> Option<f64> {
        match *self {
            Self::Int(n) => Some(n as f64),
            Self::Bytes(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        }
    }
}

/// The decimal text of `n`, written to the end of `text`.
fn decimal(n: i64, text: &mut [u8; TEXT]) -> &[u8] {
    let mut left = n.unsigned_abs();
    let mut at = TEXT;
    for slot in text.iter_mut().rev() {
        *slot = b'0' + (left % 10).to_le_bytes()[0];
        at -= 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if n < 0
        && let Some(slot) = at.checked_sub(1).and_then(|before| text.get_mut(before))
    {
        *slot = b'-';
        at -= 1;
    }
    text.get(at..).unwrap_or_default()
}

/// What a reader passes its entries to.
pub(crate) type Each<'f> = dyn FnMut(Entry<'_>) -> Result<(), RdbError> + 'f;

/// A cursor that fails where its bytes end.
struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], RdbError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(RdbError::malformed(self.what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(RdbError::malformed(self.what))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, RdbError> {
        self.array::<1>().map(|[b]| b)
    }

    fn u32_le(&mut self) -> Result<usize, RdbError> {
        self.array().map(|b| usize::try_from(u32::from_le_bytes(b)).unwrap_or(usize::MAX))
    }

    fn fail<T>(&self) -> Result<T, RdbError> {
        Err(RdbError::malformed(self.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_usual_text() {
        for n in [0, 7, -1, 10, 1234, i64::MAX, i64::MIN] {
            assert_eq!(decimal(n, &mut [0; TEXT]), n.to_string().as_bytes());
        }
    }

    /// The entries a reader finds, as text.
    pub(super) fn entries(
        read: fn(&[u8], &mut Each<'_>) -> Result<(), RdbError>,
        packed: &[u8],
    ) -> Result<Vec<String>, RdbError> {
        let mut found = Vec::new();
        read(packed, &mut |entry| {
            found.push(String::from_utf8_lossy(entry.bytes(&mut [0; TEXT])).into_owned());
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic() {
        use proptest::prelude::*;
        proptest!(|(packed in proptest::collection::vec(any::<u8>(), 0..200))| {
            for read in [intset, listpack, ziplist, zipmap] {
                let _ = entries(read, &packed);
            }
        });
    }
}
