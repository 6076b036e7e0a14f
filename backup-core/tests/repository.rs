//! The verbs of a repository over in-memory sinks: what exists when, and what comes back.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use backup_core::{
    Artifact, ArtifactFormat, ArtifactMeta, ByteStream, Bytes, CheckReport, Error, ErrorKind, Event, Gzip,
    Key, MemorySink, MemorySource, MemoryTarget, Outcome, Repository, Result, Snapshot, SnapshotRequest,
    Source, SourceReport, async_trait,
};
use futures::{StreamExt as _, TryStreamExt as _};

fn two_sinks() -> (MemorySink, MemorySink) {
    (MemorySink::named("first"), MemorySink::named("second"))
}

fn plain(sinks: &(MemorySink, MemorySink)) -> Repository {
    Repository::builder().sink(sinks.0.clone()).sink(sinks.1.clone()).build().unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_comes_back_from_either_copy() {
    let sinks = two_sinks();
    let big = noise(9_000_000);
    let source =
        MemorySource::new().artifact("big", big.clone()).artifact("small", "hello").artifact("none", "");
    for repo in [
        plain(&sinks),
        Repository::builder()
            .sink(sinks.0.clone())
            .sink(sinks.1.clone())
            .transform(Gzip::default())
            .build()
            .unwrap(),
    ] {
        let done = repo.backup("app/data", &source).await.unwrap();
        assert_eq!(done.copies.len(), 2);
        assert_eq!(done.plain_size, 9_000_005);
        assert!(repo.verify("app/data", done.id).await.unwrap().is_intact());
        let list = repo.backups("app/data").await.unwrap();
        assert_eq!(list[0].id, done.id);
        assert!(!list[0].degraded);

        for only in [sinks.0.clone(), sinks.1.clone()] {
            let alone = Repository::builder().sink(only).build().unwrap();
            let target = MemoryTarget::new();
            let outcome = alone.restore("app/data").latest().into(&target).await.unwrap();
            assert_eq!(outcome.id, done.id);
            assert_eq!(target.get("big").unwrap(), big);
            assert_eq!(target.get("small").unwrap(), "hello");
            assert_eq!(target.get("none").unwrap(), "");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_with_new_content_restores_the_new() {
    let sinks = two_sinks();
    let repo = plain(&sinks);
    repo.backup("app", &MemorySource::new().artifact("a", "old")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    repo.backup("app", &MemorySource::new().artifact("a", "new")).await.unwrap();
    let target = MemoryTarget::new();
    repo.restore("app").into(&target).await.unwrap();
    assert_eq!(target.get("a").unwrap(), "new");
    assert_eq!(repo.backups("app").await.unwrap().len(), 2);
}

/// Delivers `total` bytes but fails at the given place.
#[derive(Debug)]
struct Failing {
    total: usize,
    fail_after: Option<usize>,
    fail_finish: bool,
    aborted: Arc<AtomicUsize>,
}

struct FailingSnapshot {
    data: Option<ByteStream>,
    fail_finish: bool,
    aborted: Arc<AtomicUsize>,
}

#[async_trait]
impl Source for Failing {
    fn kind(&self) -> &'static str {
        "failing"
    }
    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }
    async fn snapshot(&self, _: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let good = self.fail_after.unwrap_or(self.total);
        let mut chunks: Vec<Result<Bytes>> =
            noise(good).chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        if self.fail_after.is_some() {
            chunks.push(Err(Error::new(ErrorKind::SourceFailed, "read test source")));
        }
        Ok(Box::new(FailingSnapshot {
            data: Some(futures::stream::iter(chunks).boxed()),
            fail_finish: self.fail_finish,
            aborted: Arc::clone(&self.aborted),
        }))
    }
}

#[async_trait]
impl Snapshot for FailingSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        Ok(self
            .data
            .take()
            .map(|data| Artifact { meta: ArtifactMeta::new("data", ArtifactFormat::BYTES), data }))
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        if self.fail_finish {
            return Err(Error::new(ErrorKind::SourceFailed, "finish test source"));
        }
        Ok(SourceReport::default())
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        if outcome == Outcome::Aborted {
            self.aborted.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_leaves_nothing_behind() {
    const TOTAL: usize = 5_000_000;
    let aborted = Arc::new(AtomicUsize::new(0));
    let places = [Some(0), Some(1), Some(TOTAL / 2), Some(TOTAL - 1), None];
    for fail_after in places {
        let sinks = two_sinks();
        let repo = plain(&sinks);
        let source = Failing {
            total: TOTAL,
            fail_after,
            fail_finish: fail_after.is_none(),
            aborted: Arc::clone(&aborted),
        };
        let error = repo.backup("app", &source).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceFailed, "{error:?}");
        assert!(repo.backups("app").await.unwrap().is_empty());
        assert_eq!(sinks.0.keys(), Vec::<Key>::new(), "after failing at {fail_after:?}");
        assert_eq!(sinks.1.keys(), Vec::<Key>::new());
    }
    assert_eq!(aborted.load(Relaxed), places.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_or_dropped_run_leaves_nothing_behind() {
    let sinks = two_sinks();
    let repo = plain(&sinks);
    let source = MemorySource::new().artifact("big", noise(4_000_000));
    let error = repo
        .backup("app", &source)
        .rate_limit(1_000_000)
        .run_until(tokio::time::sleep(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(sinks.0.keys(), Vec::<Key>::new());

    let run = repo.backup("app", &source).rate_limit(1_000_000).into_future();
    assert!(tokio::time::timeout(Duration::from_millis(300), run).await.is_err());
    let gone = async {
        while !(sinks.0.keys().is_empty() && sinks.1.keys().is_empty()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("a dropped run is cleaned up");
}

#[tokio::test(flavor = "multi_thread")]
async fn disjoint_damage_in_two_copies_restores_completely() {
    let sinks = two_sinks();
    let repo = plain(&sinks);
    let big = noise(20_000_000);
    let done = repo.backup("app", &MemorySource::new().artifact("big", big.clone())).await.unwrap();
    let object = object_ending(&sinks.0, "big.bin");
    assert!(sinks.0.damage(&object, |b| b[3_000_000] ^= 1));
    assert!(sinks.0.damage(&object, |b| b.truncate(17_000_000)));
    assert!(sinks.1.damage(&object, |b| b[9_000_000] ^= 0x80));

    let report = repo.verify("app", done.id).await.unwrap();
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
    assert!(report.intact.is_empty());

    let damaged = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&damaged);
    let target = MemoryTarget::new();
    repo.restore("app")
        .into(&target)
        .observer(move |event: &Event<'_>| {
            if let Event::CopyDamaged { .. } = event {
                seen.fetch_add(1, Relaxed);
            }
        })
        .await
        .unwrap();
    assert_eq!(target.get("big").unwrap(), big);
    assert!(damaged.load(Relaxed) >= 2);

    // The same block in both copies: the restore fails, names it, and the target stays as it was.
    assert!(sinks.1.damage(&object, |b| b[3_000_001] ^= 1));
    let target = MemoryTarget::new();
    let error = repo.restore("app").into(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(error.chain().contains("big.bin"), "{}", error.chain());
    assert!(target.is_empty());
}

fn object_ending(sink: &MemorySink, end: &str) -> Key {
    sink.keys().into_iter().find(|k| k.as_str().ends_with(end)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_flipped_truncated_or_deleted_is_noticed() {
    let sinks = two_sinks();
    let repo = Repository::builder().sink(sinks.0.clone()).transform(Gzip::default()).build().unwrap();
    let source = MemorySource::new().artifact("big", noise(6_000_000)).artifact("small", "hello");
    let done = repo.backup("app", &source).await.unwrap();
    let keys = sinks.0.keys();
    assert!(keys.iter().any(|k| k.as_str().contains(".idx")));
    for key in keys {
        let original = sinks.0.get(&key).unwrap();
        for damage in 0..4 {
            let mut bytes = original.to_vec();
            let middle = bytes.len() / 2;
            match damage {
                0 => bytes[middle] ^= 4,
                1 => bytes.truncate(bytes.len() - 1),
                2 => bytes.push(0),
                _ => drop(sinks.0.remove(&key)),
            }
            if damage < 3 {
                sinks.0.replace(&key, bytes);
            }
            let noticed = match repo.verify("app", done.id).await {
                Ok(report) => !report.is_intact(),
                Err(_) => true,
            };
            assert!(noticed, "damage {damage} of {key} went unnoticed");
            sinks.0.replace(&key, original.clone());
        }
    }
    assert!(repo.verify("app", done.id).await.unwrap().is_intact());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_moved_to_another_place_is_refused() {
    let sinks = two_sinks();
    let repo = Repository::builder().sink(sinks.0.clone()).build().unwrap();
    let done = repo.backup("app", &MemorySource::new().artifact("a", "x")).await.unwrap();
    let manifest = object_ending(&sinks.0, "manifest.json");
    let moved =
        Key::parse(manifest.as_str().replace(&done.id.to_string(), "20300101T000000Z-abcdef")).unwrap();
    sinks.0.replace(&moved, sinks.0.get(&manifest).unwrap());
    let list = repo.backups("app").await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list.unreadable.len(), 1);
    assert_eq!(list.unreadable[0].error.kind(), ErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_does_not_overwrite_unless_asked_and_can_be_undone() {
    let sinks = two_sinks();
    let repo = plain(&sinks);
    repo.backup("app", &MemorySource::new().artifact("a", "backed up")).await.unwrap();
    let target = MemoryTarget::new();
    target.put("a", "precious");
    let error = repo.restore("app").into(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);
    assert_eq!(target.get("a").unwrap(), "precious");
    let outcome = repo.restore("app").into(&target).replace().await.unwrap();
    assert_eq!(target.get("a").unwrap(), "backed up");
    outcome.undo.unwrap().undo().await.unwrap();
    assert_eq!(target.get("a").unwrap(), "precious");
    // A rehearsal proves everything and changes nothing.
    repo.restore("app").into(&target).replace().rehearse().await.unwrap();
    assert_eq!(target.get("a").unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_and_export_show_what_is_inside() {
    let sinks = two_sinks();
    let repo = plain(&sinks);
    let big = noise(5_500_000);
    let done = repo
        .backup("app", &MemorySource::new().artifact("big", big.clone()).artifact("small", "hello"))
        .label("reason", "test")
        .await
        .unwrap();
    let contents = repo.contents("app", done.id).await.unwrap();
    assert_eq!(contents.manifest().labels["reason"], "test");
    let items: Vec<_> = contents.items().try_collect().await.unwrap();
    assert_eq!(items.len(), 2);
    assert!(items.iter().all(|i| i.origin == Some(done.id)));

    let export = repo.export("app", done.id).await.unwrap();
    let reader = export.artifact("big").unwrap();
    let part: Vec<Bytes> = reader.range(1_000_000..4_500_001).await.unwrap().try_collect().await.unwrap();
    assert_eq!(part.concat(), &big[1_000_000..4_500_001]);
    assert_eq!(export.artifact("nothing").unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_repository_that_cannot_work_is_refused_when_built() {
    let build = |b: backup_core::RepositoryBuilder| b.build().unwrap_err().kind();
    let sink = || MemorySink::named("one");
    assert_eq!(build(Repository::builder()), ErrorKind::InvalidInput);
    assert_eq!(build(Repository::builder().sink(sink()).sink(sink())), ErrorKind::InvalidInput);
    assert_eq!(build(Repository::builder().sink(sink()).require_copies(2)), ErrorKind::InvalidInput);
    assert_eq!(build(Repository::builder().sink(sink()).require_encryption()), ErrorKind::Unencrypted);
    assert_eq!(build(Repository::builder().sink(sink()).memory_budget(1024)), ErrorKind::InvalidInput);
}
