//! Classes, tags, encryption, locks, copies: what objects are dressed with.

use backup_core::{Availability, Key, ObjectKind, PutOptions, Sink as _, put_bytes, read_bytes};
use backup_s3::{Encryption, ObjectLock, ObjectStoreSink, StorageClasses};
use backup_testkit::{Moto, S3Stub, noise};
use chrono::{TimeDelta, Utc};

use crate::servers::{S3s, s3};

const MIB: usize = 1024 * 1024;

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key")
}

fn data() -> PutOptions {
    PutOptions::overwrite(ObjectKind::Data)
}

async fn put_large(sink: &dyn backup_core::Sink, name: &str, options: PutOptions) {
    let mut writer = sink.create(&key(name), options).await.expect("create");
    writer.write(noise(20 * MIB, 1)).await.expect("write");
    writer.finish().await.expect("finish");
}

/// Whether the store copies an object of `size` bytes.
async fn copied(sink: &ObjectStoreSink, from: &str, size: u64, to: &str, options: PutOptions) -> bool {
    let from = sink.address(&key(from)).expect("an address");
    sink.copy_from(&from, size, &key(to), options).await.expect("copy").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_gets_its_class_and_tags_and_manifests_stay_hot() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address())
        .storage_classes(StorageClasses::new().data("GLACIER_IR"))
        .tag("purpose", "backup/restore + more")
        .server_side_encryption(Encryption::S3)
        .build()
        .expect("a sink");
    put_bytes(&sink, &key("small"), "x".into(), data()).await.expect("put");
    put_large(&sink, "large", data()).await;
    put_bytes(&sink, &key("manifest"), "{}".into(), PutOptions::create_new(ObjectKind::Manifest))
        .await
        .expect("put");
    let (_, listing) = moto.request("GET", "/tests?list-type=2", &[], "").await;
    let class = |name: &str| {
        let entry =
            listing.split("<Contents>").find(|e| e.contains(&format!("<Key>{name}</Key>"))).expect("listed");
        entry.split_once("<StorageClass>").and_then(|(_, r)| r.split_once('<')).map(|(c, _)| c.to_owned())
    };
    assert_eq!(class("small").as_deref(), Some("GLACIER_IR"));
    assert_eq!(class("large").as_deref(), Some("GLACIER_IR"));
    assert_eq!(class("manifest").as_deref(), Some("STANDARD"));
    for name in ["small", "large", "manifest"] {
        let (_, tags) = moto.request("GET", &format!("/tests/{name}?tagging"), &[], "").await;
        assert!(
            tags.contains("<Key>purpose</Key>") && tags.contains("backup/restore + more"),
            "{name}: {tags}"
        );
        assert_eq!(sink.head(&key(name)).await.expect("head").availability, Availability::Ready);
    }
    assert!(s3(moto.address()).storage_classes(StorageClasses::new().manifests("GLACIER")).build().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_object_says_so_and_can_be_thawed() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address()).build().expect("a sink");
    put_bytes(&sink, &key("set/yearly"), "old".into(), data()).await.expect("put");
    assert!(sink.change_class(&key("set/yearly"), "GLACIER").await.expect("archive"));
    assert!(!sink.change_class(&key("set/yearly"), "GLACIER").await.expect("it lies there already"));
    assert_eq!(sink.head(&key("set/yearly")).await.expect("head").availability, Availability::Archived);
    let listed: Vec<_> = futures::TryStreamExt::try_collect(sink.list(&key("set"))).await.expect("list");
    let listed: Vec<backup_core::ObjectInfo> = listed;
    assert_eq!(listed[0].availability, Availability::Archived);
    let error = read_bytes(&sink, &key("set/yearly"), 100).await.expect_err("it cannot be read now");
    assert!(!error.is_retryable() && error.to_string().contains("thaw"), "{}", error.chain());
    sink.thaw(&key("set/yearly")).await.expect("thaw");
    // moto thaws at once or says it is under way; either is no longer `Archived`.
    let info = sink.head(&key("set/yearly")).await.expect("head");
    assert_ne!(info.availability, Availability::Archived);
    sink.thaw(&key("set/yearly")).await.expect("asking twice is no error");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_locked_where_the_bucket_has_locks() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let with_locks = [("x-amz-bucket-object-lock-enabled", "true")];
    let (status, body) = moto.request("PUT", "/locked", &with_locks, "").await;
    assert_eq!(status, 200, "{body}");
    let until = Utc::now() + TimeDelta::days(30);
    let options = || data().retain_until(Some(until));
    let plain = s3(moto.address()).build().expect("a sink");
    put_bytes(&plain, &key("small"), "x".into(), options())
        .await
        .expect("a bucket without locks takes the object");

    let sink = s3(moto.address()).bucket("locked").build().expect("a sink");
    put_bytes(&sink, &key("small"), "x".into(), options()).await.expect("put");
    assert!(copied(&sink, "small", 1, "copy", options()).await);
    put_bytes(&sink, &key("free"), "x".into(), data()).await.expect("put");
    for name in ["small", "copy"] {
        let headers = moto.headers(&format!("/locked/{name}")).await;
        assert_eq!(headers.get("x-amz-object-lock-mode").map(String::as_str), Some("GOVERNANCE"), "{name}");
        let kept = &headers["x-amz-object-lock-retain-until-date"];
        assert!(kept.starts_with(&until.format("%Y-%m-%dT%H:%M:%S").to_string()), "{name}: {kept}");
    }
    let locked = async |name: &str| {
        moto.headers(&format!("/locked/{name}")).await.contains_key("x-amz-object-lock-mode")
    };
    assert!(!locked("free").await, "an object without a retention is not locked");

    let off = s3(moto.address()).bucket("locked").object_lock(ObjectLock::Off).build().expect("a sink");
    put_bytes(&off, &key("off"), "x".into(), options()).await.expect("put");
    assert!(!locked("off").await);
}

/// moto forgets the lock of a multipart upload: what matters is that the request asks, and that it is signed.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_is_locked_by_the_request_that_begins_it() {
    let stub = S3Stub::start().await;
    let until = Utc::now() + TimeDelta::days(30);
    let options = || data().retain_until(Some(until));
    let sink = s3(stub.address()).object_lock(ObjectLock::Compliance).build().expect("a sink");
    put_large(&sink, "large", options()).await;
    let requests = stub.requests();
    let begin = requests.iter().find(|r| r.query("uploads").is_some()).expect("an upload begins");
    assert_eq!(begin.headers["x-amz-object-lock-mode"], "COMPLIANCE");
    assert!(
        begin.headers["authorization"].contains("x-amz-object-lock-mode;x-amz-object-lock-retain-until-date")
    );
    let asking = requests.iter().filter(|r| r.headers.contains_key("x-amz-object-lock-mode")).count();
    assert_eq!(asking, 1, "parts have no lock of their own");

    // A server that checks every signature takes both.
    let Some(s3s) = S3s::start().await else { return };
    let sink = s3(s3s.address()).object_lock(ObjectLock::Governance).build().expect("a sink");
    put_large(&sink, "large", options()).await;
    put_bytes(&sink, &key("small"), "x".into(), options()).await.expect("put");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_inside_the_store_is_dressed_anew() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address())
        .storage_classes(StorageClasses::new().data("STANDARD_IA"))
        .tag("copy", "yes")
        .build()
        .expect("a sink");
    put_large(&sink, "a b/%2E%2E".replace(' ', "_").as_str(), data()).await;
    let from = key("a_b/%2E%2E");
    let large = 20 * MIB as u64;
    assert!(copied(&sink, from.as_str(), large, "to/large", data()).await);
    let found = read_bytes(&sink, &key("to/large"), 100 * MIB as u64).await.expect("read");
    assert!(found == noise(20 * MIB, 1));
    let manifest = PutOptions::overwrite(ObjectKind::Manifest);
    assert!(copied(&sink, from.as_str(), large, "to/small", manifest).await);
    let (_, listing) = moto.request("GET", "/tests?list-type=2", &[], "").await;
    for (name, class) in [("to/large", "STANDARD_IA"), ("to/small", "STANDARD")] {
        let entry = listing.split("<Contents>").find(|e| e.contains(&format!("<Key>{name}</Key>")));
        assert!(entry.expect("listed").contains(&format!("<StorageClass>{class}<")), "{name}: {listing}");
    }
    // Only a put can promise create-new.
    assert!(!copied(&sink, from.as_str(), large, "to/new", PutOptions::create_new(ObjectKind::Data)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn customer_keys_are_sent_with_parts_and_shown_nowhere() {
    let stub = S3Stub::start().await;
    let secret = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    let sink = s3(stub.address())
        .server_side_encryption(Encryption::Customer { key_base64: secret.into() })
        .build()
        .expect("a sink");
    put_large(&sink, "large", data()).await;
    let name = "x-amz-server-side-encryption-customer-key";
    let carrying =
        stub.requests().iter().filter(|r| r.headers.get(name).is_some_and(|v| v == secret)).count();
    assert!(carrying >= 4, "create and three parts carry the key");
    let error = sink.head(&key("absent")).await.expect_err("absent");
    assert!(!format!("{sink:?} {error:?} {}", error.chain()).contains(secret));
    assert_eq!(sink.address(&key("large")), None, "the store could not read it");
}
