//! Restoring into live servers.

use std::collections::BTreeMap;

use backup_core::{Bytes, ErrorKind, RestoreReport, RestoreTarget, Result, Undo};
use backup_redis::rdb::KEYS;
use backup_redis::{OnConflict, RedisRdb, RedisRestore};
use backup_testkit::{Captured, TargetSuite};

use crate::backup::{debug, filled, taken};
use crate::data::{assert_same, count, digests, version};
use crate::support::{ALL, Answer, REDIS, REDIS6, REDIS8, Server, Store, VALKEY};

/// Restores all of `captured`, and proves it as the engine does.
pub(crate) async fn restore(
    target: &RedisRestore,
    captured: &Captured,
    replace: bool,
) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
    let restore = target.begin(&captured.plan(replace)).await?;
    for reader in captured.readers() {
        if let Err(e) = restore.artifact(reader).await {
            restore.abort().await?;
            return Err(e);
        }
    }
    match restore.prove().await {
        Ok(proofs) => assert_eq!(proofs, captured.report.proofs),
        Err(e) => {
            restore.abort().await?;
            return Err(e);
        }
    }
    restore.commit().await
}

pub(crate) fn empty(store: Store, more: &[&str]) -> Option<Server> {
    let options: Vec<&str> = debug(store).iter().chain(more).copied().collect();
    Some(Server::start(&store.find()?, &options))
}

pub(crate) fn into(server: &Server) -> RedisRestore {
    RedisRestore::connect(&server.url()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_server_holds_the_same_after_a_restore() {
    for store in ALL {
        let Some(source) = filled(store) else { continue };
        let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
        for in_place in [false, true] {
            let server = empty(store, &[]).unwrap();
            let target = if in_place { into(&server).in_place() } else { into(&server) };
            let (report, undo) = restore(&target, &captured, false)
                .await
                .unwrap_or_else(|e| panic!("{} in_place={in_place}: {}", store.name, e.chain()));
            assert!(undo.is_none());
            assert_eq!(report.items, u64::try_from(count(&mut source.client())).unwrap());
            assert_same(&mut source.client(), &mut server.client());
            let functions = |server: &Server| server.client().command(&["FUNCTION", "LIST", "WITHCODE"]);
            assert_eq!(functions(&source), functions(&server));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_hold_decoded_equal_values_and_keys_they_lack_are_named() {
    for from in ALL {
        let Some(source) = filled(from) else { continue };
        let has_field_ttl = version(&mut source.client()) >= (7, 4);
        let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
        for to in ALL {
            let Some(server) = empty(to, &[]) else { continue };
            let mut client = server.client();
            let mut target = into(&server);
            if has_field_ttl && version(&mut client) < (7, 4) {
                let mut plan = captured.plan(false);
                plan.selection = backup_core::Selection::globs(["db*"]).unwrap();
                plan.proofs.remove("functions");
                let begun = target.begin(&plan).await.unwrap();
                let error = begun.artifact(captured.readers().remove(0)).await.unwrap_err();
                begun.abort().await.unwrap();
                assert!(error.chain().contains("hash:ttl:small"), "{}", error.chain());
                assert_eq!(count(&mut client), 0);
                target = target.only_keys(["[^h]*", "h[^a]*", "hash:[^t]*", ""]);
            }
            let functions = captured.report.proofs.contains_key("functions") && version(&mut client) < (7, 0);
            let mut plan = captured.plan(false);
            if functions {
                let error = target.begin(&plan).await.err().expect("functions are refused");
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                plan.selection = backup_core::Selection::globs(["db*"]).unwrap();
                plan.proofs.remove("functions");
            }
            let begun = target.begin(&plan).await.unwrap();
            for reader in captured.readers() {
                begun
                    .artifact(reader)
                    .await
                    .unwrap_or_else(|e| panic!("{} to {}: {}", from.name, to.name, e.chain()));
            }
            let proofs =
                begun.prove().await.unwrap_or_else(|e| panic!("{} to {}: {}", from.name, to.name, e.chain()));
            assert_eq!(proofs, plan.proofs);
            begun.commit().await.unwrap();
            let again = taken(&RedisRdb::connect(&server.url()).unwrap()).await;
            if !has_field_ttl {
                assert_eq!(again.report.proofs[KEYS], captured.report.proofs[KEYS]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_keeps_the_promises_of_targets() {
    let Some(source) = filled(REDIS) else { return };
    let first = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    source.client().ok(&["SET", "one more", "key"]);
    source.client().ok(&["DEL", "list:small"]);
    let second = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let servers = std::sync::Mutex::new(Vec::new());
    let make = async || {
        let server = empty(REDIS, &["--databases", "8"]).unwrap();
        let target = into(&server);
        servers.lock().unwrap().push(server);
        target
    };
    // What clients of the databases in use see; spare ones are the target's own affair.
    let content = async |_: &RedisRestore| {
        let servers = servers.lock().unwrap();
        let mut client = servers.last().unwrap().client();
        let mut found: BTreeMap<String, Bytes> = digests(&mut client)
            .into_iter()
            .filter(|((db, _), _)| *db < 4)
            .map(|((db, key), (kind, digest, _))| {
                (format!("{db} {}", String::from_utf8_lossy(&key)), format!("{kind} {digest}").into())
            })
            .collect();
        found.insert("functions".into(), format!("{:?}", client.ok(&["FUNCTION", "LIST"])).into());
        found
    };
    TargetSuite::new().run(make, content, [&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_in_place_replacement_keeps_a_safety_backup_and_can_be_undone() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &["--appendonly", "yes"])) else {
        return;
    };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let mut client = server.client();
    client.ok(&["SET", "old", "value"]);
    client.ok(&["SET", "old:expires", "value", "EX", "1000"]);
    client.ok(&["SELECT", "7"]);
    client.ok(&["SET", "elsewhere", "stays"]);
    client.ok(&["SELECT", "0"]);
    let before = digests(&mut client);
    let dir = tempfile::tempdir().unwrap();

    let error = restore(&into(&server).in_place(), &captured, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);
    let error = restore(&into(&server).in_place(), &captured, true).await.unwrap_err();
    assert!(error.chain().contains("safety_backup"), "{}", error.chain());

    let target = into(&server).in_place().safety_backup(dir.path());
    let (report, undo) = restore(&target, &captured, true).await.unwrap();
    let kept = report.old_kept_at.unwrap();
    assert!(std::path::Path::new(&kept).is_file(), "{kept}");
    assert_eq!(client.ok(&["EXISTS", "old"]).int(), 0);
    undo.unwrap().undo().await.unwrap();
    similar(&before, &digests(&mut client));
    assert!(!std::path::Path::new(&kept).exists());

    let (report, undo) = restore(&target, &captured, true).await.unwrap();
    target.put_back(std::path::Path::new(&report.old_kept_at.unwrap())).await.unwrap();
    assert_eq!(client.ok(&["GET", "old"]).text(), "value");
    undo.unwrap().drop_old().await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

type Digests = BTreeMap<(u32, Vec<u8>), (String, String, i64)>;

/// Asserts that both are the same, expiry times within a second.
pub(crate) fn similar(a: &Digests, b: &Digests) {
    let plain =
        |d: &Digests| d.iter().map(|(k, v)| (k.clone(), v.0.clone(), v.1.clone())).collect::<Vec<_>>();
    assert_eq!(plain(a), plain(b));
    assert!(a.iter().all(|(key, value)| (value.2 - b[key].2).abs() <= 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_keeps_or_replaces_what_is_there_and_is_verified() {
    for store in ALL {
        let Some(source) = filled(store) else { continue };
        let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
        for (conflict, expected) in [(OnConflict::Keep, "mine"), (OnConflict::Replace, "hello")] {
            let server = empty(store, &[]).unwrap();
            let mut client = server.client();
            client.ok(&["SET", "string:short", "mine"]);
            client.ok(&["SET", "unrelated", "stays"]);
            let (report, _) = restore(&into(&server).merge(conflict), &captured, false)
                .await
                .unwrap_or_else(|e| panic!("{}: {}", store.name, e.chain()));
            assert_eq!(client.ok(&["GET", "string:short"]).text(), expected);
            assert_eq!(report.details["kept_keys"], u64::from(conflict == OnConflict::Keep));
            client.ok(&["DEL", "unrelated"]);
            if conflict == OnConflict::Replace {
                assert_same(&mut source.client(), &mut client);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_and_databases_choose_what_is_restored() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &[])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let target = into(&server).only_databases([0]).only_keys(["list:*", "set:ints"]);
    let (report, _) = restore(&target, &captured, false).await.unwrap();
    let mut client = server.client();
    let mut keys: Vec<_> = client.ok(&["KEYS", "*"]).array().iter().map(Answer::text).collect();
    keys.sort();
    assert_eq!(keys, ["list:large", "list:long-items", "list:small", "set:ints"]);
    assert_eq!(report.items, 4);
    // Some keys of a database never replace all of it.
    let error = restore(&target, &captured, true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let mut plan = captured.plan(false);
    plan.selection = backup_core::Selection::globs(["db3/string"]).unwrap();
    plan.proofs.clear();
    for item in captured.items.iter().filter(|i| plan.selection.matches(&i.path)) {
        let proof = item.proof.as_ref().unwrap();
        plan.proofs.entry(proof.of.to_string()).or_default().merge(&proof.proof);
    }
    let begun = into(&server).begin(&plan).await.unwrap();
    begun.artifact(captured.readers().remove(0)).await.unwrap();
    assert_eq!(begun.prove().await.unwrap(), plan.proofs);
    begun.commit().await.unwrap();
    client.ok(&["SELECT", "3"]);
    assert_eq!(client.ok(&["DBSIZE"]).int(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_keys_are_counted_and_not_resurrected() {
    let (Some(source), Some(server)) = (empty(REDIS, &[]), empty(REDIS, &[])) else { return };
    let mut client = source.client();
    client.ok(&["SET", "stays", "1"]);
    client.ok(&["SET", "goes", "1", "PX", "700"]);
    client.ok(&["SET", "goes during the proof", "1", "PX", "2500"]);
    client.ok(&["SET", "lives", "1", "EX", "1000"]);
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    assert_eq!(captured.report.proofs["expiring"].count, 3);
    tokio::time::sleep(std::time::Duration::from_millis(900)).await;
    let begun = into(&server).begin(&captured.plan(false)).await.unwrap();
    begun.artifact(captured.readers().remove(0)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(begun.prove().await.unwrap(), captured.report.proofs);
    let (report, _) = begun.commit().await.unwrap();
    assert_eq!(report.details["expired_keys"], 1);
    assert_eq!(count(&mut server.client()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_longer_than_the_server_takes_in_one_argument_are_rebuilt_by_commands() {
    for store in [REDIS6, REDIS, REDIS8, VALKEY] {
        let (Some(source), Some(server)) = (filled(store), empty(store, &["--proto-max-bulk-len", "1mb"]))
        else {
            continue;
        };
        let mut client = source.client();
        client.ok(&["DEL", "string:3mb", "string:4mb:lzf"]);
        for n in 0..40_000 {
            let (n, value) = (n.to_string(), format!("{n}-{}", "abcdefghij".repeat(8)));
            let field_and_value = [&n[..], &value];
            client.pipeline(&[
                &["RPUSH", "big:list", &value],
                &["SADD", "big:set", &value],
                &["ZADD", "big:zset", &n, &value],
                &["HSET", "big:hash", field_and_value[0], field_and_value[1]],
                &["XADD", "big:stream", &format!("{}-1", n.parse::<u64>().unwrap() + 1), "f", &value],
            ]);
        }
        client.ok(&["XGROUP", "CREATE", "big:stream", "g", "0"]);
        client.ok(&["XREADGROUP", "GROUP", "g", "c", "COUNT", "7", "STREAMS", "big:stream", ">"]);
        client.ok(&["EXPIRE", "big:hash", "10000"]);
        if version(&mut client) >= (7, 4) {
            client.ok(&["HPEXPIREAT", "big:hash", "4102444800000", "FIELDS", "1", "77"]);
        }
        let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
        let restored = restore(&into(&server), &captured, false).await;
        restored.unwrap_or_else(|e| panic!("{}: {}", store.name, e.chain()));
        assert_eq!(server.client().ok(&["XPENDING", "big:stream", "g"]).array()[0].int(), 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_refused_and_so_is_a_server_without_room() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &[])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    server.client().ok(&["CONFIG", "SET", "maxmemory", "2mb"]);
    let error = restore(&into(&server), &captured, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{}", error.chain());
    server.client().ok(&["CONFIG", "SET", "maxmemory", "0"]);
    server.client().ok(&["REPLICAOF", "127.0.0.1", &source.port.to_string()]);
    let error = restore(&into(&server), &captured, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_spare_databases_nothing_is_touched() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &["--databases", "4"])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let mut client = server.client();
    for db in ["1", "2"] {
        client.ok(&["SELECT", db]);
        client.ok(&["SET", "k", "v"]);
    }
    let before = digests(&mut client);
    let error = restore(&into(&server), &captured, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreInadequate);
    assert_eq!(before, digests(&mut client));
}
