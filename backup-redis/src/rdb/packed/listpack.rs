//! Listpack, since Redis 5 for streams and since 7.0 for everything small (`listpack.c`).
//!
//! Total bytes (4), number of entries (2, 65535 = unknown), entries, `ff`. An entry is its encoding, its content
//! and its own length once more for walking backwards.

use super::{Cursor, Each, Entry};
use crate::rdb::error::RdbError;
use crate::rdb::string::little_endian;

/// Passes every entry to `each`.
pub(crate) fn listpack(packed: &[u8], each: &mut Each<'_>) -> Result<(), RdbError> {
    let mut cursor = Cursor { rest: packed, what: "a listpack is damaged" };
    if cursor.u32_le()? != packed.len() {
        return cursor.fail();
    }
    cursor.take(2)?;
    loop {
        let before = cursor.rest.len();
        let first = cursor.byte()?;
        let entry = match first {
            0xff => return if cursor.rest.is_empty() { Ok(()) } else { cursor.fail() },
            0..=0x7f => Entry::Int(i64::from(first)),
            0x80..=0xbf => Entry::Bytes(cursor.take(usize::from(first & 0x3f))?),
            0xc0..=0xdf => {
                let n = (i64::from(first & 0x1f) << 8) | i64::from(cursor.byte()?);
                Entry::Int(if n >= 1 << 12 { n - (1 << 13) } else { n })
            }
            0xe0..=0xef => {
                let n = (usize::from(first & 0x0f) << 8) | usize::from(cursor.byte()?);
                Entry::Bytes(cursor.take(n)?)
            }
            0xf0 => {
                let n = cursor.u32_le()?;
                Entry::Bytes(cursor.take(n)?)
            }
            0xf1 => Entry::Int(little_endian(cursor.take(2)?)),
            0xf2 => Entry::Int(little_endian(cursor.take(3)?)),
            0xf3 => Entry::Int(little_endian(cursor.take(4)?)),
            0xf4 => Entry::Int(little_endian(cursor.take(8)?)),
            _ => return cursor.fail(),
        };
        let length = before - cursor.rest.len();
        cursor.take(match length {
            0..=0x7f => 1,
            0x80..=0x3fff => 2,
            0x4000..=0x1f_ffff => 3,
            0x20_0000..=0xfff_ffff => 4,
            _ => 5,
        })?;
        each(entry)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entries;
    use super::*;

    #[test]
    fn every_encoding_is_read() {
        let long = vec![b'x'; 100];
        let mut body = vec![5, 1, 0x82, b'h', b'i', 3, 0xdf, 0xff, 2, 0xf1, 0, 0x80, 3];
        body.extend_from_slice(&[0xf2, 1, 0, 0, 4, 0xf3, 0xff, 0xff, 0xff, 0xff, 5]);
        body.extend_from_slice(&[0xf4, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
        body.extend_from_slice(&[0xe0, 100]);
        body.extend_from_slice(&long);
        body.push(102);
        body.extend_from_slice(&[0xf0, 1, 0, 0, 0, b'y', 6, 0xff]);
        let mut packed = (u32::try_from(body.len()).unwrap() + 6).to_le_bytes().to_vec();
        packed.extend_from_slice(&[8, 0]);
        packed.extend_from_slice(&body);
        let long = String::from_utf8(long).unwrap();
        assert_eq!(
            entries(listpack, &packed).unwrap(),
            ["5", "hi", "-1", "-32768", "1", "-1", "1", long.as_str(), "y"]
        );
        for cut in 0..packed.len() {
            assert!(entries(listpack, &packed[..cut]).is_err());
        }
    }
}
