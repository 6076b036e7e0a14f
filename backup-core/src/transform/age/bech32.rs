//! Bech32 (BIP 173), in which age writes its keys. Without the limit of 90 characters, as age has it.

use zeroize::Zeroizing;

use crate::error::{Error, Result};

const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// Characters of the checksum.
const CHECKSUM: usize = 6;
/// Bytes of the keys it is used for.
const LEN: usize = 32;

/// The 32 bytes behind `prefix` in `text`, which may be in lower or upper case but not in both.
pub(super) fn decode(prefix: &str, text: &str) -> Result<Zeroizing<[u8; LEN]>> {
    let wrong =
        |why: &'static str| Error::invalid("read age key", why).with("expected", format!("{prefix}1…"));
    if text.bytes().any(|b| b.is_ascii_lowercase()) && text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(wrong("an age key is written in one case"));
    }
    let text = Zeroizing::new(text.to_ascii_lowercase());
    let data = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('1'))
        .ok_or_else(|| wrong("this is no age key of the kind that is expected here"))?;
    let mut values = Zeroizing::new(Vec::with_capacity(data.len()));
    for byte in data.bytes() {
        let value = ALPHABET.iter().position(|c| *c == byte).and_then(|v| u8::try_from(v).ok());
        values.push(value.ok_or_else(|| wrong("an age key has a character that does not belong there"))?);
    }
    if polymod(expanded(prefix).chain(values.iter().copied())) != 1 {
        return Err(wrong("the checksum of an age key does not fit: it was mistyped or cut off"));
    }
    let values = values.get(..values.len().saturating_sub(CHECKSUM)).unwrap_or_default();
    let mut bytes = Zeroizing::new([0; LEN]);
    let (mut bits, mut waiting, mut filled) = (0_u32, 0_u32, 0);
    for value in values {
        bits = (bits << 5 | u32::from(*value)) & 0xfff;
        waiting += 5;
        if waiting >= 8 {
            waiting -= 8;
            let slot = bytes.get_mut(filled).ok_or_else(|| wrong("an age key is too long"))?;
            *slot = u8::try_from(bits >> waiting & 0xff).unwrap_or(0);
            filled += 1;
        }
    }
    if filled != LEN || waiting >= 5 || bits & ((1 << waiting) - 1) != 0 {
        return Err(wrong("an age key does not have 32 bytes"));
    }
    Ok(bytes)
}

/// Writes 32 bytes behind `prefix`, in lower case.
pub(super) fn encode(prefix: &str, bytes: &[u8; LEN]) -> Zeroizing<String> {
    // 256 bits in groups of five, the last filled up with zeros.
    let mut values = Zeroizing::new(Vec::with_capacity(LEN * 8 / 5 + 1 + CHECKSUM));
    let (mut bits, mut waiting) = (0_u32, 0_u32);
    for byte in bytes {
        bits = (bits << 8 | u32::from(*byte)) & 0xfff;
        waiting += 8;
        while waiting >= 5 {
            waiting -= 5;
            values.push(u8::try_from(bits >> waiting & 31).unwrap_or(0));
        }
    }
    if waiting > 0 {
        values.push(u8::try_from(bits << (5 - waiting) & 31).unwrap_or(0));
    }
    let sum = polymod(expanded(prefix).chain(values.iter().copied()).chain([0; CHECKSUM])) ^ 1;
    for group in (0..6).rev() {
        values.push(u8::try_from(sum >> (5 * group) & 31).unwrap_or(0));
    }
    let mut text = Zeroizing::new(String::with_capacity(prefix.len() + 1 + values.len()));
    text.push_str(prefix);
    text.push('1');
    for value in values.iter() {
        text.push(char::from(ALPHABET.get(usize::from(*value)).copied().unwrap_or(b'q')));
    }
    text
}

/// The prefix as it enters the checksum.
fn expanded(prefix: &str) -> impl Iterator<Item = u8> + '_ {
    prefix.bytes().map(|b| b >> 5).chain([0]).chain(prefix.bytes().map(|b| b & 31))
}

fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    values.fold(1, |sum, value| {
        let mixed = GENERATOR.iter().enumerate().filter(|(i, _)| sum >> 25 >> i & 1 == 1);
        mixed.fold((sum & 0x1ff_ffff) << 5 ^ u32::from(value), |sum, (_, part)| sum ^ part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_age_tool_are_read_and_written_back() {
        // The pair in the documentation of age (`age-keygen`).
        let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        let bytes = decode("age", recipient).unwrap();
        assert_eq!(*encode("age", &bytes), recipient);
        assert_eq!(*decode("age", &recipient.to_uppercase()).unwrap(), *bytes);
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        let good = encode("age", &[0x5a; 32]);
        for at in 4..good.len() {
            let mut bad = good.as_bytes().to_vec();
            bad[at] = if bad[at] == b'q' { b'p' } else { b'q' };
            assert!(decode("age", std::str::from_utf8(&bad).unwrap()).is_err(), "{at}");
        }
        for bad in ["", "age", "age1", "age1qqqqqq", &good[..good.len() - 1], "Age1", &format!("{}q", *good)]
        {
            assert!(decode("age", bad).is_err(), "{bad}");
        }
        assert!(decode("age-secret-key-", &good).is_err());
    }
}
