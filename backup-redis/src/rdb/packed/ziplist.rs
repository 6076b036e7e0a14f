//! Ziplist, for everything small up to Redis 6.2 (`ziplist.c`).
//!
//! Total bytes (4), offset of the last entry (4), number of entries (2), entries, `ff`. An entry is the length of
//! the one before it, its encoding, and its content. Lengths of strings are big-endian, all else little-endian.

use super::{Cursor, Each, Entry};
use crate::rdb::error::RdbError;
use crate::rdb::string::little_endian;

/// Passes every entry to `each`.
pub(crate) fn ziplist(packed: &[u8], each: &mut Each<'_>) -> Result<(), RdbError> {
    let mut cursor = Cursor { rest: packed, what: "a ziplist is damaged" };
    if cursor.u32_le()? != packed.len() {
        return cursor.fail();
    }
    cursor.take(6)?;
    loop {
        match cursor.byte()? {
            0xff => return if cursor.rest.is_empty() { Ok(()) } else { cursor.fail() },
            0xfe => {
                cursor.take(4)?;
            }
            _ => {}
        }
        let first = cursor.byte()?;
        let entry = match first {
            0..=0x3f => Entry::Bytes(cursor.take(usize::from(first))?),
            0x40..=0x7f => {
                let n = (usize::from(first & 0x3f) << 8) | usize::from(cursor.byte()?);
                Entry::Bytes(cursor.take(n)?)
            }
            0x80 => {
                let n = u32::from_be_bytes(cursor.array()?);
                Entry::Bytes(cursor.take(usize::try_from(n).unwrap_or(usize::MAX))?)
            }
            0xc0 => Entry::Int(little_endian(cursor.take(2)?)),
            0xd0 => Entry::Int(little_endian(cursor.take(4)?)),
            0xe0 => Entry::Int(little_endian(cursor.take(8)?)),
            0xf0 => Entry::Int(little_endian(cursor.take(3)?)),
            0xfe => Entry::Int(little_endian(cursor.take(1)?)),
            0xf1..=0xfd => Entry::Int(i64::from(first & 0x0f) - 1),
            _ => return cursor.fail(),
        };
        each(entry)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entries;
    use super::*;

    #[test]
    fn every_encoding_is_read() {
        let mut body = vec![0, 2, b'h', b'i', 4, 0xf1, 2, 0xfd, 2, 0xfe, 0x80, 3, 0xc0, 0, 0x80];
        body.extend_from_slice(&[4, 0xf0, 0xff, 0xff, 0xff, 5, 0xd0, 1, 0, 0, 0]);
        body.extend_from_slice(&[6, 0xe0, 2, 0, 0, 0, 0, 0, 0, 0, 0xfe, 9, 0, 0, 0, 0x40, 1, b'x']);
        body.extend_from_slice(&[8, 0x80, 0, 0, 0, 1, b'y', 0xff]);
        let mut packed = (u32::try_from(body.len()).unwrap() + 10).to_le_bytes().to_vec();
        packed.extend_from_slice(&[0; 6]);
        packed.extend_from_slice(&body);
        assert_eq!(
            entries(ziplist, &packed).unwrap(),
            ["hi", "0", "12", "-128", "-32768", "-1", "1", "2", "x", "y"]
        );
    }
}
