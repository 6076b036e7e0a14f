//! Intset: a sorted array of integers of one width (`intset.c`).

use super::{Cursor, Each, Entry};
use crate::rdb::error::RdbError;
use crate::rdb::string::little_endian;

/// Passes every member to `each`.
pub(crate) fn intset(packed: &[u8], each: &mut Each<'_>) -> Result<(), RdbError> {
    let mut cursor = Cursor { rest: packed, what: "an intset is damaged" };
    let width = cursor.u32_le()?;
    let count = cursor.u32_le()?;
    if !matches!(width, 2 | 4 | 8) || count.checked_mul(width) != Some(cursor.rest.len()) {
        return cursor.fail();
    }
    cursor.rest.chunks_exact(width).try_for_each(|bytes| each(Entry::Int(little_endian(bytes))))
}

#[cfg(test)]
mod tests {
    use super::super::tests::entries;
    use super::*;

    #[test]
    fn members_come_in_order() {
        let packed = [2, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 5, 0];
        assert_eq!(entries(intset, &packed).unwrap(), ["-1", "5"]);
        assert!(entries(intset, &packed[..11]).is_err());
    }
}
