//! Through the whole engine: compressed, encrypted, verified, restored in part and whole, replacing what is there,
//! and by hand from `RESTORE.txt`.

use std::path::Path;
use std::process::Command;

use backup_core::{AesGcm, ErrorKind, Keyring, MemorySink, Repository, RestoreTarget, Zstd};
use backup_redis::{OnConflict, RedisRdb, RedisRestore};

use crate::backup::filled;
use crate::data::{assert_same, count, digests, fill, version};
use crate::restore::{empty, into, similar};
use crate::support::{ALL, Answer, REDIS, REDIS8};

const SET: &str = "shop/cache";
const KEY: [u8; 32] = [7; 32];

fn repository(sink: &MemorySink) -> Repository {
    Repository::builder()
        .sink(sink.clone())
        .transform(Zstd::default())
        .transform(AesGcm::new(Keyring::builder().key(KEY).build().unwrap()))
        .build()
        .unwrap()
}

async fn into_live(repository: &Repository, target: &dyn RestoreTarget) -> backup_core::Result<()> {
    repository.restore(SET).latest().into(target).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_stored_encrypted_verified_and_comes_back_on_every_server() {
    for store in ALL {
        let Some(source) = filled(store) else { continue };
        let sink = MemorySink::named("memory");
        let repository = repository(&sink);
        let done = repository.backup(SET, &RedisRdb::connect(&source.url()).unwrap()).await.unwrap();
        assert!(repository.verify(SET, done.id).await.unwrap().is_intact());
        let server = empty(store, &[]).unwrap();
        into_live(&repository, &into(&server)).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_same(&mut source.client(), &mut server.client());
        // What it names and holds is not to be read on the sink.
        assert!(sink.keys().len() > 5);
        for key in sink.keys() {
            assert!(memchr::memmem::find(&sink.get(&key).unwrap(), b"hash:long-values").is_none(), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_replaced_only_when_asked_and_undo_brings_it_back() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &[])) else { return };
    let repository = repository(&MemorySink::named("memory"));
    let from = RedisRdb::connect(&source.url()).unwrap();
    repository.backup(SET, &from).await.unwrap();
    let mut client = server.client();
    client.ok(&["SET", "mine", "before"]);
    client.ok(&["RPUSH", "string:short", "a list here"]);
    let before = digests(&mut client);

    let refused = into_live(&repository, &into(&server)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TargetNotEmpty, "{}", refused.chain());
    similar(&before, &digests(&mut client));

    let target = into(&server);
    let mut done = repository.restore(SET).latest().into(&target).replace().await.unwrap();
    assert_eq!(client.ok(&["GET", "string:short"]).text(), "hello");
    assert_eq!(client.ok(&["EXISTS", "mine"]).int(), 0);
    done.undo.take().expect("the old keys are kept").undo().await.unwrap();
    similar(&before, &digests(&mut client));

    // In place there is no exchange: it must be accepted, and two safety nets be named.
    let dir = tempfile::tempdir().unwrap();
    let in_place = into(&server).in_place().safety_backup(dir.path());
    let refused = repository.restore(SET).latest().into(&in_place).replace().await.unwrap_err();
    assert!(refused.chain().contains("allow_partial"), "{}", refused.chain());
    similar(&before, &digests(&mut client));
    let present = RedisRdb::connect(&server.url()).unwrap();
    let mut done = repository
        .restore(SET)
        .latest()
        .into(&in_place)
        .replace()
        .allow_partial()
        .safety_backup("shop/cache-before", &present)
        .await
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    assert!(done.safety_backup.is_some());
    done.undo.take().expect("a safety file").drop_old().await.unwrap();
    assert_same(&mut source.client(), &mut client);
    repository.restore("shop/cache-before").latest().into(&into(&server)).replace().await.unwrap();
    assert_eq!(client.ok(&["GET", "mine"]).text(), "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_keys_and_types_come_back_beside_what_is_there() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &[])) else { return };
    let repository = repository(&MemorySink::named("memory"));
    repository.backup(SET, &RedisRdb::connect(&source.url()).unwrap()).await.unwrap();
    let mut client = server.client();
    client.ok(&["SET", "mine", "stays"]);
    let names = |client: &mut crate::support::Client| {
        let mut names: Vec<_> = client.ok(&["KEYS", "*"]).array().iter().map(Answer::text).collect();
        names.sort();
        names
    };
    into_live(&repository, &into(&server).merge(OnConflict::Keep).only_keys(["list:*"])).await.unwrap();
    assert_eq!(names(&mut client), ["list:large", "list:long-items", "list:small", "mine"]);
    let merge = into(&server).merge(OnConflict::Keep);
    repository.restore(SET).latest().into(&merge).only(["db0/set"]).await.unwrap();
    let sets = names(&mut client).iter().filter(|n| n.starts_with("set:")).count();
    assert_eq!((sets, count(&mut client)), (4, 8));
}

/// A directory with the server's programs under their usual names.
fn programs(dir: &Path, variables: [(&str, &str); 2]) -> bool {
    std::fs::create_dir(dir).unwrap();
    variables.iter().all(|(variable, name)| {
        std::env::var_os(variable).is_some_and(|program| {
            std::os::unix::fs::symlink(program, dir.join(name)).unwrap();
            true
        })
    })
}

/// What `RESTORE.txt` says is run as it stands, by a shell, beside the objects of the backup.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_in_restore_txt_start_a_server_without_this_library() {
    let Some(source) = filled(REDIS) else { return };
    let names =
        [("BACKUP_TEST_REDIS_BIN", "redis-server"), ("BACKUP_TEST_REDIS_CHECK_RDB", "redis-check-rdb")];
    for encrypted in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let bin = place.path().join("bin");
        if !programs(&bin, names) {
            backup_testkit::skip("no redis-check-rdb beside the server");
            return;
        }
        let python = ["-c", "import cryptography"];
        if encrypted && !backup_testkit::tools::available("python", "python3", &python, "RESTORE.txt") {
            continue;
        }
        let sink = MemorySink::named("memory");
        let repository = if encrypted {
            repository(&sink)
        } else {
            Repository::builder().sink(sink.clone()).build().unwrap()
        };
        let done = repository.backup(SET, &RedisRdb::connect(&source.url()).unwrap()).await.unwrap();
        let stored = place.path().join("stored");
        let prefix = format!("{SET}/{}/", done.id);
        for key in sink.keys() {
            if let Some(name) = key.as_str().strip_prefix(&prefix) {
                std::fs::create_dir_all(stored.join(name).parent().unwrap()).unwrap();
                std::fs::write(stored.join(name), sink.get(&key).unwrap()).unwrap();
            }
        }
        let key_file = place.path().join("key");
        std::fs::write(&key_file, KEY).unwrap();
        let port = backup_testkit::free_port();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let output = Command::new("bash")
            .arg("RESTORE.txt")
            .current_dir(&stored)
            .env("PATH", path)
            .env("PORT", port.to_string())
            .env("BACKUP_KEY_OPTION", format!("--key-file {}", key_file.display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
        // The server that the commands started has no debug commands: its RDB proves what it holds.
        let url = format!("redis://127.0.0.1:{port}");
        let mut captured = None;
        for _ in 0..100 {
            captured = backup_testkit::capture(&RedisRdb::connect(&url).unwrap()).await.ok();
            if captured.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        crate::support::Client::connect(port).unwrap().command(&["SHUTDOWN", "NOSAVE"]);
        let original = crate::backup::taken(&RedisRdb::connect(&source.url()).unwrap()).await;
        assert_eq!(captured.expect("a server").report.proofs, original.report.proofs);
    }
}

/// The least that a user needs who restores, and no data it can otherwise read.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_documented_permissions_can_restore_in_every_way() {
    for store in ALL {
        let (Some(source), Some(server)) = (filled(store), empty(store, &[])) else { continue };
        let repository = repository(&MemorySink::named("memory"));
        repository.backup(SET, &RedisRdb::connect(&source.url()).unwrap()).await.unwrap();
        let mut client = server.client();
        let old = version(&mut client) < (7, 0);
        let mut user = vec!["ACL", "SETUSER", "restorer", "on", ">s3cret", "~*"];
        let unknown = |p: &str| p.contains("function") || p.contains("pexpiretime");
        user.extend(RedisRestore::PERMISSIONS.split_whitespace().filter(|p| !(old && unknown(p))));
        client.ok(&user);
        let url = format!("redis://restorer:s3cret@127.0.0.1:{}", server.port);
        let target = RedisRestore::connect(&url).unwrap();
        into_live(&repository, &target).await.unwrap_or_else(|e| panic!("{}: {}", store.name, e.chain()));
        assert_same(&mut source.client(), &mut client);
        let done = repository.restore(SET).latest().into(&target).replace().await;
        let mut done = done.unwrap_or_else(|e| panic!("{}: {}", store.name, e.chain()));
        done.undo.take().expect("the old keys are kept").drop_old().await.unwrap();
        let merge = target.clone().merge(OnConflict::Replace);
        into_live(&repository, &merge).await.unwrap_or_else(|e| panic!("{}: {}", store.name, e.chain()));
        assert_same(&mut source.client(), &mut client);
    }
}

/// What a restore takes for granted is not there when a key cannot be written, or another client writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_meets_a_key_it_cannot_write_leaves_the_earlier_keys() {
    let (Some(new), Some(server)) = (filled(REDIS8), empty(REDIS, &["--appendonly", "yes"])) else {
        return;
    };
    let repository = repository(&MemorySink::named("memory"));
    repository.backup(SET, &RedisRdb::connect(&new.url()).unwrap()).await.unwrap();
    let mut client = server.client();
    fill(&mut client);
    client.ok(&["SET", "mine", "before"]);
    let before = digests(&mut client);
    let dir = tempfile::tempdir().unwrap();
    let present = RedisRdb::connect(&server.url()).unwrap();
    for target in [into(&server), into(&server).in_place().safety_backup(dir.path())] {
        let restore = repository.restore(SET).latest().into(&target).replace().allow_partial();
        let error = restore.safety_backup("before", &present).await.map(|_| ()).unwrap_err();
        assert!(error.chain().contains("hash:ttl:"), "the keys are named: {}", error.chain());
        similar(&before, &digests(&mut client));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a safety backup was left");
}
