//! The 512-byte header and its fields (POSIX.1-2001 `ustar`; GNU tar's `tar.h`).

use backup_core::{Error, ErrorKind, Result};

use super::OPERATION;
use crate::canonical::FileTime;

/// Everything in an archive is a multiple of this, in bytes.
pub(super) const BLOCK: usize = 512;

/// A header whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Verifies the checksum: the sum of all bytes, the checksum's own eight taken as spaces. Some old writers
    /// summed signed bytes; both sums are accepted.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self> {
        let header = Self(block);
        let recorded = number(header.field(148, 8))?;
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if recorded == i128::from(unsigned) || recorded == i128::from(signed) {
            Ok(header)
        } else {
            Err(Error::corrupt(OPERATION, "the checksum of a header does not match: the archive is damaged"))
        }
    }

    pub(super) fn field(&self, at: usize, len: usize) -> &'a [u8] {
        self.0.get(at..at + len).unwrap_or(&[])
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    pub(super) fn size(&self) -> Result<u64> {
        size(number(self.field(124, 12))?)
    }

    pub(super) fn mode(&self) -> Result<u32> {
        // Some writers put the file type bits here too.
        let bits = number(self.field(100, 8))? & 0o7777;
        u32::try_from(bits).map_err(|_| negative())
    }

    pub(super) fn uid(&self) -> Result<u32> {
        id(number(self.field(108, 8))?)
    }

    pub(super) fn gid(&self) -> Result<u32> {
        id(number(self.field(116, 8))?)
    }

    pub(super) fn mtime(&self) -> Result<FileTime> {
        let seconds = i64::try_from(number(self.field(136, 12))?).map_err(|_| too_large())?;
        Ok(FileTime { seconds, nanos: 0 })
    }

    /// The name: for POSIX archives joined with its prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = if self.is_posix() { until_nul(self.field(345, 155)) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    pub(super) fn user(&self) -> Vec<u8> {
        if self.has_names() { until_nul(self.field(265, 32)).to_vec() } else { Vec::new() }
    }

    pub(super) fn group(&self) -> Vec<u8> {
        if self.has_names() { until_nul(self.field(297, 32)).to_vec() } else { Vec::new() }
    }

    fn is_posix(&self) -> bool {
        self.field(257, 6) == b"ustar\0"
    }

    fn has_names(&self) -> bool {
        self.field(257, 5) == b"ustar"
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(&[])
}

/// A number: octal digits, padded with spaces or NULs, or base-256 when the first byte has its top bit set.
pub(super) fn number(field: &[u8]) -> Result<i128> {
    match field.first() {
        Some(&first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i128> {
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if rest.iter().any(|&b| b != 0 && b != b' ') || digits.iter().any(|&b| b > b'7') {
        return Err(Error::corrupt(OPERATION, "a number in a header is not a number"));
    }
    // Cannot overflow: a field has at most 12 digits.
    Ok(digits.iter().fold(0, |value, &digit| value * 8 + i128::from(digit - b'0')))
}

/// Two's complement, most significant byte first; the marker bit takes the place of the sign's copy.
fn base_256(field: &[u8]) -> Result<i128> {
    let mut value: i128 = if field.first().is_some_and(|b| b & 0x40 != 0) { -1 } else { 0 };
    for (at, &byte) in field.iter().enumerate() {
        let byte = if at == 0 { if value < 0 { byte | 0x80 } else { byte & 0x7f } } else { byte };
        if !(i128::MIN >> 9..=i128::MAX >> 9).contains(&value) {
            return Err(too_large());
        }
        value = (value << 8) | i128::from(byte);
    }
    Ok(value)
}

/// A size in bytes: not negative, and no more than a file can have.
pub(super) fn size(value: i128) -> Result<u64> {
    if value < 0 {
        return Err(negative());
    }
    i64::try_from(value).map(i64::cast_unsigned).map_err(|_| too_large())
}

/// A user or group number. The largest value of 32 bits means "leave as it is" to the kernel, so it is refused.
pub(super) fn id(value: i128) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ if value < 0 => Err(negative()),
        _ => Err(too_large()),
    }
}

/// Decimal digits, nothing else.
pub(super) fn decimal(text: &[u8]) -> Result<i128> {
    if text.is_empty() || text.len() > 30 || !text.iter().all(u8::is_ascii_digit) {
        return Err(Error::corrupt(OPERATION, "a number in an extended header is not a number"));
    }
    // Cannot overflow: 30 digits take 100 bits.
    Ok(text.iter().fold(0, |value, &digit| value * 10 + i128::from(digit - b'0')))
}

/// Decimal seconds with an optional fraction: `-1.5` is a second and a half before 1970.
pub(super) fn time(text: &[u8]) -> Result<FileTime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let whole = decimal(parts.next().unwrap_or(&[]))?;
    let fraction = parts.next().unwrap_or(b"0");
    if fraction.len() > 100 || !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Error::corrupt(OPERATION, "a time in an extended header is not a number"));
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |d| d - b'0');
        nanoseconds = nanoseconds * 10 + i128::from(digit);
    }
    let total = whole.checked_mul(1_000_000_000).and_then(|w| w.checked_add(nanoseconds));
    let total = total.ok_or_else(too_large)?;
    let total = if negative { -total } else { total };
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| too_large())?;
    let nanos = u32::try_from(total.rem_euclid(1_000_000_000)).map_err(|_| too_large())?;
    Ok(FileTime { seconds, nanos })
}

fn negative() -> Error {
    Error::corrupt(OPERATION, "a number that cannot be negative is")
}

fn too_large() -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION).message("a number in a header is larger than any real one")
}
