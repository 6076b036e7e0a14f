//! Lengths and string headers (`rdbLoadLen`, `rdbGenericLoadStringObject` in the servers' `rdb.c`).

use super::error::RdbError;

/// What a length byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// A number.
    Plain(u64),
    /// A string in the special encoding with this number.
    Special(u8),
}

/// Reads a length. `None`: `input` ends before it does. The second value is the bytes it took.
#[inline]
pub(crate) fn length(input: &[u8]) -> Result<Option<(Length, usize)>, RdbError> {
    let Some((&first, rest)) = input.split_first() else { return Ok(None) };
    match first >> 6 {
        0 => Ok(Some((Length::Plain(u64::from(first & 0x3f)), 1))),
        1 => Ok(rest.first().map(|&low| (Length::Plain((u64::from(first & 0x3f) << 8) | u64::from(low)), 2))),
        2 => match first {
            0x80 => {
                Ok(rest.first_chunk::<4>().map(|b| (Length::Plain(u64::from(u32::from_be_bytes(*b))), 5)))
            }
            0x81 => Ok(rest.first_chunk::<8>().map(|b| (Length::Plain(u64::from_be_bytes(*b)), 9))),
            _ => Err(RdbError::malformed("a length begins with an unknown byte")),
        },
        _ => Ok(Some((Length::Special(first & 0x3f), 1))),
    }
}

/// Reads a length that must be a number.
#[inline]
pub(crate) fn number(input: &[u8]) -> Result<Option<(u64, usize)>, RdbError> {
    match length(input)? {
        None => Ok(None),
        Some((Length::Plain(n), used)) => Ok(Some((n, used))),
        Some((Length::Special(_), _)) => Err(RdbError::malformed("a number was expected where a string is")),
    }
}

/// How a string's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// As they are.
    Plain(u64),
    /// As a little-endian integer of this many bytes (1, 2 or 4).
    Integer(u8),
    /// Compressed by LZF.
    Lzf {
        /// Bytes stored.
        stored: u64,
        /// Bytes when decompressed.
        plain: u64,
    },
}

impl Head {
    /// Bytes that follow the header.
    #[inline]
    pub(crate) fn body(self) -> u64 {
        match self {
            Self::Plain(n) | Self::Lzf { stored: n, .. } => n,
            Self::Integer(n) => u64::from(n),
        }
    }
}

/// Most bytes LZF makes of one: a three-byte reference yields 264.
pub(crate) const LZF_MOST: u64 = 88;

/// Reads a string's header.
#[inline]
pub(crate) fn head(input: &[u8]) -> Result<Option<(Head, usize)>, RdbError> {
    match length(input)? {
        None => Ok(None),
        Some((Length::Plain(n), used)) => Ok(Some((Head::Plain(n), used))),
        Some((Length::Special(0), _)) => Ok(Some((Head::Integer(1), 1))),
        Some((Length::Special(1), _)) => Ok(Some((Head::Integer(2), 1))),
        Some((Length::Special(2), _)) => Ok(Some((Head::Integer(4), 1))),
        Some((Length::Special(3), _)) => {
            let rest = input.get(1..).unwrap_or_default();
            let Some((stored, a)) = number(rest)? else { return Ok(None) };
            let Some((plain, b)) = number(rest.get(a..).unwrap_or_default())? else { return Ok(None) };
            if plain > stored.saturating_mul(LZF_MOST) {
                return Err(RdbError::malformed("a compressed string claims more than its bytes can yield"));
            }
            Ok(Some((Head::Lzf { stored, plain }, 1 + a + b)))
        }
        Some((Length::Special(_), _)) => Err(RdbError::malformed("a string has an unknown encoding")),
    }
}

/// Appends a length as the servers write it.
pub(crate) fn write_length(out: &mut Vec<u8>, n: u64) {
    match n {
        0..=0x3f => out.push(low(n)),
        0x40..=0x3fff => out.extend_from_slice(&[0x40 | low(n >> 8), low(n)]),
        _ => {
            if let Ok(n) = u32::try_from(n) {
                out.push(0x80);
                out.extend_from_slice(&n.to_be_bytes());
            } else {
                out.push(0x81);
                out.extend_from_slice(&n.to_be_bytes());
            }
        }
    }
}

/// Appends a string as it is.
pub(crate) fn write_string(out: &mut Vec<u8>, bytes: &[u8]) {
    write_length(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The lowest eight bits.
fn low(n: u64) -> u8 {
    n.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_length_survives_and_a_cut_one_asks_for_more(n in prop_oneof![0u64..70, 0u64..20_000, any::<u32>().prop_map(u64::from), any::<u64>()]) {
            let mut out = Vec::new();
            write_length(&mut out, n);
            prop_assert_eq!(length(&out).unwrap(), Some((Length::Plain(n), out.len())));
            for cut in 0..out.len() {
                prop_assert_eq!(length(&out[..cut]).unwrap(), None);
            }
        }
    }

    #[test]
    fn a_compressed_string_cannot_claim_the_sky() {
        let mut bytes = vec![0xc3];
        write_length(&mut bytes, 10);
        write_length(&mut bytes, u64::MAX);
        assert!(head(&bytes).is_err());
    }
}
