//! The header and trailer of a gzip member (RFC 1952, section 2.3).
//!
//! Our members carry one extra subfield (FEXTRA, section 2.3.1.1): identifier `B` `L`, 4 bytes, the length of the
//! whole member from its first header byte to its last trailer byte, as a little-endian number.

use crate::error::{Error, Result};

/// Length of the header our encoder writes.
pub(super) const OUR_HEADER: usize = 20;
/// CRC-32 and size of the plain bytes.
pub(super) const TRAILER: usize = 8;
/// Longest header that is accepted: an extra field, a name and a comment of foreign files, generously.
const MAX_HEADER: usize = 64 << 10;

const MAGIC: [u8; 2] = [0x1f, 0x8b];
const METHOD_DEFLATE: u8 = 8;
const OS_UNKNOWN: u8 = 255;
const SUBFIELD: [u8; 2] = *b"BL";

const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// A header as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Its own length in bytes.
    pub(super) len: usize,
    /// The length of the whole member, where the subfield says it.
    pub(super) member: Option<usize>,
}

/// The header of a member of `member_len` bytes.
pub(super) fn header(member_len: u32) -> [u8; OUR_HEADER] {
    let mut header = [0; OUR_HEADER];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = METHOD_DEFLATE;
    header[3] = FEXTRA;
    header[9] = OS_UNKNOWN;
    header[10] = 8; // length of the extra field: one subfield of 4 + 4 bytes
    header[12..14].copy_from_slice(&SUBFIELD);
    header[14] = 4;
    header[16..].copy_from_slice(&member_len.to_le_bytes());
    header
}

/// Reads a header from the beginning of `bytes`; `None` when it is not complete yet.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>> {
    let corrupt = |why: &'static str| Err(Error::corrupt("decompress gzip", why));
    if bytes.iter().zip(MAGIC).any(|(a, b)| *a != b) {
        return corrupt("this is not gzip data, or something else follows its end");
    }
    let Some(fixed) = bytes.first_chunk::<10>() else { return Ok(None) };
    let flags = fixed[3];
    if fixed[2] != METHOD_DEFLATE || flags & RESERVED != 0 {
        return corrupt("the gzip header names a method or flag that does not exist");
    }
    let header = rest_of_header(bytes, flags);
    if header.is_none() && bytes.len() > MAX_HEADER {
        return corrupt("the gzip header is longer than 64 KiB");
    }
    Ok(header)
}

fn rest_of_header(bytes: &[u8], flags: u8) -> Option<Header> {
    let mut at = 10;
    let mut member = None;
    if flags & FEXTRA != 0 {
        let (len, rest) = bytes.get(at..)?.split_first_chunk::<2>()?;
        let extra = rest.get(..usize::from(u16::from_le_bytes(*len)))?;
        member = member_len(extra);
        at += 2 + extra.len();
    }
    for flag in [FNAME, FCOMMENT] {
        if flags & flag != 0 {
            at += bytes.get(at..)?.iter().position(|b| *b == 0)? + 1;
        }
    }
    if flags & FHCRC != 0 {
        at += 2;
    }
    (bytes.len() >= at && at <= MAX_HEADER).then_some(Header { len: at, member })
}

/// Looks for our subfield among those of an extra field.
fn member_len(mut extra: &[u8]) -> Option<usize> {
    while let Some((head, rest)) = extra.split_first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let value = rest.get(..len)?;
        if head[..2] == SUBFIELD {
            return usize::try_from(u32::from_le_bytes(value.try_into().ok()?)).ok();
        }
        extra = &rest[len..];
    }
    None
}

/// The trailer for plain bytes of this checksum and size.
pub(super) fn trailer(crc: u32, plain_len: u32) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    trailer[..4].copy_from_slice(&crc.to_le_bytes());
    trailer[4..].copy_from_slice(&plain_len.to_le_bytes());
    trailer
}

/// Checksum and size (modulo 2³²) of a trailer.
pub(super) fn read_trailer(trailer: [u8; TRAILER]) -> (u32, u32) {
    let [crc @ .., _, _, _, _] = trailer;
    let [_, _, _, _, size @ ..] = trailer;
    (u32::from_le_bytes(crc), u32::from_le_bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_how_long_its_member_is() {
        let header = header(0x0001_0203);
        let expected = Header { len: OUR_HEADER, member: Some(0x0001_0203) };
        assert_eq!(parse(&header).unwrap(), Some(expected));
        for cut in 0..OUR_HEADER {
            assert_eq!(parse(&header[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_foreign_header_with_everything_is_read() {
        let mut header = vec![0x1f, 0x8b, 8, FEXTRA | FNAME | FCOMMENT | FHCRC, 1, 2, 3, 4, 2, 3];
        header.extend_from_slice(&[6, 0, b'B', b'C', 2, 0, 7, 7]);
        header.extend_from_slice(b"name\0comment\0\xaa\xbb");
        assert_eq!(parse(&header).unwrap(), Some(Header { len: header.len(), member: None }));
    }

    #[test]
    fn an_endless_name_is_refused() {
        let mut header = vec![0x1f, 0x8b, 8, FNAME, 0, 0, 0, 0, 0, 3];
        header.resize(MAX_HEADER + 1, b'x');
        assert!(parse(&header).is_err());
    }
}
