//! Writing and deleting.

use backup_core::{Bytes, ErrorKind, ObjectKind, PutOptions, Sink, put_bytes};
use futures::TryStreamExt as _;

use super::{assert_invisible, assert_kind, key, list, names, new_note, put, read};
use crate::noise;

/// Create-new of what exists fails at `create` or `finish` and leaves the object as it was.
pub async fn create_new_refuses_what_exists(sink: &dyn Sink) {
    put(sink, "taken", "first").await;
    let second = put_bytes(sink, &key("taken"), "second".into(), new_note()).await;
    assert_kind(second, ErrorKind::AlreadyExists, "create-new of an existing object");
    assert_eq!(read(sink, "taken").await.expect("read"), "first");

    // Free at create, taken at finish.
    let mut writer = sink.create(&key("late"), new_note()).await.expect("create");
    writer.write("slow".into()).await.expect("write");
    put(sink, "late", "fast").await;
    assert_kind(writer.finish().await, ErrorKind::AlreadyExists, "finish of a name taken meanwhile");
    assert_eq!(read(sink, "late").await.expect("read"), "fast");

    // Free again once deleted.
    sink.delete(&key("taken")).await.expect("delete");
    put_bytes(sink, &key("taken"), "third".into(), new_note()).await.expect("create-new after delete");
    assert_eq!(read(sink, "taken").await.expect("read"), "third");
}

/// Objects of no bytes, of many tiny chunks, of empty chunks in between, and of `large` bytes come back whole, with
/// and without a (wrong) size hint.
pub async fn objects_of_any_size_come_back(sink: &dyn Sink, large: usize) {
    let data = PutOptions::create_new(ObjectKind::Data);
    let writer = sink.create(&key("size/nothing"), data.clone()).await.expect("create");
    assert_eq!(writer.finish().await.expect("finish").size, 0);
    assert!(read(sink, "size/nothing").await.expect("read").is_empty());

    let tiny = noise(100_000, 6);
    let mut writer =
        sink.create(&key("size/tiny-chunks"), data.clone().size_hint(Some(3))).await.expect("create");
    for chunk in tiny.chunks(37) {
        writer.write(Bytes::copy_from_slice(chunk)).await.expect("write");
        writer.write(Bytes::new()).await.expect("write nothing");
    }
    assert_eq!(writer.finish().await.expect("finish").size, 100_000);
    assert!(read(sink, "size/tiny-chunks").await.expect("read") == tiny);

    for (name, chunk_size, hint) in [
        ("size/large", 1_000_003, None),
        ("size/large-hinted", 4 * 1024 * 1024, Some(large as u64)),
        ("size/large-once", large.max(1), Some(1)),
    ] {
        let mut hasher = backup_core::Hasher::new();
        let options = PutOptions::overwrite(ObjectKind::Data).size_hint(hint);
        let mut writer = sink.create(&key(name), options).await.expect("create");
        let mut left = large;
        while left > 0 {
            let chunk = noise(left.min(chunk_size), left as u64);
            left -= chunk.len();
            hasher.update(&chunk);
            writer.write(chunk).await.expect("write");
        }
        assert_eq!(writer.finish().await.expect("finish").size, large as u64, "{name}");
        let mut back = backup_core::Hasher::new();
        let mut stream = sink.open(&key(name), None).await.expect("open");
        while let Some(chunk) = stream.try_next().await.expect("read") {
            back.update(&chunk);
        }
        assert_eq!(back.finish(), hasher.finish(), "{name} came back changed");
        sink.delete(&key(name)).await.expect("delete");
    }
}

/// Deleting removes exactly one object; deleting what is absent is no error.
pub async fn deleting_what_is_absent_is_ok(sink: &dyn Sink) {
    for name in ["never", "never/there", "a/b/c"] {
        sink.delete(&key(name)).await.unwrap_or_else(|e| panic!("delete of absent {name}: {}", e.chain()));
    }
    put(sink, "del/one", "1").await;
    put(sink, "del/one.more", "2").await;
    put(sink, "del/deep/er", "3").await;
    // A name with objects below it is not an object.
    sink.delete(&key("del")).await.expect("delete of a prefix");
    sink.delete(&key("del/one/below")).await.expect("delete below an object");
    assert_eq!(names(sink, "del").await, ["del/deep/er", "del/one", "del/one.more"]);
    sink.delete(&key("del/one")).await.expect("delete");
    assert_invisible(sink, "del/one", "after delete").await;
    sink.delete(&key("del/one")).await.expect("delete twice");
    sink.delete(&key("del/deep/er")).await.expect("delete");
    assert_eq!(names(sink, "").await, ["del/one.more"]);
    sink.delete(&key("del/one.more")).await.expect("delete");
    assert!(list(sink, "").await.is_empty());
    put(sink, "del/deep/er", "again").await;
    assert_eq!(names(sink, "").await, ["del/deep/er"]);
}
