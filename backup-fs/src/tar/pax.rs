//! Records of extended headers (IEEE Std 1003.1-2017, `pax`, "pax Extended Header").
//!
//! A record is `<length> <keyword>=<value>\n`; the length is decimal and counts the whole record, itself included.

use crate::canonical::FileTime;

/// Bytes of records one member may have. It bounds what a reader must hold; the extended attributes of a file
/// rarely reach a thousandth of it.
pub(crate) const MAX_RECORDS: usize = 1024 * 1024;

/// Records, in the order they were pushed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records(Vec<u8>);

impl Records {
    /// Appends a record. The keyword has no `=`.
    pub(crate) fn push(&mut self, keyword: &[u8], value: &[u8]) {
        // Blank, equals sign and newline.
        let rest = keyword.len() + value.len() + 3;
        let mut length = rest + digits(rest);
        if digits(length) > digits(rest) {
            length = rest + digits(length);
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(keyword);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// Appends the record of an extended attribute.
    pub(crate) fn push_xattr(&mut self, name: &[u8], value: &[u8]) {
        let mut keyword = b"SCHILY.xattr.".to_vec();
        for &byte in name {
            match byte {
                b'%' => keyword.extend_from_slice(b"%25"),
                b'=' => keyword.extend_from_slice(b"%3D"),
                _ => keyword.push(byte),
            }
        }
        self.push(&keyword, value);
    }

    /// The bytes of all records.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A time as decimal seconds: `1700000000.000000001`, `-0.5`, `7`. No trailing zeros.
pub(crate) fn time(time: FileTime) -> String {
    // Seconds are rounded down, so a fraction of a negative time counts upwards: -1 s + 0.5 s is -0.5.
    let (sign, seconds, nanos) = if time.seconds < 0 && time.nanos > 0 {
        ("-", (time.seconds + 1).unsigned_abs(), 1_000_000_000 - time.nanos)
    } else if time.seconds < 0 {
        ("-", time.seconds.unsigned_abs(), 0)
    } else {
        ("", time.seconds.unsigned_abs(), time.nanos)
    };
    if nanos == 0 {
        return format!("{sign}{seconds}");
    }
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

fn digits(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_length_counts_its_own_digits() {
        for (value, expected) in [(0, "5 k=\n"), (4, "9 k=vvvv\n"), (5, "11 k=vvvvv\n"), (6, "12 k=vvvvvv\n")]
        {
            let mut records = Records::default();
            records.push(b"k", "v".repeat(value).as_bytes());
            assert_eq!(std::str::from_utf8(records.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn a_time_is_written_in_decimals() {
        for (seconds, nanos, expected) in [
            (0, 0, "0"),
            (1_700_000_000, 1, "1700000000.000000001"),
            (1, 500_000_000, "1.5"),
            (-1, 500_000_000, "-0.5"),
            (-2, 0, "-2"),
            (-2, 1, "-1.999999999"),
            (i64::MIN, 0, "-9223372036854775808"),
        ] {
            assert_eq!(time(FileTime { seconds, nanos }), expected);
        }
    }

    proptest! {
        #[test]
        fn records_are_found_again_by_their_lengths(
            pairs in proptest::collection::vec(
                ("[a-z.]{1,30}", proptest::collection::vec(any::<u8>(), 0..1200)), 0..8),
        ) {
            let mut records = Records::default();
            for (keyword, value) in &pairs {
                records.push(keyword.as_bytes(), value);
            }
            let mut rest = records.as_bytes();
            for (keyword, value) in &pairs {
                let blank = rest.iter().position(|&b| b == b' ').unwrap();
                let length: usize = std::str::from_utf8(&rest[..blank]).unwrap().parse().unwrap();
                let (record, after) = rest.split_at(length);
                let expected = [&record[..=blank], keyword.as_bytes(), b"=", value, b"\n"].concat();
                prop_assert_eq!(record, &expected[..]);
                rest = after;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_time_reads_back_as_itself(seconds in -10_000_000_000i64..10_000_000_000, nanos in 0u32..1_000_000_000) {
            let text = time(FileTime { seconds, nanos });
            let (sign, magnitude) = text.strip_prefix('-').map_or((1, text.as_str()), |rest| (-1, rest));
            let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
            let total = whole.parse::<i128>().unwrap() * 1_000_000_000
                + format!("{fraction:0<9}").parse::<i128>().unwrap();
            prop_assert_eq!(sign * total, i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
        }
    }
}
