//! The reader against archives that are right, wrong, cut, damaged, and made of noise.

use backup_core::{Bytes, ErrorKind, Result};
use proptest::prelude::*;

use super::{Archive, Extent, Member, MemberKind};
use crate::canonical::FileTime;

fn checksummed(mut header: [u8; 512]) -> [u8; 512] {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn raw(name: &str, kind: u8, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0001750\0");
    header[116..124].copy_from_slice(b"0001751\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"14000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[265..269].copy_from_slice(b"user");
    checksummed(header)
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

fn member(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    [raw(name, kind, data.len()).as_slice(), &padded(data)].concat()
}

/// The records of an extended header.
fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (keyword, value) in records {
        let body = keyword.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        all.extend_from_slice(format!("{length} {keyword}=").as_bytes());
        all.extend_from_slice(value);
        all.push(b'\n');
    }
    all
}

/// An extended header with these records.
fn pax(of: &[(&str, &[u8])]) -> Vec<u8> {
    member("PaxHeaders/x", b'x', &records(of))
}

type Read = Vec<(Member, Vec<u8>)>;

fn read_in(archive: &[u8], chunk: usize) -> Result<Read> {
    let mut rest = Bytes::copy_from_slice(archive);
    let mut archive = Archive::new(move || {
        let piece = rest.split_to(chunk.min(rest.len()));
        Ok((!piece.is_empty()).then_some(piece))
    });
    let mut all = Vec::new();
    while let Some(member) = archive.next()? {
        let mut data = Vec::new();
        while let Some(piece) = archive.data(1000)? {
            data.extend_from_slice(&piece);
        }
        all.push((member, data));
    }
    Ok(all)
}

fn read(parts: &[Vec<u8>]) -> Result<Read> {
    read_in(&parts.concat(), 4096)
}

fn kind_of_error(parts: &[Vec<u8>]) -> ErrorKind {
    read(parts).expect_err("it must be refused").kind()
}

/// One of everything.
fn rich() -> Vec<u8> {
    let map = b"2\n10\n3\n600\n2\n";
    let sparse = [padded(map), b"abcde".to_vec()].concat();
    [
        member("plain", b'0', b"hello"),
        member("dir/", b'5', b""),
        pax(&[
            ("path", b"real/name"),
            ("mtime", b"1700000000.123456789"),
            ("uid", b"70000"),
            ("gname", b"g\xc3\xbc"),
            ("SCHILY.xattr.user.a%3Db%25c", b"\0\n=1"),
            ("SCHILY.acl.access", b"user::rw-,user:7:r--,group::r--,mask::r--,other::---"),
            ("atime", b"1"),
        ]),
        member("short", b'0', b"x"),
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"holes"),
            ("GNU.sparse.realsize", b"1000"),
        ]),
        member("GNUSparseFile.0/holes", b'0', &sparse),
        pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"5,2,50,1")]),
        member("holes01", b'0', b"abc"),
        member("././@LongLink", b'L', format!("{}\0", "l".repeat(300)).as_bytes()),
        member("lll", b'0', b"long"),
        member("fifo", b'6', b""),
        vec![0; 1024],
    ]
    .concat()
}

#[test]
fn every_field_is_read() {
    let all = read(&[rich()]).unwrap();
    let names: Vec<_> = all.iter().map(|(m, _)| String::from_utf8_lossy(&m.path).into_owned()).collect();
    assert_eq!(names[..6], ["plain", "dir", "real/name", "holes", "holes01", &"l".repeat(300)]);
    assert_eq!(all[0].1, b"hello");
    let (plain, rich) = (&all[0].0, &all[2].0);
    assert_eq!((plain.mode, plain.uid, plain.gid), (0o644, 1000, 1001));
    assert_eq!(plain.user, b"user");
    assert_eq!(plain.mtime, FileTime { seconds: 0o14_000_000_000, nanos: 0 });
    assert_eq!((rich.uid, rich.gid), (70000, 1001));
    assert_eq!(rich.group, "gü".as_bytes());
    assert_eq!(rich.mtime, FileTime { seconds: 1_700_000_000, nanos: 123_456_789 });
    assert_eq!(rich.xattrs[b"user.a=b%c".as_slice()], b"\0\n=1");
    assert!(rich.acl_access.is_some());
    let extent = |offset, length| Extent { offset, length };
    assert_eq!(all[3].0.sparse, Some(vec![extent(10, 3), extent(600, 2)]));
    assert_eq!((all[3].0.size, all[3].1.as_slice()), (1000, &b"abcde"[..]));
    assert_eq!(all[4].0.sparse, Some(vec![extent(5, 2), extent(50, 1)]));
    assert_eq!(all[5].1, b"long");
    assert_eq!(all[6].0.kind, MemberKind::Fifo);
}

#[test]
fn a_size_override_counts_once_and_for_the_member_alone() {
    // The long name's own size stands in its own header, whatever the extended header before it says.
    let mut content = raw("short", b'0', 0).to_vec();
    content.extend(padded(b"12345"));
    for headers in [
        [pax(&[("size", b"5")]), member("././@LongLink", b'L', b"name\0")],
        [member("././@LongLink", b'L', b"name\0"), pax(&[("size", b"5")])],
    ] {
        let all = read(&[headers.concat(), content.clone(), member("next", b'0', b"n")]).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0.path.as_slice(), all[0].1.as_slice()), (&b"name"[..], &b"12345"[..]));
        assert_eq!((all[1].0.path.as_slice(), all[1].1.as_slice()), (&b"next"[..], &b"n"[..]));
    }
    // A member hidden in another's data stays hidden.
    let hidden = member("hidden", b'0', b"evil");
    let all = read(&[pax(&[("comment", b"x")]), member("outer", b'0', &hidden)]).unwrap();
    assert_eq!((all.len(), all[0].1.len()), (1, 1024));
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let file = member("f", b'0', b"x");
    let long = |name: &[u8]| member("././@LongLink", b'L', name);
    let cases: [Vec<Vec<u8>>; 14] = [
        vec![pax(&[("path", b"a")]), pax(&[("path", b"b")]), file.clone()],
        vec![long(b"a\0"), long(b"a\0"), file.clone()],
        vec![long(b"a\0"), pax(&[("path", b"b")]), file.clone()],
        vec![pax(&[("path", b"a"), ("path", b"b")]), file.clone()],
        vec![pax(&[("size", b"1"), ("size", b"2")]), file.clone()],
        vec![pax(&[("size", b"-1")]), file.clone()],
        vec![pax(&[("size", b"99999999999999999999999")]), file.clone()],
        vec![pax(&[("size", b"512")]), member("d", b'5', b"")],
        vec![member("d", b'5', b"data")],
        vec![member("l", b'1', b"data")],
        vec![pax(&[("path", b"a")])],
        vec![pax(&[("path", b"a")]), vec![0; 1024]],
        vec![file.clone(), vec![0; 1024], file.clone()],
        vec![member("x", b'x', b"9 path=a\n7 a=bcd"), file],
    ];
    for (n, case) in cases.iter().enumerate() {
        assert_eq!(kind_of_error(case), ErrorKind::Corrupt, "case {n}");
    }
    for keyword in ["path", "SCHILY.xattr.user.a", "SCHILY.acl.access", "SCHILY.acl.default"] {
        let global = member("g", b'g', &records(&[(keyword, b"x")]));
        assert_eq!(kind_of_error(&[global]), ErrorKind::Unsupported, "{keyword}");
    }
}

#[test]
fn declared_lengths_are_limits_and_not_allocations() {
    let mut header = raw("x", b'x', 0);
    header[124..136].copy_from_slice(b"77777777777\0");
    assert_eq!(kind_of_error(&[checksummed(header).to_vec()]), ErrorKind::LimitExceeded);
    header[124] = 0xff; // base-256 and negative
    assert_eq!(kind_of_error(&[checksummed(header).to_vec()]), ErrorKind::Corrupt);
    header[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(kind_of_error(&[checksummed(header).to_vec()]), ErrorKind::LimitExceeded);
    header[124..136].copy_from_slice(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(kind_of_error(&[checksummed(header).to_vec()]), ErrorKind::Corrupt);

    let sparse = |map: &[u8], size: &[u8]| {
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size)];
        vec![pax(&records), member("s", b'0', map)]
    };
    for (map, size) in [
        (&b"1000000000000000000\n0\n0\n"[..], &b"9"[..]),
        (b"1\n5\n10\n", b"9"),
        (b"2\n5\n1\n4\n1\n", b"9"),
        (b"1\n9223372036854775807\n9223372036854775807\n", b"9223372036854775807"),
        (b"1\n18446744073709551615\n1\n", b"9"),
        (b"x\n", b"9"),
        (b"123456789012345678901234567890", b"9"),
    ] {
        assert_eq!(kind_of_error(&sparse(map, size)), ErrorKind::Corrupt, "{map:?}");
    }
}

#[test]
fn an_archive_may_end_between_members_and_nowhere_else() {
    let whole = [member("a", b'0', b"x"), pax(&[("path", b"b")]), member("y", b'0', b"z")].concat();
    for cut in 0..=whole.len() {
        let read = read_in(&whole[..cut], 100);
        match cut {
            0 => assert_eq!(read.unwrap().len(), 0),
            1024 => assert_eq!(read.unwrap().len(), 1),
            cut if cut == whole.len() => assert_eq!(read.unwrap().len(), 2),
            _ => assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt, "cut at {cut}"),
        }
    }
}

#[test]
fn times_before_1970_and_long_fractions_are_read() {
    for (text, seconds, nanos) in [
        (&b"-1.5"[..], -2, 500_000_000),
        (b"-0.000000001", -1, 999_999_999),
        (b"5", 5, 0),
        (b"5.", 5, 0),
        (b"5.1234567899999", 5, 123_456_789),
        (b"-9223372036854775808", i64::MIN, 0),
    ] {
        let all = read(&[pax(&[("mtime", text)]), member("f", b'0', b"")]).unwrap();
        assert_eq!(all[0].0.mtime, FileTime { seconds, nanos }, "{text:?}");
    }
    let negative = [b"-".as_slice(), &[b'9'; 30]].concat();
    for bad in [
        negative.as_slice(),
        b"",
        b"-",
        b"1e5",
        b"1.x",
        b"9223372036854775808",
        b"--1",
        b" 1",
        &[b'9'; 30],
        &[b'9'; 31],
    ] {
        assert_eq!(kind_of_error(&[pax(&[("mtime", bad)]), member("f", b'0', b"")]), ErrorKind::Corrupt);
    }
}

proptest! {
    #[test]
    fn noise_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), chunk in 1usize..700) {
        let _ = read_in(&bytes, chunk);
    }

    #[test]
    fn an_archive_reads_the_same_in_pieces_of_any_size(chunk in 1usize..3000) {
        prop_assert_eq!(read_in(&rich(), chunk).unwrap(), read_in(&rich(), usize::MAX).unwrap());
    }

    /// Damage with a repaired checksum reaches what lies behind it.
    #[test]
    fn a_damaged_archive_is_never_a_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        repair in any::<bool>(),
    ) {
        let mut archive = rich();
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
            if repair {
                let block = at / 512 * 512;
                let header: [u8; 512] = archive[block..block + 512].try_into().unwrap();
                if header[257..262] == *b"ustar" {
                    archive[block..block + 512].copy_from_slice(&checksummed(header));
                }
            }
        }
        archive.truncate(archive.len() - cut.index(archive.len()) / 8);
        if let Ok(all) = read_in(&archive, 1024) {
            let data: usize = all.iter().map(|(_, data)| data.len()).sum();
            prop_assert!(data <= archive.len());
        }
    }

    #[test]
    fn records_of_any_bytes_are_never_a_panic(records in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&[member("x", b'x', &records), member("f", b'0', b"x")]);
    }

    #[test]
    fn almost_right_records_are_never_a_panic(records in "([0-9]{1,3} (path|size|mtime|GNU.sparse.(map|offset|numbytes|major|minor|realsize))=[-0-9.,]{0,12}\n){0,8}") {
        let _ = read(&[member("x", b'x', records.as_bytes()), member("f", b'0', b"x")]);
    }
}

/// Numbers, and what is none, as somebody would write them who wants to break a reader.
fn hostile_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "-?[0-9]{1,40}",
        "-?[0-9]{1,31}\\.[0-9]{0,110}",
        "[0-9]{1,20}(,[0-9]{1,20}){0,9}",
        "(9223372036854775807|18446744073709551615|-9223372036854775808)(,1)?",
        "[0-9]{1,19}\n([0-9]{1,20}\n){0,9}",
        "[a-z/.\\\\:=%]{0,40}",
    ]
    .prop_map(String::into_bytes)
}

/// Headers of every kind with right checksums and wrong contents.
fn hostile_part() -> impl Strategy<Value = Vec<u8>> {
    let keyword = prop::sample::select(vec![
        "path",
        "linkpath",
        "size",
        "uid",
        "gid",
        "uname",
        "gname",
        "mtime",
        "SCHILY.xattr.user.a",
        "SCHILY.acl.access",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.name",
        "GNU.sparse.realsize",
        "GNU.sparse.size",
        "GNU.sparse.map",
        "GNU.sparse.offset",
        "GNU.sparse.numbytes",
        "GNU.sparse.numblocks",
    ]);
    let of = prop::collection::vec((keyword, hostile_value()), 0..6);
    let kind = prop::sample::select(b"0123456789xgLKSVM\0".to_vec());
    let fields = prop::collection::vec(
        (prop::sample::select(vec![100, 108, 116, 124, 136, 386, 398, 410, 483]), any::<[u8; 12]>()),
        0..3,
    );
    prop_oneof![
        (prop::bool::ANY, of).prop_map(|(global, of)| {
            let of: Vec<_> = of.iter().map(|(keyword, value)| (*keyword, value.as_slice())).collect();
            member("h", if global { b'g' } else { b'x' }, &records(&of))
        }),
        (kind, hostile_value()).prop_map(|(kind, data)| member("m", kind, &data)),
        (prop::sample::select(b"05S1".to_vec()), fields).prop_map(|(kind, fields)| {
            let mut header = raw("f", kind, 0);
            for (at, bytes) in fields {
                let length = if at < 124 { 8 } else { 12 };
                header[at..at + length].copy_from_slice(&bytes[..length]);
            }
            checksummed(header).to_vec()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_hostile_archive_is_neither_a_panic_nor_a_bomb(parts in prop::collection::vec(hostile_part(), 1..8), chunk in 1usize..2000) {
        let bytes = parts.concat();
        if let Ok(all) = read_in(&bytes, chunk) {
            for (member, data) in &all {
                let xattrs: usize = member.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
                let acls = [&member.acl_access, &member.acl_default].into_iter().flatten().map(Vec::len).sum::<usize>();
                let names = member.path.len() + member.link.len() + member.user.len() + member.group.len();
                let map = member.sparse.as_ref().map_or(0, |map| map.len() * size_of::<Extent>());
                // Two digits and a comma or so become an extent of 16 bytes.
                prop_assert!(xattrs + acls + names + data.len() <= 2 * bytes.len());
                prop_assert!(map <= 8 * bytes.len());
            }
            prop_assert!(all.len() <= bytes.len() / 512);
        }
    }
}
