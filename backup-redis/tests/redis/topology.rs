//! TLS, sentinels and clusters.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use backup_core::{ErrorKind, SnapshotRequest, Source as _};
use backup_redis::rdb::KEYS;
use backup_redis::{OnConflict, RedisConfig, RedisRdb};
use backup_testkit::{capture, free_port};

use crate::backup::{debug, filled, taken};
use crate::data::fill;
use crate::restore::{into, restore};
use crate::support::{Client, REDIS, REDIS8, Server, Store, VALKEY};

fn openssl(dir: &Path, arguments: &[&str]) -> bool {
    Command::new("openssl").current_dir(dir).args(arguments).output().is_ok_and(|o| o.status.success())
}

/// An authority, and certificates of a server (for `localhost`) and of a client.
fn certificates(dir: &Path) -> bool {
    let make = |name: &str, subject: &str, extension: &str| {
        std::fs::write(dir.join(format!("{name}.ext")), extension).unwrap();
        openssl(
            dir,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-out",
                &format!("{name}.key"),
            ],
        ) && openssl(
            dir,
            &[
                "req",
                "-new",
                "-key",
                &format!("{name}.key"),
                "-subj",
                subject,
                "-out",
                &format!("{name}.csr"),
            ],
        ) && openssl(
            dir,
            &[
                "x509",
                "-req",
                "-in",
                &format!("{name}.csr"),
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                &format!("{name}.ext"),
                "-out",
                &format!("{name}.crt"),
            ],
        )
    };
    openssl(
        dir,
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ],
    ) && make("server", "/CN=localhost", "subjectAltName=DNS:localhost")
        && make("client", "/CN=client", "extendedKeyUsage=clientAuth")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_verified_and_mutual() {
    let Some(program) = REDIS.find() else { return };
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        backup_testkit::skip("no openssl here to make certificates");
        return;
    }
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls_port = free_port();
    let port = tls_port.to_string();
    let server = Server::start(
        &program,
        &[
            debug(REDIS)[0],
            "yes",
            "--tls-port",
            &port,
            "--tls-cert-file",
            &path("server.crt"),
            "--tls-key-file",
            &path("server.key"),
            "--tls-ca-cert-file",
            &path("ca.crt"),
            "--tls-auth-clients",
            "yes",
        ],
    );
    fill(&mut server.client());
    let config = RedisConfig::parse(&format!("rediss://127.0.0.1:{tls_port}")).unwrap();
    let whole = config
        .clone()
        .tls_authorities(read("ca.crt"))
        .tls_client(read("client.crt"), read("client.key"))
        .tls_server_name("localhost");
    let over_tls = taken(&RedisRdb::new(whole.clone())).await;
    let plain = taken(&RedisRdb::connect(&server.url()).unwrap()).await;
    assert_eq!(over_tls.report.proofs, plain.report.proofs);

    // An authority that is not trusted; a name that is not the certificate's; no client certificate.
    for wrong in [
        config.clone().tls_client(read("client.crt"), read("client.key")).tls_server_name("localhost"),
        whole.clone().tls_server_name("elsewhere"),
        config.clone().tls_authorities(read("ca.crt")).tls_server_name("localhost"),
    ] {
        let error = capture(&RedisRdb::new(wrong)).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::PermissionDenied
                    | ErrorKind::Unavailable
                    | ErrorKind::Io
                    | ErrorKind::InvalidInput
            ),
            "{}",
            error.chain()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_tell_the_primary_or_a_replica() {
    let (Some(primary), Some(program)) = (filled(REDIS), REDIS.find()) else { return };
    let replica = Server::start(&program, debug(REDIS));
    replica.client().ok(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let file = dir.path().join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor books 127.0.0.1 {} 1\n",
        dir.path().display(),
        primary.port
    );
    std::fs::write(&file, text).unwrap();
    let mut sentinel = Command::new(&program)
        .arg(&file)
        .arg("--sentinel")
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("a sentinel");
    let give_up = Instant::now() + Duration::from_secs(40);
    let ready = loop {
        let known = Client::connect(port).map(|mut c| c.command(&["SENTINEL", "replicas", "books"]));
        let known = known.map(|a| format!("{a:?}")).unwrap_or_default();
        if let Some(at) = known.find("Text") {
            // Its fields, as bytes of text: the link must be up.
            let ok = format!("{:?}", b"master-link-status".to_vec());
            let ok = known[at..].find(&ok[1..ok.len() - 1]).is_some_and(|at| {
                let up = format!("{:?}", b"ok".to_vec());
                known[at..].find(&up).is_some()
            });
            if ok {
                break true;
            }
        }
        if Instant::now() > give_up {
            break false;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let url = format!("redis+sentinel://127.0.0.1:{port}/books");
    let outcome = if ready {
        let config = RedisConfig::parse(&url).unwrap();
        let from_primary = capture(&RedisRdb::new(config.clone())).await;
        let from_replica = capture(&RedisRdb::new(config.prefer_replica())).await;
        let unknown = capture(&RedisRdb::connect(&url.replace("books", "nobody")).unwrap()).await;
        let direct = capture(&RedisRdb::connect(&format!("redis://127.0.0.1:{port}")).unwrap()).await;
        Some((from_primary, from_replica, unknown, direct))
    } else {
        None
    };
    sentinel.kill().unwrap();
    sentinel.wait().unwrap();
    let (from_primary, from_replica, unknown, direct) = outcome.expect("the sentinel never saw the replica");
    let (from_primary, from_replica) = (from_primary.unwrap(), from_replica.unwrap());
    let node = |c: &backup_testkit::Captured| c.report.artifacts["dump"]["node"].as_str().unwrap().to_owned();
    assert_eq!(node(&from_primary), format!("127.0.0.1:{}", primary.port));
    assert_eq!(node(&from_replica), format!("127.0.0.1:{}", replica.port));
    assert_eq!(from_primary.report.proofs[KEYS], from_replica.report.proofs[KEYS]);
    assert_eq!(unknown.map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(direct.map(|_| ()).unwrap_err().chain().contains("redis+sentinel"));
}

/// A cluster of three primaries, with keys on each.
fn cluster(store: Store) -> Option<Vec<Server>> {
    let program = store.find()?;
    let nodes: Vec<Server> = (0..3)
        .map(|_| {
            let bus = free_port().to_string();
            let options =
                ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
            Server::start(&program, &[debug(store), &options].concat())
        })
        .collect();
    for (node, range) in nodes.iter().zip([["0", "5000"], ["5001", "11000"], ["11001", "16383"]]) {
        node.client().ok(&["CLUSTER", "ADDSLOTSRANGE", range[0], range[1]]);
    }
    let mut first = nodes[0].client();
    for node in &nodes[1..] {
        let bus = node.client().ok(&["CONFIG", "GET", "cluster-port"]).array()[1].text();
        first.ok(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &bus]);
    }
    let give_up = Instant::now() + Duration::from_secs(30);
    while !nodes.iter().all(|n| {
        let info = n.client().ok(&["CLUSTER", "INFO"]).text();
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
    }) {
        assert!(Instant::now() < give_up, "the cluster does not form");
        std::thread::sleep(Duration::from_millis(100));
    }
    Some(nodes)
}

/// Writes a key wherever it belongs.
fn put(nodes: &mut [Client], arguments: &[&str]) {
    for node in nodes {
        if !node.command(arguments).is_error_of("MOVED") {
            return;
        }
    }
    panic!("no node takes {arguments:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_one_artifact_for_each_primary_and_restores_into_any_topology() {
    for store in [REDIS, REDIS8, VALKEY] {
        let Some(nodes) = cluster(store) else { continue };
        let mut clients: Vec<Client> = nodes.iter().map(Server::client).collect();
        for n in 0..3000 {
            put(&mut clients, &["SET", &format!("key:{n}"), &format!("value {n}")]);
        }
        put(&mut clients, &["HSET", "{tag}hash", "a", "b"]);
        put(&mut clients, &["SET", "big", &"0123456789".repeat(400_000)]);
        put(&mut clients, &["SET", "expires", "x", "EX", "5000"]);
        for node in &mut clients {
            node.ok(&[
                "FUNCTION",
                "LOAD",
                "#!lua name=lib\nredis.register_function('f', function() return 1 end)",
            ]);
        }
        let captured = taken(&RedisRdb::connect(&nodes[1].url()).unwrap()).await;
        assert_eq!(captured.artifacts.len(), 3);
        assert_eq!(captured.report.proofs[KEYS].count, 3002);
        assert!(captured.report.warnings.iter().any(|w| w.code == "shards-at-different-moments"));

        // Into a cluster that divides its slots otherwise (a single artifact holds keys of several nodes).
        let single = Server::start(&store.find().unwrap(), debug(store));
        restore(&into(&single), &captured, false).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        let from_single = taken(&RedisRdb::connect(&single.url()).unwrap()).await;
        assert_eq!(from_single.report.proofs[KEYS], captured.report.proofs[KEYS]);
        let other = cluster(store).unwrap();
        let swap = restore(&into(&other[0]), &from_single, false).await.unwrap_err();
        assert_eq!(swap.kind(), ErrorKind::StoreInadequate);
        restore(&into(&other[0]).in_place(), &from_single, false)
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        let again = taken(&RedisRdb::connect(&other[2].url()).unwrap()).await;
        assert_eq!(again.report.proofs, captured.report.proofs);

        // Merged into the first, where all keys are: nothing changes.
        let (report, _) = restore(&into(&nodes[2]).merge(OnConflict::Keep), &from_single, false)
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(report.details["kept_keys"], 3003);

        // Replaced in place, with a safety backup of every node; and back.
        for node in &mut other.iter().map(Server::client).collect::<Vec<_>>() {
            node.ok(&["FLUSHALL"]);
        }
        let mut clients: Vec<Client> = other.iter().map(Server::client).collect();
        for n in 0..100 {
            put(&mut clients, &["SET", &format!("old:{n}"), "old"]);
        }
        let before = taken(&RedisRdb::connect(&other[0].url()).unwrap()).await;
        let dir = tempfile::tempdir().unwrap();
        let target = into(&other[0]).in_place().safety_backup(dir.path());
        let (_, undo) = restore(&target, &captured, true).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        undo.unwrap().undo().await.unwrap();
        let after = taken(&RedisRdb::connect(&other[0].url()).unwrap()).await;
        assert_eq!(before.report.proofs[KEYS], after.report.proofs[KEYS]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_followed_to_where_their_slots_moved() {
    let (Some(source), Some(nodes)) = (filled(REDIS), cluster(REDIS)) else { return };
    source.client().ok(&["FLUSHALL"]);
    source.client().ok(&["DEBUG", "POPULATE", "20000", "key", "50"]);
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let target = into(&nodes[0]).in_place();
    let mut plan = captured.plan(false);
    plan.proofs.remove("functions");
    let begun = backup_core::RestoreTarget::begin(&target, &plan).await.unwrap();
    // After the slots were read: one moves as a whole, one is about to.
    let id = |node: &Server| node.client().ok(&["CLUSTER", "MYID"]).text();
    let (first, second) = (id(&nodes[0]), id(&nodes[1]));
    for node in &nodes {
        node.client().ok(&["CLUSTER", "SETSLOT", "100", "NODE", &second]);
    }
    nodes[1].client().ok(&["CLUSTER", "SETSLOT", "200", "IMPORTING", &first]);
    nodes[0].client().ok(&["CLUSTER", "SETSLOT", "200", "MIGRATING", &second]);
    begun.artifact(captured.readers().remove(0)).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let counted: i64 = nodes.iter().map(|n| n.client().ok(&["DBSIZE"]).int()).sum();
    assert_eq!(counted, 20_000);
    begun.abort().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_slots_nobody_owns_is_not_backed_up() {
    let Some(program) = REDIS.find() else { return };
    let bus = free_port().to_string();
    let node = Server::start(&program, &["--cluster-enabled", "yes", "--cluster-port", &bus]);
    node.client().ok(&["CLUSTER", "ADDSLOTSRANGE", "0", "100"]);
    let source = RedisRdb::connect(&node.url()).unwrap();
    let error = source.snapshot(SnapshotRequest::full()).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
