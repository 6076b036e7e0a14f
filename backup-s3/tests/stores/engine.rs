//! Local and S3 together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backup_core::{
    AesGcm, Artifact, ArtifactFormat, ArtifactMeta, Bytes, CheckReport, Digest, ErrorKind, Keyring,
    MemoryTarget, Outcome, Repository, Result, Snapshot, SnapshotRequest, Source, SourceReport, WHOLE_BYTES,
    Zstd, async_trait, whole_proof,
};
use backup_fs::LocalSink;
use backup_testkit::{Moto, noise};
use futures::StreamExt as _;

use crate::servers::s3;

const PIECE: usize = 1024 * 1024;

/// Counts how often its pieces are read.
struct Counted {
    pieces: u64,
    reads: Arc<AtomicU64>,
    /// Happens before this piece is read.
    event: Option<(u64, Event)>,
}

type Event = Arc<dyn Fn() + Send + Sync>;

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

struct Once {
    meta: Option<ArtifactMeta>,
    pieces: u64,
    reads: Arc<AtomicU64>,
    event: Option<(u64, Event)>,
}

#[async_trait]
impl Source for Counted {
    fn kind(&self) -> &'static str {
        "counted"
    }
    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }
    async fn snapshot(&self, _request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(Once {
            meta: Some(ArtifactMeta::new("data", ArtifactFormat::BYTES)),
            pieces: self.pieces,
            reads: Arc::clone(&self.reads),
            event: self.event.clone(),
        }))
    }
}

#[async_trait]
impl Snapshot for Once {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        let Some(meta) = self.meta.take() else { return Ok(None) };
        let (reads, event) = (Arc::clone(&self.reads), self.event.clone());
        let data = futures::stream::iter(0..self.pieces)
            .map(move |piece| {
                reads.fetch_add(1, Ordering::SeqCst);
                if let Some((_, happen)) = event.as_ref().filter(|(at, _)| piece == *at) {
                    happen();
                }
                Ok(noise(PIECE, piece))
            })
            .boxed();
        Ok(Some(Artifact { meta, data }))
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        let mut report = SourceReport::default();
        let whole = Digest::of(&expected(self.pieces));
        report.proofs.insert(WHOLE_BYTES.to_owned(), whole_proof("data", &whole));
        Ok(report)
    }
    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        Ok(())
    }
}

fn expected(pieces: u64) -> Bytes {
    let all: Vec<u8> = (0..pieces).flat_map(|piece| noise(PIECE, piece)).collect();
    all.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn local_and_s3_read_the_source_once_and_each_restores_alone() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("repository");
    let remote = s3(moto.address()).prefix("p").build().expect("a sink");
    let repository = Repository::builder()
        .sink(LocalSink::init(&place).expect("a local sink"))
        .sink(remote)
        .require_copies(2)
        .build()
        .expect("the default budget holds a local and an S3 sink");
    let reads = Arc::new(AtomicU64::new(0));
    let source = Counted { pieces: 40, reads: Arc::clone(&reads), event: None };
    let done = repository.backup("set", &source).await.expect("a backup");
    assert_eq!(reads.load(Ordering::SeqCst), 40, "one read for two copies");
    for sink in repository.sinks() {
        assert!(repository.verify("set", done.id).on(sink).await.expect("verify").is_intact(), "{sink}");
        let target = MemoryTarget::new();
        repository.restore("set").latest().into(&target).from(sink).await.expect("restore");
        assert!(target.get("data").expect("the artifact") == expected(40), "{sink}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_leaves_a_good_local_copy_and_replicate_makes_the_other() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("repository");
    drop(LocalSink::init(&place).expect("a local sink"));
    let both = |server: &Moto| {
        let remote = s3(server.address()).request_timeout(Duration::from_secs(2)).build().expect("a sink");
        Repository::builder()
            .sink(LocalSink::open(&place).expect("the local sink"))
            .sink(remote)
            .require_copies(2)
            .stall_timeout(Duration::from_secs(8))
            .retries(0, Duration::from_millis(10))
            .build()
            .expect("a repository")
    };
    let moto = Arc::new(moto);
    let (reads, victim) = (Arc::new(AtomicU64::new(0)), Arc::clone(&moto));
    let kill: Event = Arc::new(move || victim.kill());
    let source = Counted { pieces: 60, reads: Arc::clone(&reads), event: Some((30, kill)) };
    let repository = both(&moto);
    let error = repository.backup("set", &source).await.expect_err("one copy is missing");
    assert_eq!(error.kind(), ErrorKind::TooFewCopies, "{}", error.chain());
    assert_eq!(reads.load(Ordering::SeqCst), 60, "the other copy went on");

    // While the server is away, and with another that knows nothing, the backup is listed, degraded, and whole.
    let list = repository.backups("set").await.expect("list");
    assert_eq!(list.unreachable.len(), 1, "{:?}", list.unreachable);
    assert_eq!(list.iter().map(|backup| backup.degraded).collect::<Vec<_>>(), [true]);
    let target = MemoryTarget::new();
    repository.restore("set").latest().into(&target).await.expect("restore from the local copy");
    assert!(target.get("data").expect("the artifact") == expected(60));

    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let repository = both(&moto);
    let id = repository.backups("set").await.expect("list")[0].id;
    let report = repository.replicate("set", id).await.expect("replicate");
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(reads.load(Ordering::SeqCst), 60, "replicate does not read the source");
    let list = repository.backups("set").await.expect("list");
    assert_eq!(list.iter().map(|backup| backup.degraded).collect::<Vec<_>>(), [false]);
    let alone = Repository::builder().sink(s3(moto.address()).build().expect("a sink")).build();
    let alone = alone.expect("a repository");
    assert!(alone.verify("set", id).await.expect("verify").is_intact());
    let target = MemoryTarget::new();
    alone.restore("set").latest().into(&target).await.expect("restore from S3 alone");
    assert!(target.get("data").expect("the artifact") == expected(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_and_encrypted_backups_fit_the_default_budget() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let keyring = Keyring::builder().key([7; 32]).build().expect("a keyring");
    let repository = Repository::builder()
        .sink(s3(moto.address()).build().expect("a sink"))
        .transform(Zstd::default())
        .transform(AesGcm::new(keyring))
        .build()
        .expect("the default budget holds an S3 sink, compression and encryption");
    let source = backup_core::MemorySource::new().artifact("data", noise(20 * PIECE, 3));
    let done = repository.backup("set", &source).await.expect("a backup");
    assert!(repository.verify("set", done.id).await.expect("verify").is_intact());
}
