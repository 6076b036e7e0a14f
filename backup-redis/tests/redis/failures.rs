//! What goes wrong, and that it is noticed.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use backup_core::{Bytes, ErrorKind, RestoreTarget as _, Source as _};
use backup_redis::{RedisConfig, RedisRdb};
use backup_testkit::capture;

use crate::backup::{debug, filled, taken};
use crate::data::{count, digests};
use crate::restore::{empty, into, restore, similar};
use crate::support::{REDIS, REDIS8, Server, repetitions};

/// A generator of numbers that a failed run can repeat: the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("BACKUP_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
        });
        let _ = writeln!(std::io::stderr(), "BACKUP_TEST_SEED={seed}");
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A server that answers the first commands of a replica as told, and then does what `then` says.
fn pretender(answers: &'static [&'static str], rdb: Vec<u8>, then: Then) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        'clients: for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut input = [0; 4096];
            for answer in answers {
                if !stream.read(&mut input).is_ok_and(|n| n > 0)
                    || stream.write_all(answer.as_bytes()).is_err()
                {
                    continue 'clients;
                }
            }
            let _ = stream.write_all(&rdb);
            if then == Then::Stall {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
    });
    format!("redis://127.0.0.1:{port}")
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Stall,
}

const HELLO: &str = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n";
const OK: &str = "+OK\r\n";
const BEGINS: &str = "+FULLRESYNC 0123456789012345678901234567890123456789 0\r\n\n$EOF:abcdefghijabcdefghijabcdefghijabcdefghij\r\n";
const MARK: &[u8] = b"abcdefghijabcdefghijabcdefghijabcdefghij";

#[tokio::test(flavor = "multi_thread")]
async fn refusals_keep_their_meaning() {
    for (answers, kind) in [
        (&["-LOADING Redis is loading the dataset in memory\r\n"][..], ErrorKind::Unavailable),
        (&[HELLO, "-LOADING Redis is loading the dataset in memory\r\n"], ErrorKind::Unavailable),
        (
            &[HELLO, OK, OK, "-NOMASTERLINK Can't SYNC while not connected with my master\r\n"],
            ErrorKind::Unavailable,
        ),
        (&[HELLO, OK, OK, "-MASTERDOWN Link with MASTER is down\r\n"], ErrorKind::Unavailable),
        (
            &[HELLO, OK, OK, "-NOPERM this user has no permissions to run the 'psync' command\r\n"],
            ErrorKind::PermissionDenied,
        ),
        (&[HELLO, OK, OK, "-ERR unknown command 'PSYNC'\r\n"], ErrorKind::Unsupported),
        (&["HTTP/1.1 400 Bad Request\r\n\r\n"], ErrorKind::Corrupt),
        (&[HELLO, OK, OK, "$-5\r\n"], ErrorKind::Corrupt),
    ] {
        let error = capture(&RedisRdb::connect(&pretender(answers, Vec::new(), Then::Close)).unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{answers:?}: {}", error.chain());
    }
}

/// The same from real servers: one that loads its data, and a replica whose primary is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loads_and_a_replica_without_its_primary_are_told_apart() {
    let Some(mut primary) = filled(REDIS) else { return };
    let program = REDIS.find().unwrap();
    let replica = Server::start(&program, &[debug(REDIS), &["--replica-serve-stale-data", "no"]].concat());
    let mut client = replica.client();
    client.ok(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let has_link = |client: &mut crate::support::Client| {
        client.ok(&["INFO", "replication"]).text().contains("master_link_status:up")
    };
    let give_up = Instant::now() + Duration::from_secs(20);
    while !has_link(&mut client) {
        assert!(Instant::now() < give_up, "the replica gets no link");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // With its link, a replica is as good as its primary.
    let from_replica = taken(&RedisRdb::connect(&replica.url()).unwrap()).await;
    let from_primary = taken(&RedisRdb::connect(&primary.url()).unwrap()).await;
    assert_eq!(from_replica.report.proofs, from_primary.report.proofs);
    std::fs::write(primary.dir.path().join("dump.rdb"), &from_primary.artifacts[0].1).unwrap();
    primary.kill();
    while has_link(&mut client) {
        assert!(Instant::now() < give_up, "the replica keeps its link");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let source = RedisRdb::connect(&replica.url()).unwrap();
    let error = capture(&source).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.chain().contains("no link to its primary"), "{}", error.chain());

    // A tenth of a millisecond for each key: long enough to be met.
    let dir = tempfile::tempdir().unwrap();
    let big = Server::start(&program, debug(REDIS));
    big.client().ok(&["DEBUG", "POPULATE", "50000", "key", "50"]);
    let whole = taken(&RedisRdb::connect(&big.url()).unwrap()).await;
    std::fs::write(dir.path().join("dump.rdb"), &whole.artifacts[0].1).unwrap();
    let slow = ["--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024"];
    let loading = Server::start_loading(dir, &program, &[debug(REDIS), &slow].concat());
    let error = capture(&RedisRdb::connect(&loading.url()).unwrap()).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.chain().contains("loading its data"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stops_or_lies_is_a_failed_backup() {
    let Some(server) = filled(REDIS) else { return };
    let whole = taken(&RedisRdb::connect(&server.url()).unwrap()).await.artifacts[0].1.to_vec();
    let answers: &'static [&'static str] = &[HELLO, OK, OK, BEGINS];
    let wire = |rdb: &[u8]| [rdb, MARK].concat();
    let good = pretender(answers, wire(&whole), Then::Stall);
    taken(&RedisRdb::connect(&good).unwrap()).await;

    let mut random = Random::new();
    for _ in 0..repetitions(200) {
        let cut = usize::try_from(random.below(whole.len() as u64)).unwrap();
        // The connection ends in the middle; the mark comes too early; a bit is wrong.
        let mut flipped = whole.clone();
        flipped[cut] ^= 1 << random.below(8);
        for (rdb, kind) in [
            (whole[..cut].to_vec(), None),
            (wire(&whole[..cut]), Some(ErrorKind::Corrupt)),
            (wire(&flipped), None),
            (wire(&[&whole[..], b"more"].concat()), Some(ErrorKind::Corrupt)),
        ] {
            let url = pretender(answers, rdb, Then::Close);
            let Err(error) = capture(&RedisRdb::connect(&url).unwrap()).await else {
                panic!("a damaged stream was taken for whole: cut at {cut} of {}", whole.len())
            };
            assert!(kind.is_none_or(|kind| kind == error.kind()), "{}", error.chain());
        }
    }

    let stalled = pretender(answers, whole[..whole.len() / 2].to_vec(), Then::Stall);
    let config = RedisConfig::parse(&stalled).unwrap().stall_timeout(Duration::from_millis(300));
    let error = capture(&RedisRdb::new(config)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.chain());
    let silent = pretender(&[], Vec::new(), Then::Stall);
    let config = RedisConfig::parse(&silent).unwrap().connect_timeout(Duration::from_millis(300));
    assert_eq!(capture(&RedisRdb::new(config)).await.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_moment_is_a_failed_backup() {
    let Some(program) = REDIS.find() else { return };
    let mut server = Server::start(&program, &[debug(REDIS), &["--rdb-key-save-delay", "300"]].concat());
    let mut random = Random::new();
    for round in 0..repetitions(50) {
        let mut client = server.client();
        client.ok(&["DEBUG", "POPULATE", "2000", "key", "200"]);
        let source =
            RedisRdb::new(RedisConfig::parse(&server.url()).unwrap().stall_timeout(Duration::from_secs(5)));
        let run = tokio::spawn(async move { capture(&source).await.map(|_| ()) });
        // Saving takes some 600 ms.
        tokio::time::sleep(Duration::from_millis(random.below(450))).await;
        server.kill();
        let ended = tokio::time::timeout(Duration::from_secs(20), run).await.expect("it hangs").unwrap();
        let error = ended.expect_err("a backup succeeded although its server was killed");
        assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Corrupt),
            "round {round}: {}",
            error.chain()
        );
        server.start_again();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_is_told_that_the_server_gave_up() {
    let Some(program) = REDIS.find() else { return };
    let server = Server::start(&program, &[debug(REDIS), &["--repl-timeout", "2"]].concat());
    let mut client = server.client();
    // More than the buffers between the two hold.
    client.ok(&["CONFIG", "SET", "rdbcompression", "no"]);
    client.ok(&["DEBUG", "POPULATE", "40000", "key", "3000"]);
    let source = RedisRdb::connect(&server.url()).unwrap();
    let mut snapshot = source.snapshot(backup_core::SnapshotRequest::full()).await.unwrap();
    let artifact = snapshot.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let error = backup_testkit::collect(artifact.data)
        .await
        .map(|bytes| bytes.len())
        .expect_err("the server should have given up");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(snapshot.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_disturb_the_point_in_time() {
    let Some(server) = filled(REDIS) else { return };
    let mut client = server.client();
    client.ok(&["SET", "a", "0"]);
    client.ok(&["SET", "b", "0"]);
    let url = server.url();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let mut n = 0u32;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            n += 1;
            let n = n.to_string();
            // Both change in one step: a snapshot sees both or neither.
            client.pipeline(&[
                &["MULTI"][..],
                &["INCR", "a"],
                &["INCR", "b"],
                &["SET", &format!("k{n}"), &n],
                &["EXEC"],
            ]);
        }
    });
    for _ in 0..5 {
        let captured = taken(&RedisRdb::connect(&url).unwrap()).await;
        let second = empty(REDIS, &[]).unwrap();
        restore(&into(&second), &captured, false).await.unwrap();
        let mut client = second.client();
        let a = client.ok(&["GET", "a"]).text();
        assert_eq!(a, client.ok(&["GET", "b"]).text());
        assert_eq!(client.ok(&["EXISTS", &format!("k{a}")]).int(), i64::from(a != "0"));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

/// A backup of some 30,000 keys, and a server with other data, append-only on.
async fn replacement() -> Option<(backup_testkit::Captured, Server)> {
    let source = empty(REDIS, &[])?;
    source.client().ok(&["DEBUG", "POPULATE", "30000", "new", "300"]);
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let server = empty(REDIS, &["--appendonly", "yes", "--appendfsync", "always"])?;
    let mut client = server.client();
    crate::data::fill(&mut client);
    Some((captured, server))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_fails_half_way_leaves_the_earlier_keys() {
    let Some((captured, mut server)) = replacement().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let before = digests(&mut server.client());
    let mut random = Random::new();
    for round in 0..repetitions(50) {
        let target =
            if round % 2 == 0 { into(&server) } else { into(&server).in_place().safety_backup(dir.path()) };
        let begun = target.begin(&captured.plan(true)).await.unwrap();
        let (meta, bytes) = &captured.artifacts[0];
        match round % 4 {
            // The backup's bytes end, or go wrong, in the middle.
            0 | 1 => {
                let cut = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                let torn = bytes.slice(..cut);
                let reader = backup_core::ArtifactReader::from_bytes(meta.clone(), torn);
                assert!(begun.artifact(reader).await.is_err());
                begun.abort().await.unwrap();
            }
            // The server is killed, and comes back from its append-only file.
            2 => {
                let reader = captured.readers().remove(0);
                let loading = tokio::spawn(async move {
                    let ended = begun.artifact(reader).await;
                    (begun, ended)
                });
                tokio::time::sleep(Duration::from_millis(random.below(60))).await;
                server.start_again();
                let (begun, _) = loading.await.unwrap();
                begun.abort().await.unwrap();
            }
            _ => {
                let reader = captured.readers().remove(0);
                let mut client = server.client();
                let used = client.ok(&["INFO", "memory"]).text();
                let used: u64 =
                    used.lines().find_map(|l| l.strip_prefix("used_memory:")).unwrap().parse().unwrap();
                let limit = (used + 1_000_000 + random.below(3_000_000)).to_string();
                client.ok(&["CONFIG", "SET", "maxmemory", &limit]);
                let error = begun.artifact(reader).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{}", error.chain());
                client.ok(&["CONFIG", "SET", "maxmemory", "0"]);
                begun.abort().await.unwrap();
            }
        }
        similar(&before, &digests(&mut server.client()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a safety backup was left");
    }
}

/// A list of another client's where a string is to be written: the server refuses it, whichever way is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_that_appears_meanwhile_leaves_the_earlier_keys() {
    let Some((captured, server)) = replacement().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let before = digests(&mut server.client());
    for in_place in [false, true] {
        let target =
            if in_place { into(&server).in_place().safety_backup(dir.path()) } else { into(&server) };
        let begun = target.begin(&captured.plan(true)).await.unwrap();
        let mut client = server.client();
        // The database that is written to: the one marked, or the real one as soon as it was emptied.
        let staged = crate::data::databases(&mut client).into_iter().find(|db| {
            client.ok(&["SELECT", &db.to_string()]);
            client.ok(&["EXISTS", "backup-redis:staging"]).int() == 1
        });
        assert_eq!(staged.is_none(), in_place);
        client.ok(&["SELECT", &staged.unwrap_or(0).to_string()]);
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let intruder = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                client.command(&["RPUSH", "new:15000", "a list"]);
            }
        });
        let error = begun.artifact(captured.readers().remove(0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetNotEmpty, "{}", error.chain());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        intruder.join().unwrap();
        begun.abort().await.unwrap();
        similar(&before, &digests(&mut server.client()));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a safety backup was left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safety_backup_that_fails_leaves_no_file_and_nothing_is_touched() {
    let Some(source) = filled(REDIS) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let dir = tempfile::tempdir().unwrap();
    let Some(mut server) = empty(REDIS, &[]) else { return };
    server.client().ok(&["DEBUG", "POPULATE", "5000", "key", "100"]);
    let target = into(&server).in_place().safety_backup(dir.path().join("missing"));
    let error = target.begin(&captured.plan(true)).await.err().expect("there is no such directory");
    assert!(error.chain().contains("missing"), "{}", error.chain());
    assert_eq!(count(&mut server.client()), 5000);

    // Saving takes some two seconds now, and the server ends meanwhile.
    server.client().ok(&["CONFIG", "SET", "rdb-key-save-delay", "400"]);
    let target = into(&server).in_place().safety_backup(dir.path());
    let plan = captured.plan(true);
    let begun = tokio::spawn(async move { target.begin(&plan).await.err() });
    let give_up = Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(dir.path()).unwrap().count() == 0 {
        assert!(Instant::now() < give_up, "no safety backup begins");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.kill();
    let error = begun.await.unwrap().expect("the server is gone");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "half a safety backup was left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_dropped_cleans_up_behind_itself() {
    let Some((captured, server)) = replacement().await else { return };
    let before = digests(&mut server.client());
    let begun = into(&server).begin(&captured.plan(true)).await.unwrap();
    let mut client = server.client();
    let begun_with = count(&mut client);
    let some_are_there = async {
        while count(&mut client) == begun_with {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        () = some_are_there => {}
        done = begun.artifact(captured.readers().remove(0)) => panic!("too fast to be dropped amid: {done:?}"),
    }
    drop(begun);
    let give_up = Instant::now() + Duration::from_secs(10);
    while digests(&mut server.client()).len() != before.len() {
        assert!(Instant::now() < give_up, "staged keys are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    similar(&before, &digests(&mut server.client()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_place_left_by_a_dead_process_is_swept_after_a_day() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &["--databases", "5"])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let mut client = server.client();
    for db in ["1", "2"] {
        client.ok(&["SELECT", db]);
        client.ok(&["SET", "backup-redis:staging", "1000000000000"]);
        client.ok(&["SET", "half", "restored"]);
    }
    client.ok(&["SELECT", "0"]);
    let (report, _) = restore(&into(&server), &captured, false).await.unwrap();
    assert_eq!(report.details["swept_staging_databases"], 2);
    assert_eq!(crate::data::databases(&mut client), [0, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clients_write_into_the_staged_copy_is_noticed() {
    let (Some(source), Some(server)) = (filled(REDIS8), empty(REDIS8, &[])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let begun = into(&server).begin(&captured.plan(false)).await.unwrap();
    begun.artifact(captured.readers().remove(0)).await.unwrap();
    let mut client = server.client();
    let staged = crate::data::databases(&mut client)[0].to_string();
    client.ok(&["SELECT", &staged]);
    client.ok(&["SET", "string:short", "something else"]);
    assert_eq!(begun.prove().await.unwrap_err().kind(), ErrorKind::ProofMismatch);
    begun.abort().await.unwrap();
    assert_eq!(count(&mut client), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_artifact_never_reaches_commit() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &[])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let (meta, bytes) = &captured.artifacts[0];
    let mut random = Random::new();
    for _ in 0..repetitions(100) {
        let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1 << random.below(8);
        let begun = into(&server).begin(&captured.plan(false)).await.unwrap();
        let reader = backup_core::ArtifactReader::from_bytes(meta.clone(), Bytes::from(damaged));
        assert!(begun.artifact(reader).await.is_err(), "a flipped bit at {at} was not noticed");
        begun.abort().await.unwrap();
        assert_eq!(count(&mut server.client()), 0);
    }
}
