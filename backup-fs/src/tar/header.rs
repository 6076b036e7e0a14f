//! The 512-byte `ustar` header block (IEEE Std 1003.1-2017, `pax`, "ustar Interchange Format").

/// Size of a block, in bytes.
pub(crate) const BLOCK: usize = 512;
/// Longest name, or link, without an extended header.
pub(crate) const NAME_MAX: usize = 100;
/// Longest directory part of a name without an extended header.
const PREFIX_MAX: usize = 155;
/// Longest user or group name without an extended header; a NUL follows it.
pub(crate) const OWNER_MAX: usize = 31;
/// Digits of the small numeric fields (mode, uid, gid) and of the large ones (size, mtime).
const SMALL_DIGITS: u32 = 7;
const LARGE_DIGITS: u32 = 11;
/// First value that a small numeric field cannot hold.
pub(crate) const SMALL_LIMIT: u64 = 1 << (3 * SMALL_DIGITS);
/// First value that a large numeric field cannot hold: 8 GiB.
pub(crate) const LARGE_LIMIT: u64 = 1 << (3 * LARGE_DIGITS);

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TypeFlag {
    Regular = b'0',
    HardLink = b'1',
    Symlink = b'2',
    Directory = b'5',
    Fifo = b'6',
    Extended = b'x',
}

/// The fields of a header. What does not fit is cut (text) or written as zero (numbers): the caller has put the
/// true value into an extended header, which overrides it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'a> {
    pub(crate) typeflag: TypeFlag,
    pub(crate) name: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) link: &'a [u8],
    pub(crate) user: &'a [u8],
    pub(crate) group: &'a [u8],
}

impl Header<'_> {
    /// The block.
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let (prefix, name) = split_name(self.name).unwrap_or((b"", self.name));
        text(&mut block[0..100], name);
        octal(&mut block[100..108], u64::from(self.mode & 0o7777));
        octal(&mut block[108..116], self.uid);
        octal(&mut block[116..124], self.gid);
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], u64::try_from(self.mtime).unwrap_or(0));
        block[156] = self.typeflag as u8;
        text(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        text(&mut block[265..296], self.user);
        text(&mut block[297..328], self.group);
        octal(&mut block[329..337], 0);
        octal(&mut block[337..345], 0);
        text(&mut block[345..500], prefix);

        // The sum is taken with blanks in its own place, and written as six digits, NUL, blank.
        block[148..156].fill(b' ');
        let sum = block.iter().map(|&b| u64::from(b)).sum();
        octal(&mut block[148..155], sum);
        block
    }
}

/// Divides a name into `prefix` and `name` fields; `None` if it needs an extended header.
///
/// The cut is made as far to the left as possible, as every other writer makes it or not: readers join the two.
pub(crate) fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME_MAX {
        return Some((b"", name));
    }
    // The name part may not be empty, so the slash that ends a directory's name is no place to cut.
    let earliest = name.len() - NAME_MAX - 1;
    let (at, _) = name
        .iter()
        .enumerate()
        .skip(earliest.max(1))
        .take_while(|(at, _)| *at <= PREFIX_MAX && *at + 1 < name.len())
        .find(|(_, byte)| **byte == b'/')?;
    Some((&name[..at], &name[at + 1..]))
}

fn text(field: &mut [u8], value: &[u8]) {
    let n = value.len().min(field.len());
    field[..n].copy_from_slice(&value[..n]);
}

/// Leading zeros, then NUL in the last byte; zero if the value has too many digits.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let mut rest = if value >> (3 * digits) == 0 { value } else { 0 };
    for byte in field[..digits].iter_mut().rev() {
        *byte = b'0' + (rest & 7).to_le_bytes()[0];
        rest >>= 3;
    }
    field[digits] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(name: &[u8]) -> Header<'_> {
        Header {
            typeflag: TypeFlag::Regular,
            name,
            mode: 0o4755,
            uid: 1000,
            gid: SMALL_LIMIT - 1,
            size: LARGE_LIMIT - 1,
            mtime: 1_700_000_000,
            link: b"",
            user: b"alice",
            group: b"staff",
        }
    }

    fn number(field: &[u8]) -> u64 {
        let text = std::str::from_utf8(field).unwrap().trim_end_matches(['\0', ' ']);
        u64::from_str_radix(text, 8).unwrap()
    }

    #[test]
    fn the_fields_are_where_the_standard_has_them() {
        let block = header(b"a/b").encode();
        assert_eq!(&block[..4], b"a/b\0");
        assert_eq!(&block[100..108], b"0004755\0");
        assert_eq!(number(&block[108..116]), 1000);
        assert_eq!(&block[116..124], b"7777777\0");
        assert_eq!(&block[124..136], b"77777777777\0");
        assert_eq!(number(&block[136..148]), 1_700_000_000);
        assert_eq!(block[156], b'0');
        assert_eq!(&block[257..265], b"ustar\x0000");
        assert_eq!(&block[265..271], b"alice\0");
        assert_eq!(&block[297..303], b"staff\0");
    }

    #[test]
    fn what_does_not_fit_is_zero_and_never_another_value() {
        let block = Header { size: LARGE_LIMIT, uid: SMALL_LIMIT, mtime: -1, ..header(b"a") }.encode();
        assert_eq!(number(&block[124..136]), 0);
        assert_eq!(number(&block[108..116]), 0);
        assert_eq!(number(&block[136..148]), 0);
    }

    proptest! {
        #[test]
        fn a_split_name_joins_to_itself(
            parts in proptest::collection::vec("[a-z]{1,90}", 1..6), dir in any::<bool>(),
        ) {
            let mut name = parts.join("/").into_bytes();
            if dir { name.push(b'/'); }
            if let Some((prefix, rest)) = split_name(&name) {
                prop_assert!(prefix.len() <= PREFIX_MAX && rest.len() <= NAME_MAX && !rest.is_empty());
                let joined = if prefix.is_empty() { rest.to_vec() } else { [prefix, b"/", rest].concat() };
                prop_assert_eq!(joined, name);
            } else {
                prop_assert!(name.len() > NAME_MAX);
            }
        }

        #[test]
        fn the_checksum_is_that_of_the_block(name in proptest::collection::vec(1u8.., 1..300), size in any::<u64>()) {
            let block = Header { size, ..header(&name) }.encode();
            let mut blank = block;
            blank[148..156].fill(b' ');
            prop_assert_eq!(number(&block[148..156]), blank.iter().map(|&b| u64::from(b)).sum::<u64>());
        }
    }
}
