//! Zipmap, for small hashes up to Redis 2.4 (`zipmap.c`).
//!
//! A byte for the number of pairs, then length and bytes of a field, length, free bytes after and bytes of its
//! value, and so on, `ff`. A length is one byte, or `fe` and four (little-endian).

use super::{Cursor, Each, Entry};
use crate::rdb::error::RdbError;

/// Passes every field and value, alternating, to `each`.
pub(crate) fn zipmap(packed: &[u8], each: &mut Each<'_>) -> Result<(), RdbError> {
    let mut cursor = Cursor { rest: packed, what: "a zipmap is damaged" };
    cursor.byte()?;
    loop {
        let first = cursor.byte()?;
        if first == 0xff {
            return if cursor.rest.is_empty() { Ok(()) } else { cursor.fail() };
        }
        let length = length(&mut cursor, first)?;
        let field = cursor.take(length)?;
        each(Entry::Bytes(field))?;
        let first = cursor.byte()?;
        let length = self::length(&mut cursor, first)?;
        let free = cursor.byte()?;
        let value = cursor.take(length)?;
        cursor.take(usize::from(free))?;
        each(Entry::Bytes(value))?;
    }
}

fn length(cursor: &mut Cursor<'_>, first: u8) -> Result<usize, RdbError> {
    match first {
        0xff => cursor.fail(),
        0xfe => cursor.u32_le(),
        n => Ok(usize::from(n)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entries;
    use super::*;

    #[test]
    fn the_example_of_the_servers_source() {
        // "foo" => "bar", "hello" => "world", with free bytes after the first value.
        let packed = b"\x02\x03foo\x03\x02bar??\x05hello\x05\x00world\xff";
        assert_eq!(entries(zipmap, packed).unwrap(), ["foo", "bar", "hello", "world"]);
        assert!(entries(zipmap, &packed[..packed.len() - 1]).is_err());
    }
}
