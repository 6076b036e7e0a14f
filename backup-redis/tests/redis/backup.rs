//! Backing up.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use backup_core::{Bytes, ErrorKind, Source as _};
use backup_redis::RedisRdb;
use backup_redis::rdb::{KEYS, RdbReader, Statistics};
use backup_testkit::{Captured, SourceSuite, capture};

use crate::data::{assert_same, count, fill, replicas, version};
use crate::support::{ALL, REDIS, Server, Store, check_rdb};

/// The options that make a server allow what the tests ask of it.
pub(crate) fn debug(store: Store) -> &'static [&'static str] {
    if store.name == "redis6" { &[] } else { &["--enable-debug-command", "yes"] }
}

/// A server with data.
pub(crate) fn filled(store: Store) -> Option<Server> {
    let server = Server::start(&store.find()?, debug(store));
    fill(&mut server.client());
    Some(server)
}

pub(crate) async fn taken(source: &RedisRdb) -> Captured {
    capture(source).await.unwrap_or_else(|e| panic!("a backup failed: {}", e.chain()))
}

fn dump(captured: &Captured) -> &Bytes {
    &captured.artifacts[0].1
}

pub(crate) fn statistics(rdb: &[u8]) -> Statistics {
    let mut statistics = Statistics::new(chrono::Utc::now());
    let mut reader = RdbReader::new();
    for piece in rdb.chunks(10_007) {
        reader.push(piece, &mut statistics).unwrap();
    }
    reader.finish().unwrap();
    statistics
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_started_on_the_artifact_holds_the_same() {
    for store in ALL {
        let Some(server) = filled(store) else { continue };
        let mut client = server.client();
        for diskless in ["yes", "no"] {
            client.ok(&["CONFIG", "SET", "repl-diskless-sync", diskless]);
            let captured = taken(&RedisRdb::connect(&server.url()).unwrap()).await;
            let keys = u64::try_from(count(&mut client)).unwrap();
            assert_eq!(statistics(dump(&captured)).total().keys, keys);
            let proved: u64 = captured
                .report
                .proofs
                .iter()
                .filter(|(name, _)| name.as_str() != "functions")
                .map(|(_, proof)| proof.count)
                .sum();
            assert_eq!(proved, keys, "{}", store.name);
            assert_eq!(captured.report.proofs.contains_key("functions"), version(&mut client) >= (7, 0));
            assert_eq!(captured.report.warnings, []);

            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("dump.rdb"), dump(&captured)).unwrap();
            if let Some(check) = check_rdb() {
                accepted_by(&check, &dir.path().join("dump.rdb"));
            }
            let second = Server::start_in(dir, &store.find().unwrap(), debug(store));
            assert_same(&mut client, &mut second.client());
        }
    }
}

fn accepted_by(check: &Path, rdb: &Path) {
    let output = Command::new(check).arg(rdb).output().expect("redis-check-rdb runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("RDB looks OK"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_the_promises_of_sources() {
    let Some(server) = filled(REDIS) else { return };
    let source = RedisRdb::connect(&server.url()).unwrap();
    let no_leaks = async || {
        for _ in 0..100 {
            let mut client = server.client();
            let idle = client.ok(&["INFO", "persistence"]).text().contains("rdb_bgsave_in_progress:0");
            if idle && replicas(&mut client) == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the server still has a replica or a child");
    };
    SourceSuite::new().bytes_differ().run(&source, no_leaks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_content_in_other_encodings_proves_the_same() {
    let Some(program) = REDIS.find() else { return };
    let packed = Server::start(&program, debug(REDIS));
    let loose = Server::start(
        &program,
        &[
            "--enable-debug-command",
            "yes",
            "--hash-max-listpack-entries",
            "0",
            "--zset-max-listpack-entries",
            "0",
            "--set-max-intset-entries",
            "0",
            "--list-max-listpack-size",
            "1",
            "--rdbcompression",
            "no",
            "--stream-node-max-entries",
            "3",
        ],
    );
    for server in [&packed, &loose] {
        fill(&mut server.client());
        // Times differ between the two: only keys that stay are compared, without the stream's pending times.
        server.client().ok(&["XGROUP", "DESTROY", "stream", "workers"]);
    }
    let one = taken(&RedisRdb::connect(&packed.url()).unwrap()).await;
    let other = taken(&RedisRdb::connect(&loose.url()).unwrap()).await;
    let proofs =
        |c: &Captured| c.items.iter().map(|i| (i.path.clone(), i.proof.clone())).collect::<BTreeMap<_, _>>();
    let (a, b) = (proofs(&one), proofs(&other));
    for (path, proof) in a.iter().filter(|(path, _)| !path.to_string().ends_with("expiring")) {
        assert_eq!(proof, &b[path], "{path}");
    }
    assert_eq!(one.report.proofs[KEYS], other.report.proofs[KEYS]);
    loose.client().ok(&["HSET", "hash:small", "f", "another"]);
    let changed = taken(&RedisRdb::connect(&loose.url()).unwrap()).await;
    assert_ne!(one.report.proofs[KEYS], changed.report.proofs[KEYS]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_least_permissions_can_back_up_and_others_hear_what_is_missing() {
    for store in ALL {
        let Some(server) = filled(store) else { continue };
        let mut client = server.client();
        client.ok(&[
            "ACL",
            "SETUSER",
            "backup",
            "on",
            ">s3cret",
            "resetkeys",
            "+psync",
            "+sync",
            "+replconf",
            "+ping",
        ]);
        client.ok(&["ACL", "SETUSER", "weak", "on", ">s3cret", "+ping"]);
        let url = |user: &str, password: &str| format!("redis://{user}:{password}@127.0.0.1:{}", server.port);
        let source = RedisRdb::connect(&url("backup", "s3cret")).unwrap();
        let check = source.check().await.unwrap();
        assert!(check.is_ok(), "{check:?}");
        taken(&source).await;

        let weak = RedisRdb::connect(&url("weak", "s3cret")).unwrap();
        assert!(!weak.check().await.unwrap().is_ok());
        for (source, told) in [
            (weak, "+psync +sync +replconf"),
            (RedisRdb::connect(&url("backup", "wr0ng")).unwrap(), "user or password"),
        ] {
            let error = capture(&source).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert!(error.chain().contains(told), "{}", error.chain());
            assert!(!format!("{} {source:?}", error.chain()).contains("s3cret"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_replication_is_forbidden_a_scan_takes_the_same_keys_and_says_what_it_is() {
    for store in ALL {
        let Some(server) = filled(store) else { continue };
        let mut client = server.client();
        client.ok(&["ACL", "SETUSER", "reader", "on", ">x", "~*", "+@all", "-psync", "-sync", "-replconf"]);
        let url = format!("redis://reader:x@127.0.0.1:{}", server.port);
        let whole = taken(&RedisRdb::connect(&server.url()).unwrap()).await;
        let error = capture(&RedisRdb::connect(&url).unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);

        let scanned = taken(&RedisRdb::connect(&url).unwrap().allow_scan()).await;
        assert_eq!(scanned.report.warnings[0].code, "not-a-single-point-in-time");
        assert_eq!(scanned.report.proofs[KEYS], whole.report.proofs[KEYS], "{}", store.name);
        let functions = |c: &Captured| c.report.proofs.get("functions").copied();
        assert_eq!(functions(&scanned), functions(&whole));

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dump.rdb"), dump(&scanned)).unwrap();
        let second = Server::start_in(dir, &store.find().unwrap(), debug(store));
        assert_same(&mut client, &mut second.client());
    }
}
