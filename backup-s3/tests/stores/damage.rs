//! Promises 3 and 4 on object storage: damage to any object is noticed, and a restore gives the right bytes or none.

use std::collections::BTreeSet;

use backup_core::{
    AesGcm, Bytes, Key, Keyring, MemorySource, MemoryTarget, ObjectKind, PutOptions, Repository, Sink as _,
    Zstd, put_bytes, read_bytes,
};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, noise};
use futures::TryStreamExt as _;

use crate::servers::{S3s, prefix, s3};

const SET: &str = "books";
/// With an index: more than 4 MiB stored.
const LARGE: usize = 4_400_000;

#[derive(Clone, Copy, Debug)]
enum Damage {
    Delete,
    Truncate,
    Flip,
}

impl Damage {
    async fn inflict(self, sink: &ObjectStoreSink, key: &Key, good: &Bytes) {
        let mut bytes = good.to_vec();
        // Not the last byte: a line end after a key wrap means nothing.
        let at = good.len() / 2;
        match self {
            Self::Delete => return sink.delete(key).await.expect("delete"),
            Self::Truncate => bytes.truncate(at),
            Self::Flip => bytes[at] ^= 4,
        }
        put(sink, key, bytes.into()).await;
    }
}

async fn put(sink: &ObjectStoreSink, key: &Key, bytes: Bytes) {
    put_bytes(sink, key, bytes, PutOptions::overwrite(ObjectKind::Data)).await.expect("put");
}

fn repository(sinks: &[&ObjectStoreSink]) -> Repository {
    let keyring = Keyring::builder().key([7; 32]).build().expect("a keyring");
    let mut builder = Repository::builder();
    for sink in sinks {
        builder = builder.sink((*sink).clone());
    }
    // Room for two writers.
    let builder = builder.memory_budget(128 * 1024 * 1024).transform(Zstd::default());
    builder.transform(AesGcm::new(keyring)).build().expect("a repository")
}

fn right(target: &MemoryTarget) -> bool {
    target.get("large") == Some(noise(LARGE, 1)) && target.get("small") == Some("a few bytes".into())
}

async fn every_damage_is_noticed(damaged: ObjectStoreSink, other: ObjectStoreSink) {
    let (both, alone) = (repository(&[&damaged, &other]), repository(&[&damaged]));
    let source = MemorySource::new().artifact("large", noise(LARGE, 1)).artifact("small", "a few bytes");
    let id = both.backup(SET, &source).await.expect("a backup").id;
    let objects: Vec<Key> =
        damaged.list(&Key::root()).map_ok(|info| info.key).try_collect().await.expect("list");
    let kinds: BTreeSet<&str> = objects.iter().filter_map(|key| key.file_name().rsplit('.').next()).collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["SHA256SUMS", "enc", "idx", "json", "py", "txt"],
        "{objects:?}"
    );
    for key in &objects {
        let good = read_bytes(&damaged, key, 8 << 20).await.expect("read");
        for damage in [Damage::Delete, Damage::Truncate, Damage::Flip] {
            damage.inflict(&damaged, key, &good).await;
            let noticed = match alone.verify(SET, id).await {
                Ok(report) => !report.is_intact(),
                Err(_) => true,
            };
            assert!(noticed, "{damage:?} of {key} is not noticed");
            let target = MemoryTarget::new();
            let restored = alone.restore(SET).id(id).into(&target).await;
            assert!(restored.is_err() || right(&target), "{damage:?} of {key}: restored something else");
            if restored.is_err() {
                assert!(target.names().is_empty(), "{damage:?} of {key}: a failed restore left something");
            }
            let target = MemoryTarget::new();
            let healed = both.restore(SET).id(id).into(&target).await;
            healed.unwrap_or_else(|e| panic!("{damage:?} of {key}: not from the other copy: {}", e.chain()));
            assert!(right(&target), "{damage:?} of {key}: the other copy gives something else");
            put(&damaged, key, good.clone()).await;
        }
    }
    assert!(alone.verify(SET, id).await.expect("verify").is_intact(), "everything was put back");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_on_moto_is_noticed_and_read_around() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = |prefix| s3(moto.address()).prefix(prefix).build().expect("a sink");
    every_damage_is_noticed(sink(prefix()), sink(prefix())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_on_a_strict_server_is_noticed_and_read_around() {
    let Some(s3s) = S3s::start().await else { return };
    let sink = |prefix| s3(s3s.address()).prefix(prefix).build().expect("a sink");
    every_damage_is_noticed(sink(prefix()), sink(prefix())).await;
}
