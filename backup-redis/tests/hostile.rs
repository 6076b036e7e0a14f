//! Bytes from anywhere: read or refused, without a panic and in little memory.
#![expect(clippy::unwrap_used, reason = "in a helper of a test, too, it fails the test")]

use std::fs;
use std::path::Path;

use backup_redis::fuzz::{handshake, rdb};
use backup_redis::rdb::{Encoding, Prover, RdbReader, Statistics, Value};
use proptest::prelude::*;

/// Recorded bytes of `tests/corpus/<kind>`, with the names of their files.
fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    found.sort();
    assert!(found.len() > 3);
    found
}

/// Cases of each property: 2000, and 100,000 with `BACKUP_TORTURE`.
fn cases() -> u32 {
    if std::env::var_os("BACKUP_TORTURE").is_some() { 100_000 } else { 2000 }
}

/// A file of a corpus with some bytes changed, inserted or cut away.
fn changed(kind: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let files: Vec<_> = corpus(kind).into_iter().map(|(_, bytes)| bytes).collect();
    let change = (any::<proptest::sample::Index>(), any::<u8>(), 0u8..4);
    (proptest::sample::select(files), proptest::collection::vec(change, 0..6)).prop_map(
        |(mut bytes, changes)| {
            for (at, byte, how) in changes {
                let at = at.index(bytes.len().max(1));
                match how {
                    0 if at < bytes.len() => bytes[at] = byte,
                    1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
                    2 => bytes.insert(at, byte),
                    _ => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
                }
            }
            bytes
        },
    )
}

#[test]
fn recorded_bytes_are_sound_and_what_is_cut_short_is_not() {
    for (name, bytes) in corpus("rdb") {
        assert!(rdb(&bytes), "{name}");
        for cut in 0..bytes.len() {
            assert!(!rdb(&bytes[..cut]), "{name} cut at {cut}");
        }
        let mut statistics = Statistics::new(chrono::Utc::now());
        let mut reader = RdbReader::new();
        reader.push(&bytes, &mut statistics).unwrap();
        // What `redis-check-rdb` counts, too.
        assert_eq!((statistics.total().keys, statistics.total().expires), (19, 2), "{name}");
    }
    for (name, bytes) in corpus("handshake") {
        assert_eq!(handshake(&bytes), ["length", "marked"].contains(&name.as_str()), "{name}");
    }
}

fn length(out: &mut Vec<u8>, n: u64) {
    out.push(0x81);
    out.extend_from_slice(&n.to_be_bytes());
}

/// Something like a record: a type, a key, and bytes that may be its value.
fn record() -> impl Strategy<Value = Vec<u8>> {
    (0u8..26, proptest::collection::vec(any::<u8>(), 0..8), proptest::collection::vec(0u8..20, 0..120))
        .prop_map(|(code, key, value)| {
            let mut out = vec![code, u8::try_from(key.len()).unwrap()];
            out.extend_from_slice(&key);
            out.extend_from_slice(&value);
            out
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn any_bytes_after_the_magic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        rdb(&[b"REDIS0011", &body[..]].concat());
        rdb(&[b"VALKEY080", &body[..]].concat());
    }

    #[test]
    fn things_like_records(records in proptest::collection::vec(record(), 1..6)) {
        rdb(&[b"REDIS0012", &records.concat()[..], &[255; 9]].concat());
    }

    #[test]
    fn recorded_snapshots_with_changes(bytes in changed("rdb")) {
        rdb(&bytes);
        // Without its checksum, a change is not noticed at the end and gets further.
        let end = bytes.len().saturating_sub(8);
        rdb(&[&bytes[..end], &[0; 8]].concat());
    }

    #[test]
    fn recorded_answers_with_changes(bytes in changed("handshake")) {
        handshake(&bytes);
    }

    #[test]
    fn any_answers(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        handshake(&bytes);
        handshake(&[b"+FULLRESYNC x 0\r\n", &bytes[..]].concat());
    }

    #[test]
    fn any_value_of_any_encoding(code in 0u8..26, raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(encoding) = Encoding::from_code(code, backup_redis::rdb::Dialect::Redis) {
            let _ = Value::decode(encoding, &raw);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn how_the_bytes_are_cut_does_not_matter(seed in any::<u64>(), step in 1usize..5000) {
        // Strings and sets of many sizes, some larger than the window.
        let mut rdb = b"REDIS0009\xfe\x00".to_vec();
        let mut n = seed;
        for key in 0..20u32 {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let size = usize::try_from(n >> 48).unwrap() * if key % 7 == 0 { 4 } else { 1 };
            rdb.push(if key % 3 == 0 { 2 } else { 0 });
            rdb.push(4);
            rdb.extend_from_slice(&key.to_be_bytes());
            if key % 3 == 0 {
                length(&mut rdb, (size / 8) as u64);
                for member in 0..size / 8 {
                    rdb.push(7);
                    rdb.extend_from_slice(&(member as u64).to_be_bytes()[1..]);
                }
            } else {
                length(&mut rdb, size as u64);
                rdb.resize(rdb.len() + size, b'v');
            }
        }
        rdb.extend_from_slice(&[255, 0, 0, 0, 0, 0, 0, 0, 0]);
        let proof = |step: usize, window: usize| {
            let mut prover = Prover::new();
            let mut reader = RdbReader::new().window(window);
            for piece in rdb.chunks(step) {
                reader.push(piece, &mut prover).unwrap();
            }
            reader.finish().unwrap();
            prover.proofs()
        };
        let whole = proof(rdb.len(), 64 << 20);
        prop_assert_eq!(&whole, &proof(step, 0));
        prop_assert_eq!(&whole, &proof(step * 50, 1 << 20));
    }
}

#[test]
fn what_a_stream_declares_costs_no_memory() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    for declared in ["*99999999999\r\n", "$67108864\r\n", "+FULLRESYNC x 0\r\n$99999999999\r\n"] {
        handshake(&[declared.as_bytes(), &b":1\r\n".repeat(25_000)].concat());
    }
    for code in 0..26u8 {
        for declared in [u64::MAX, u64::from(u32::MAX), 1 << 40] {
            // A huge key; a huge value of every type; a compressed string that claims to be huge.
            let mut key = b"REDIS0012".to_vec();
            key.push(code);
            length(&mut key, declared);
            let mut value = b"REDIS0012".to_vec();
            value.extend_from_slice(&[code, 1, b'k']);
            length(&mut value, declared);
            let mut packed = b"REDIS0012".to_vec();
            packed.extend_from_slice(&[code, 1, b'k', 0xc3, 10]);
            length(&mut packed, declared);
            // Element by element takes time; a single string that never ends is where memory would go.
            let single = matches!(code, 0 | 9..=13 | 16 | 17 | 20);
            for (head, pieces) in [(key, 400), (value, if single { 1500 } else { 30 }), (packed, 30)] {
                let mut reader = RdbReader::new();
                let mut prover = Prover::new();
                let more = vec![7u8; 64 * 1024];
                let mut passed = reader.push(&head, &mut prover).is_ok();
                for _ in 0..pieces {
                    passed = passed && reader.push(&more, &mut prover).is_ok();
                }
                assert!(reader.finish().is_err());
            }
        }
    }
    let grown = peak() - before;
    assert!(grown < 64 * 1024, "{grown} KiB");
}
