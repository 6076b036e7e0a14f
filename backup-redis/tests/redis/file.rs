//! A file for a server to start from.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use backup_core::{ErrorKind, RestoreTarget as _};
use backup_redis::{RdbFileTarget, RedisRdb};
use backup_testkit::{Captured, TargetSuite};

use crate::backup::{debug, filled, taken};
use crate::data::assert_same;
use crate::support::{REDIS, Server};

async fn place(target: &RdbFileTarget, captured: &Captured, replace: bool) -> backup_core::Result<()> {
    let restore = target.begin(&captured.plan(replace)).await?;
    restore.artifact(captured.readers().remove(0)).await?;
    assert_eq!(restore.prove().await?, captured.report.proofs);
    restore.commit().await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_from_the_placed_file() {
    let Some(source) = filled(REDIS) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump.rdb");
    place(&RdbFileTarget::new(&path).mode(0o640), &captured, false).await.unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o640);
    assert_eq!(meta.uid(), std::fs::metadata(dir.path()).unwrap().uid());
    let second = Server::start_in(dir, &REDIS.find().unwrap(), debug(REDIS));
    assert_same(&mut source.client(), &mut second.client());

    // It runs now: a file placed there would be overwritten.
    let error =
        place(&RdbFileTarget::new(second.dir.path().join("dump.rdb")), &captured, true).await.unwrap_err();
    assert!(error.chain().contains("SHUTDOWN NOSAVE"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_an_append_only_file_is_refused_with_the_way_round() {
    let Some(source) = filled(REDIS) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let mut server = Server::start(&REDIS.find().unwrap(), &["--appendonly", "yes"]);
    server.client().ok(&["SET", "a", "b"]);
    let path = server.dir.path().join("dump.rdb");
    server.kill();
    let error = place(&RdbFileTarget::new(&path), &captured, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetFailed);
    assert!(error.chain().contains("appendonly no"), "{}", error.chain());
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_target_keeps_the_promises_of_targets() {
    let Some(source) = filled(REDIS) else { return };
    let first = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    source.client().ok(&["SET", "one more", "key"]);
    let second = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let dirs = std::sync::Mutex::new(Vec::new());
    let make = async || {
        let dir = tempfile::tempdir().unwrap();
        let target = RdbFileTarget::new(dir.path().join("dump.rdb"));
        dirs.lock().unwrap().push(dir);
        target
    };
    let content = async |_: &RdbFileTarget| {
        let dirs = dirs.lock().unwrap();
        let dir = dirs.last().unwrap().path();
        std::fs::read(dir.join("dump.rdb"))
            .map(|bytes| std::iter::once(("dump.rdb".to_owned(), bytes.into())).collect())
            .unwrap_or_default()
    };
    TargetSuite::new().run(make, content, [&first, &second]).await;
    for dir in dirs.lock().unwrap().iter() {
        let left = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().contains("restoring"));
        assert_eq!(left.count(), 0, "a staged file is left");
    }
}
