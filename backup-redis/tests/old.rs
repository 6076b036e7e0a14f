//! Encodings that no server of today writes, written here by hand, and read by us and by a server alike.
//!
//! `BACKUP_TEST_RDB_FIXTURES` may name a directory of recorded files of old servers: they are compared with
//! `redis-check-rdb`.
#![expect(clippy::unwrap_used, reason = "in a helper of a test, too, it fails the test")]

use std::path::Path;
use std::process::Command;

use backup_redis::rdb::{Encoding, KEYS, Prover, RdbReader, Record, Statistics, Value, Visitor};

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    match u32::try_from(bytes.len()).unwrap() {
        n @ 0..=63 => out.push(u8::try_from(n).unwrap()),
        n => {
            out.push(0x80);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

fn ziplist(entries: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    let (mut before, mut tail) = (0usize, 10);
    for entry in entries {
        tail = 10 + body.len();
        let start = body.len();
        if before < 254 {
            body.push(u8::try_from(before).unwrap());
        } else {
            body.push(254);
            body.extend_from_slice(&u32::try_from(before).unwrap().to_le_bytes());
        }
        let number = std::str::from_utf8(entry).ok().and_then(|t| t.parse::<i64>().ok());
        match number {
            Some(n @ 0..=12) => body.push(0xf1 + u8::try_from(n).unwrap()),
            Some(n) if i8::try_from(n).is_ok() => {
                body.push(0xfe);
                body.extend_from_slice(&i8::try_from(n).unwrap().to_le_bytes());
            }
            Some(n) if i16::try_from(n).is_ok() => {
                body.push(0xc0);
                body.extend_from_slice(&i16::try_from(n).unwrap().to_le_bytes());
            }
            Some(n) if (-8_388_608..8_388_608).contains(&n) => {
                body.push(0xf0);
                body.extend_from_slice(&n.to_le_bytes()[..3]);
            }
            Some(n) if i32::try_from(n).is_ok() => {
                body.push(0xd0);
                body.extend_from_slice(&i32::try_from(n).unwrap().to_le_bytes());
            }
            Some(n) => {
                body.push(0xe0);
                body.extend_from_slice(&n.to_le_bytes());
            }
            None if entry.len() < 64 => body.push(u8::try_from(entry.len()).unwrap()),
            None => {
                let n = u16::try_from(entry.len()).unwrap().to_be_bytes();
                body.extend_from_slice(&[0x40 | n[0], n[1]]);
            }
        }
        if number.is_none() {
            body.extend_from_slice(entry);
        }
        before = body.len() - start;
    }
    body.push(0xff);
    let mut out = u32::try_from(10 + body.len()).unwrap().to_le_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(tail).unwrap().to_le_bytes());
    out.extend_from_slice(&u16::try_from(entries.len()).unwrap().to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// An RDB of version 9 with a key of every old encoding. Its checksum is left out, as `rdbchecksum no` does.
fn old() -> Vec<u8> {
    let long = [b'x'; 300];
    let mut out = b"REDIS0009".to_vec();
    out.extend_from_slice(&[254, 0]);
    let mut key = |code: u8, name: &str, value: &dyn Fn(&mut Vec<u8>)| {
        out.push(code);
        string(&mut out, name.as_bytes());
        value(&mut out);
    };
    key(1, "list", &|o| {
        o.push(2);
        string(o, b"a");
        string(o, &long);
    });
    key(2, "set", &|o| {
        o.push(2);
        string(o, b"a");
        o.extend_from_slice(&[0xc0, 0xfe]);
    });
    key(3, "zset as text", &|o| {
        o.push(4);
        for (member, score) in [("a", "1.5"), ("b", "-3")] {
            string(o, member.as_bytes());
            string(o, score.as_bytes());
        }
        string(o, b"up");
        o.push(254);
        string(o, b"down");
        o.push(255);
    });
    key(4, "hash", &|o| {
        o.push(1);
        string(o, b"f");
        string(o, b"v");
    });
    key(5, "zset", &|o| {
        o.push(1);
        string(o, b"m");
        o.extend_from_slice(&0.1f64.to_le_bytes());
    });
    key(9, "zipmap", &|o| string(o, b"\x02\x03foo\x03\x02bar\0\0\x05hello\x05\x00world\xff"));
    key(10, "ziplist", &|o| {
        let entries: &[&[u8]] =
            &[b"a", b"7", b"-100", b"30000", b"8000000", b"2000000000", b"5000000000", &long, b"z"];
        string(o, &ziplist(entries));
    });
    key(11, "intset", &|o| string(o, &[4, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]));
    key(12, "zset as ziplist", &|o| string(o, &ziplist(&[b"a", b"1", b"b", b"2.25"])));
    key(13, "hash as ziplist", &|o| string(o, &ziplist(&[b"f", b"v", b"n", b"42"])));
    key(14, "quicklist", &|o| {
        o.push(2);
        string(o, &ziplist(&[b"1", b"two"]));
        string(o, &ziplist(&[b"three"]));
    });
    // "aaaa…" by LZF: one literal and references of one byte back.
    key(0, "lzf", &|o| o.extend_from_slice(&[0xc3, 5, 30, 0, b'a', 0xe0, 20, 0]));
    out.push(255);
    out.extend_from_slice(&[0; 8]);
    out
}

#[derive(Default)]
struct Values(Vec<(String, Value)>);

impl Visitor for Values {
    fn value(&mut self, record: &Record<'_>, raw: &[u8]) -> backup_core::Result<()> {
        let name = String::from_utf8(record.key.to_vec()?).unwrap();
        self.0.push((name, Value::decode(record.encoding, raw)?));
        Ok(())
    }
}

fn read<V: Visitor>(rdb: &[u8], mut visitor: V) -> V {
    let mut reader = RdbReader::new();
    reader.push(rdb, &mut visitor).unwrap();
    reader.finish().unwrap();
    visitor
}

fn bytes(items: &[&str]) -> Vec<Vec<u8>> {
    items.iter().map(|s| s.as_bytes().to_vec()).collect()
}

#[test]
fn old_encodings_are_decoded() {
    let values = read(&old(), Values::default()).0;
    let get = |name: &str| values.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap();
    assert_eq!(get("set"), Value::Set(bytes(&["a", "-2"])));
    assert_eq!(get("intset"), Value::Set(bytes(&["-1", "65536"])));
    assert_eq!(get("quicklist"), Value::List(bytes(&["1", "two", "three"])));
    assert_eq!(get("zset as ziplist"), Value::SortedSet(vec![(b"a".to_vec(), 1.0), (b"b".to_vec(), 2.25)]));
    let Value::SortedSet(members) = get("zset as text") else { panic!() };
    assert_eq!(
        members.iter().map(|m| m.1).collect::<Vec<_>>(),
        [1.5, -3.0, f64::INFINITY, f64::NEG_INFINITY]
    );
    let Value::Hash(fields) = get("zipmap") else { panic!() };
    assert_eq!((fields[0].value.as_slice(), fields[1].name.as_slice()), (&b"bar"[..], &b"hello"[..]));
    let Value::List(items) = get("ziplist") else { panic!() };
    assert_eq!(items[1..7], bytes(&["7", "-100", "30000", "8000000", "2000000000", "5000000000"]));
    assert_eq!(get("lzf"), Value::String(b"a".repeat(30)));
    assert_eq!(Encoding::from_code(6, backup_redis::rdb::Dialect::Redis), None);
}

#[test]
fn a_server_that_loads_old_encodings_proves_the_same() {
    let Some(program) = std::env::var_os("BACKUP_TEST_REDIS_BIN") else {
        backup_testkit::skip("no redis here (set BACKUP_TEST_REDIS_BIN, or run scripts/servers)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("dump.rdb"), old()).unwrap();
    let socket = dir.path().join("socket");
    let mut server = Command::new(program)
        .args(["--port", "0", "--save", "", "--dir"])
        .arg(dir.path())
        .arg("--unixsocket")
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let saved = save(&socket);
    server.kill().unwrap();
    server.wait().unwrap();
    saved.unwrap();
    let again = std::fs::read(dir.path().join("dump.rdb")).unwrap();
    assert!(again.starts_with(b"REDIS0010"), "the server has not saved");
    let (before, after) = (read(&old(), Prover::new()), read(&again, Prover::new()));
    assert_eq!(before.proofs()[KEYS], after.proofs()[KEYS]);
    assert_eq!(before.proofs()[KEYS].count, 12);
}

/// Makes the server at `socket` save what it loaded.
fn save(socket: &Path) -> std::io::Result<()> {
    use std::io::{Read as _, Write as _};
    let mut last = std::io::Error::other("no answer");
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let answered = std::os::unix::net::UnixStream::connect(socket).and_then(|mut stream| {
            stream.write_all(b"SAVE\r\n")?;
            let mut answer = [0; 64];
            let n = stream.read(&mut answer)?;
            if answer[..n].starts_with(b"+OK") { Ok(()) } else { Err(std::io::Error::other("not saved")) }
        });
        match answered {
            Ok(()) => return Ok(()),
            Err(e) => last = e,
        }
    }
    Err(last)
}

#[test]
fn recorded_files_have_the_counts_that_the_servers_tool_reports() {
    let (Some(dir), Some(check)) =
        (std::env::var_os("BACKUP_TEST_RDB_FIXTURES"), std::env::var_os("BACKUP_TEST_REDIS8_CHECK_RDB"))
    else {
        println!(
            "skipped: no recorded RDB files here (set BACKUP_TEST_RDB_FIXTURES and BACKUP_TEST_REDIS8_CHECK_RDB)"
        );
        return;
    };
    let mut files = Vec::new();
    let mut open = vec![std::path::PathBuf::from(dir)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rdb") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty());
    for file in files {
        let said = Command::new(&check).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let keys: u64 = said
            .lines()
            .find_map(|l| l.strip_prefix("[info] ")?.strip_suffix(" keys read")?.parse().ok())
            .unwrap_or_else(|| panic!("{}: {said}", file.display()));
        let rdb = std::fs::read(&file).unwrap();
        assert_eq!(read(&rdb, Statistics::new(chrono::Utc::now())).total().keys, keys, "{}", file.display());
        let proved: u64 = read(&rdb, Prover::new()).proofs().values().map(|p| p.count).sum();
        assert_eq!(proved, keys, "{}", file.display());
    }
}
