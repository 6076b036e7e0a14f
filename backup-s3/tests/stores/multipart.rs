//! Large objects: parts, their end, and what is left when there is none.

use std::time::Duration;

use backup_core::{Key, ObjectKind, PutOptions, Sink as _};
use backup_s3::PartSizes;
use backup_testkit::{Moto, S3Stub, collect, noise};

use crate::servers::s3;

const MIB: usize = 1024 * 1024;

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key")
}

/// Waits until `done`, for what happens in the background.
async fn eventually(mut done: impl AsyncFnMut() -> bool) -> bool {
    for _ in 0..100 {
        if done().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_given_up_in_any_way_leaves_no_parts() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address()).build().expect("a sink");
    let begin = async |bytes: usize| {
        let mut writer =
            sink.create(&key("set/large"), PutOptions::overwrite(ObjectKind::Data)).await.expect("create");
        for piece in 0..bytes / MIB {
            writer.write(noise(MIB, piece as u64)).await.expect("write");
        }
        writer
    };
    let writer = begin(30 * MIB).await;
    assert_eq!(moto.unfinished_uploads("tests").await, 1, "the upload runs while it is written");
    writer.abort().await.expect("abort");
    assert_eq!(moto.unfinished_uploads("tests").await, 0, "after abort");

    drop(begin(30 * MIB).await);
    assert!(eventually(async || moto.unfinished_uploads("tests").await == 0).await, "after drop");

    // A finish that is dropped while it runs: the object is whole or absent, and nothing is left.
    for micros in [0, 500, 5_000, 50_000] {
        let finish = begin(30 * MIB).await.finish();
        let _ = tokio::time::timeout(Duration::from_micros(micros), finish).await;
        assert!(
            eventually(async || moto.unfinished_uploads("tests").await == 0).await,
            "after a finish dropped at {micros} µs"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_removes_old_uploads_of_ours_and_nothing_else() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let ours = ["/tests/ours/set/a", "/tests/ours/set/b%2520c", "/tests/ours/d"];
    let foreign = ["/tests/theirs/x", "/tests/ours/not//a/key", "/tests/oursx/y"];
    for target in ours.iter().chain(&foreign) {
        let (status, body) = moto.request("POST", &format!("{target}?uploads"), &[], "").await;
        assert_eq!(status, 200, "{target}: {body}");
    }
    let sink = s3(moto.address()).prefix("ours").build().expect("a sink");
    // To moto every upload began in 2010.
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    assert_eq!(sink.sweep(century).await.expect("sweep"), 0, "they are too young");
    assert_eq!(moto.unfinished_uploads("tests").await, 6);
    assert_eq!(sink.sweep(Duration::from_secs(1)).await.expect("sweep"), 3);
    assert_eq!(moto.unfinished_uploads("tests").await, 3, "what is not ours stays");
    assert_eq!(sink.sweep(Duration::ZERO).await.expect("sweep"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_is_refused_to_a_large_create_new_that_comes_late() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address()).build().expect("a sink");
    let mut writer =
        sink.create(&key("late"), PutOptions::create_new(ObjectKind::Data)).await.expect("create");
    writer.write(noise(30 * MIB, 1)).await.expect("write");
    backup_core::put_bytes(&sink, &key("late"), "first".into(), PutOptions::create_new(ObjectKind::Note))
        .await
        .expect("put");
    let error = writer.finish().await.expect_err("the name is taken");
    assert_eq!(error.kind(), backup_core::ErrorKind::AlreadyExists);
    assert_eq!(collect(sink.open(&key("late"), None).await.expect("open")).await.expect("read"), "first");
    assert!(eventually(async || moto.unfinished_uploads("tests").await == 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_parts_are_equal_and_the_hint_sizes_them() {
    let stub = S3Stub::start().await;
    let sink =
        s3(stub.address()).part_sizes(PartSizes::Equal).upload_memory(64 * MIB).build().expect("a sink");
    // A hint of 150 GiB wants parts of 19 MiB; the object turns out smaller.
    let options = PutOptions::overwrite(ObjectKind::Data).size_hint(Some(150 * 1024 * MIB as u64));
    let mut writer = sink.create(&key("equal"), options).await.expect("create");
    let bytes = noise(70 * MIB + 5, 3);
    for chunk in bytes.chunks(3 * MIB + 1) {
        writer.write(bytes.slice_ref(chunk)).await.expect("write");
    }
    assert_eq!(writer.finish().await.expect("finish").size, bytes.len() as u64);
    let parts = stub.object("/tests/equal").expect("the object");
    let sizes: Vec<u64> = parts.iter().map(|part| part.size).collect();
    let part = 19 * MIB as u64;
    assert_eq!(sizes, [part, part, part, bytes.len() as u64 - 3 * part]);
    let mut rest = bytes.clone();
    for part in parts {
        let piece = rest.split_to(usize::try_from(part.size).expect("a size"));
        assert_eq!(
            part.digest,
            backup_core::Digest::of(&piece),
            "a part arrived changed or in another place"
        );
    }
    assert_eq!(stub.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_objects_are_one_request() {
    let stub = S3Stub::start().await;
    let sink = s3(stub.address()).build().expect("a sink");
    for (name, size) in [("empty", 0), ("small", 1000), ("limit", 16 * MIB)] {
        let options = PutOptions::create_new(ObjectKind::Note);
        let mut writer = sink.create(&key(name), options).await.expect("create");
        for chunk in noise(size, 1).chunks(100_000) {
            writer.write(chunk.to_vec().into()).await.expect("write");
        }
        writer.finish().await.expect("finish");
        assert_eq!(stub.object(&format!("/tests/{name}")).expect("the object").len(), 1, "{name}");
    }
    let requests = stub.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|r| r.method() == "PUT" && r.headers["if-none-match"] == "*"));
    assert!(requests.iter().all(|r| r.headers.contains_key("x-amz-checksum-sha256")));
}
