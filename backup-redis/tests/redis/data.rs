//! Data of every type and encoding, and what a server says of its content.

use std::collections::BTreeMap;

use crate::support::Client;

/// The major and minor version of the server, Valkey's counted as the Redis it began as.
pub(crate) fn version(client: &mut Client) -> (u32, u32) {
    let info = client.ok(&["INFO", "server"]).text();
    let version = info.lines().find_map(|l| l.strip_prefix("redis_version:")).expect("a version");
    let mut numbers = version.split('.').map(|n| n.parse().expect("a number"));
    (numbers.next().expect("major"), numbers.next().expect("minor"))
}

/// Writes keys of every type and encoding this server has into databases 0 and 3, some with expiry times far off.
pub(crate) fn fill(client: &mut Client) {
    let version = version(client);
    client.ok(&["SELECT", "3"]);
    client.ok(&["SET", "in-db-3", "yes"]);
    client.ok(&["SET", "soon-in-db-3", "x", "EX", "100000"]);
    client.ok(&["SELECT", "0"]);
    strings(client);
    collections(client);
    stream(client);
    if version >= (7, 0) {
        let library =
            "#!lua name=mylib\nredis.register_function('myfunc', function(keys, args) return 'hi' end)";
        client.ok(&["FUNCTION", "LOAD", library]);
    }
    if version >= (7, 4) {
        client.ok(&["HSET", "hash:ttl:small", "a", "1", "b", "2", "c", "3"]);
        client.ok(&["HPEXPIREAT", "hash:ttl:small", "4102444800000", "FIELDS", "2", "a", "c"]);
        for n in 0..600 {
            client.ok(&["HSET", "hash:ttl:large", &format!("field{n}"), &format!("value{n}")]);
        }
        client.ok(&["HEXPIREAT", "hash:ttl:large", "4102444800", "FIELDS", "2", "field1", "field77"]);
        client.ok(&["HEXPIREAT", "hash:ttl:large", "4102445800", "FIELDS", "1", "field5"]);
    }
}

fn strings(client: &mut Client) {
    for (key, value) in [
        ("string:int8", "12"),
        ("string:int16", "-12345"),
        ("string:int32", "1234567890"),
        ("string:int64", "1234567890123"),
        ("string:short", "hello"),
        ("string:empty", ""),
        ("12345", "a key that is a number"),
        ("", "the key without a name"),
        ("string:float", "3.0e3"),
    ] {
        client.ok(&["SET", key, value]);
    }
    client.ok(&["SET", "string:lzf", &"abcabcabd".repeat(500)]);
    client.ok(&["SET", &format!("key:lzf:{}", "x".repeat(200)), "a key that compresses"]);
    client.ok(&[&b"SET"[..], b"string:binary\xff\x00\r\n", &[0, 255, 13, 10, 128]]);
    let noise: Vec<u8> =
        (0..3_000_000u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    client.ok(&[&b"SET"[..], b"string:3mb", &noise]);
    client.ok(&["SET", "string:4mb:lzf", &"z".repeat(4 << 20)]);
    client.ok(&["SET", "expires:far", "x", "PX", "4000000123"]);
    client.ok(&["SETBIT", "bits", "70000", "1"]);
    client.ok(&["PFADD", "hll", "a", "b", "c"]);
}

fn collections(client: &mut Client) {
    client.ok(&["RPUSH", "list:small", "a", "1", "-7", "70000", "5000000000", "b"]);
    for n in 0..3000 {
        client.ok(&["RPUSH", "list:large", &format!("item number {n}")]);
    }
    client.ok(&["RPUSH", "list:long-items", &"q".repeat(9000), "short", &"w".repeat(70_000)]);
    client.ok(&["SADD", "set:ints", "1", "-2", "30000", "40000"]);
    client.ok(&["SADD", "set:wide-ints", "1", "5000000000"]);
    client.ok(&["SADD", "set:small", "a", "b", "3", "long member with many bytes in it"]);
    client.ok(&[
        "ZADD",
        "zset:small",
        "1",
        "a",
        "2.5",
        "b",
        "-inf",
        "c",
        "inf",
        "d",
        "-0.0",
        "e",
        "1e20",
        "f",
        "0.1",
        "7",
    ]);
    client.ok(&["HSET", "hash:small", "f", "v", "n", "42", "empty", ""]);
    for n in 0..1000 {
        client.ok(&["SADD", "set:large", &format!("member{n}")]);
        client.ok(&["ZADD", "zset:large", &format!("{}.25", n * 7 - 300), &format!("member{n}")]);
        client.ok(&["HSET", "hash:large", &format!("field{n}"), &format!("value {n}")]);
    }
    client.ok(&["ZADD", "zset:large", "inf", "top", "-inf", "bottom", "0.1", "tenth"]);
    client.ok(&["HSET", "hash:long-values", "a", &"l".repeat(100_000), "b", &"m".repeat(100)]);
    client.ok(&["EXPIRE", "hash:large", "500000"]);
}

fn stream(client: &mut Client) {
    for n in 1..=500 {
        let id = format!("{}-{}", 1000 + n / 3, n % 3 + 1);
        if n % 10 == 0 {
            client.ok(&["XADD", "stream", &id, "other", &n.to_string()]);
        } else {
            client.ok(&["XADD", "stream", &id, "field", &format!("value {n}"), "n", &n.to_string()]);
        }
    }
    client.ok(&["XDEL", "stream", "1001-1", "1050-2"]);
    client.ok(&["XGROUP", "CREATE", "stream", "workers", "0"]);
    client.ok(&["XGROUP", "CREATE", "stream", "empty", "$"]);
    client.ok(&["XREADGROUP", "GROUP", "workers", "alice", "COUNT", "5", "STREAMS", "stream", ">"]);
    client.ok(&["XREADGROUP", "GROUP", "workers", "bob", "COUNT", "3", "STREAMS", "stream", ">"]);
    client.ok(&["XADD", "stream:emptied", "5-5", "a", "b"]);
    client.ok(&["XDEL", "stream:emptied", "5-5"]);
}

/// Every key of every database with its type and `DEBUG DIGEST-VALUE`, and its expiry time to the second.
pub(crate) fn digests(client: &mut Client) -> BTreeMap<(u32, Vec<u8>), (String, String, i64)> {
    let mut found = BTreeMap::new();
    for db in databases(client) {
        client.ok(&["SELECT", &db.to_string()]);
        for key in client.ok(&["KEYS", "*"]).array() {
            let key = key.bytes();
            let digest = client.ok(&[&b"DEBUG"[..], b"DIGEST-VALUE", &key]).array()[0].text();
            let kind = client.ok(&[&b"TYPE"[..], &key]).text();
            let ttl = client.ok(&[&b"PTTL"[..], &key]).int();
            let now = i64::try_from(
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .expect("a time")
                    .as_millis(),
            )
            .expect("a time");
            found.insert((db, key), (kind, digest, if ttl < 0 { ttl } else { now + ttl }));
        }
    }
    client.ok(&["SELECT", "0"]);
    found
}

/// Asserts that two servers hold the same, expiry times within a second.
pub(crate) fn assert_same(a: &mut Client, b: &mut Client) {
    let (a, b) = (digests(a), digests(b));
    assert_eq!(
        a.keys().map(|(db, k)| (db, String::from_utf8_lossy(k))).collect::<Vec<_>>(),
        b.keys().map(|(db, k)| (db, String::from_utf8_lossy(k))).collect::<Vec<_>>()
    );
    for (key, (kind, digest, expires)) in &a {
        let name = String::from_utf8_lossy(&key.1);
        let (other_kind, other_digest, other_expires) = &b[key];
        assert_eq!((kind, digest), (other_kind, other_digest), "{name}");
        assert!((expires - other_expires).abs() <= 1000, "{name} expires at {expires} and {other_expires}");
    }
}

/// Numbers of databases with keys.
pub(crate) fn databases(client: &mut Client) -> Vec<u32> {
    let info = client.ok(&["INFO", "keyspace"]).text();
    info.lines().filter_map(|l| l.strip_prefix("db")?.split(':').next()?.parse().ok()).collect()
}

/// How many keys there are in all.
pub(crate) fn count(client: &mut Client) -> i64 {
    let mut sum = 0;
    for db in databases(client) {
        client.ok(&["SELECT", &db.to_string()]);
        sum += client.ok(&["DBSIZE"]).int();
    }
    client.ok(&["SELECT", "0"]);
    sum
}

/// The number of replicas the server counts.
pub(crate) fn replicas(client: &mut Client) -> i64 {
    let info = client.ok(&["INFO", "replication"]).text();
    info.lines()
        .find_map(|l| l.strip_prefix("connected_slaves:"))
        .expect("a count")
        .parse()
        .expect("a number")
}
