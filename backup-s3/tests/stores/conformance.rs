//! Every store keeps every promise of a sink.

use std::sync::Arc;

use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, SinkSuite, sink};

use crate::servers::{Azurite, S3s, prefix, s3};

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_memory_keeps_every_promise() {
    SinkSuite::new()
        .run(async || {
            let store = Arc::new(object_store::memory::InMemory::new());
            let sink = ObjectStoreSink::builder(Arc::clone(&store) as _).multipart(store).prefix("a/b");
            Arc::new(sink.build().expect("a sink"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_a_directory_keeps_every_promise_but_long_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let make = || {
        let place = dir.path().join(prefix());
        std::fs::create_dir_all(&place).expect("a directory");
        let store = object_store::local::LocalFileSystem::new_with_prefix(place).expect("a store");
        ObjectStoreSink::builder(Arc::new(store)).without_attributes().build().expect("a sink")
    };
    all_but_long_names_and_races(make).await;
    sink::deleting_what_is_absent_is_ok(&make()).await;
    sink::a_missing_object_is_not_found(&make()).await;
    sink::create_new_has_one_winner(Arc::new(make()), 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_keeps_every_promise() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    SinkSuite::new()
        .large(40 * MIB)
        .run(async || Arc::new(s3(moto.address()).prefix(prefix()).build().expect("a sink")))
        .await;
    assert_eq!(moto.unfinished_uploads("tests").await, 0, "parts were left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite_keeps_every_promise() {
    let Some(azurite) = Azurite::start().await else { return };
    SinkSuite::new().large(40 * MIB).run(async || Arc::new(azurite.sink(&prefix()))).await;
}

/// Everything but what it does not do itself: its conditional put is not free of races (two of sixteen can win), and as
/// it keeps objects as files, it has no object below another and answers 500 to the deletion of a directory.
#[tokio::test(flavor = "multi_thread")]
async fn s3s_with_strict_signatures_keeps_every_promise_but_the_race() {
    let Some(s3s) = S3s::start().await else { return };
    let make = || s3(s3s.address()).prefix(prefix()).build().expect("a sink");
    all_but_long_names_and_races(make).await;
}

async fn all_but_long_names_and_races(make: impl Fn() -> ObjectStoreSink) {
    sink::nothing_is_visible_before_finish(&make()).await;
    sink::aborted_and_dropped_writers_leave_nothing(&make()).await;
    sink::a_dropped_write_leaves_nothing(&make()).await;
    sink::a_dropped_finish_leaves_a_whole_object_or_none(&make()).await;
    sink::an_overwrite_shows_the_old_or_the_new(Arc::new(make())).await;
    sink::create_new_refuses_what_exists(&make()).await;
    sink::objects_of_any_size_come_back(&make(), 40 * MIB).await;
    sink::ranges_are_exact(&make()).await;
    sink::prefixes_match_whole_segments(&make()).await;
    sink::head_and_list_agree(&make()).await;
    sink::the_root_is_no_object(&make()).await;
    sink::overwriters_leave_one_whole_object(Arc::new(make()), 16).await;
    sink::concurrent_writers_do_not_mix(Arc::new(make()), 16).await;
}
