//! Memory is bounded, and does not grow with the data.
//!
//! Each measurement is a process of its own: this test program starts itself again with [`JOB`] set, and the child
//! prints its greatest resident size (`VmHWM` of `proc_pid_status(5)`).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use backup_core::{
    AesGcm, Artifact, ArtifactFormat, ArtifactMeta, ArtifactReader, Atomicity, ByteStream, Bytes,
    CheckReport, Error, Hasher, Key, Keyring, ObjectInfo, ObjectKind, Outcome, Proof, Proofs, PutOptions,
    Repository, Restore, RestorePlan, RestoreReport, RestoreTarget, Result, Sink, SinkId, SinkWriter,
    Snapshot, SnapshotRequest, Source, SourceReport, Undo, WHOLE_BYTES, Zstd, async_trait, whole_proof,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

const JOB: &str = "BACKUP_TEST_MEMORY_JOB";
const DIR: &str = "BACKUP_TEST_MEMORY_DIR";
const MIB: usize = 1024 * 1024;
/// Promised for a run with the default budget of 64 MiB, the process itself included.
const LIMIT_KIB: u64 = 96 * 1024;
/// What two equal runs may differ by, beside a tenth: allocator arenas and thread stacks.
const SLACK_KIB: u64 = 6 * 1024;

/// Artifacts made up on the way: every second MiB is noise, the others are text.
#[derive(Debug)]
struct MadeUp {
    artifacts: usize,
    mib_each: usize,
    max_open: usize,
}

struct MadeUpSnapshot {
    artifacts: usize,
    mib_each: usize,
    max_open: usize,
    next: usize,
    proofs: Arc<Mutex<Proof>>,
}

fn piece(seed: u64, noise: bool) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(64 * 1024 + 8);
    while out.len() < 64 * 1024 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        if noise {
            out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        } else {
            out.extend_from_slice(b"2026-11-20 info ");
            out.push(b'a' + u8::try_from(state % 26).unwrap());
        }
    }
    out.truncate(64 * 1024);
    out.into()
}

#[async_trait]
impl Source for MadeUp {
    fn kind(&self) -> &'static str {
        "made-up"
    }
    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }
    async fn snapshot(&self, _: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(MadeUpSnapshot {
            artifacts: self.artifacts,
            mib_each: self.mib_each,
            max_open: self.max_open,
            next: 0,
            proofs: Arc::default(),
        }))
    }
}

#[async_trait]
impl Snapshot for MadeUpSnapshot {
    fn max_open(&self) -> usize {
        self.max_open
    }
    async fn next(&mut self) -> Result<Option<Artifact>> {
        if self.next == self.artifacts {
            return Ok(None);
        }
        let (number, pieces) = (self.next as u64, self.mib_each as u64 * 16);
        self.next += 1;
        let name = format!("part-{number}");
        let meta = ArtifactMeta::new(name.clone(), ArtifactFormat::BYTES);
        let proofs = Arc::clone(&self.proofs);
        let data = futures::stream::try_unfold((0, Hasher::new()), move |(at, mut hasher)| {
            let (name, proofs) = (name.clone(), Arc::clone(&proofs));
            async move {
                if at == pieces {
                    proofs.lock().unwrap().merge(&whole_proof(&name, &hasher.finish()));
                    return Ok(None);
                }
                let bytes = piece(number << 32 | at, (at / 16) % 2 == 0);
                hasher.update(&bytes);
                Ok::<_, Error>(Some((bytes, (at + 1, hasher))))
            }
        });
        Ok(Some(Artifact { meta, data: data.boxed() }))
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        let mut report = SourceReport::default();
        report.proofs.insert(WHOLE_BYTES.to_owned(), *self.proofs.lock().unwrap());
        Ok(report)
    }
    async fn close(self: Box<Self>, _: Outcome) -> Result<()> {
        Ok(())
    }
}

/// Hashes what it gets, and forgets it.
#[derive(Debug)]
struct Forgetful;

struct Forgotten {
    max_open: usize,
    proofs: Mutex<Proof>,
}

#[async_trait]
impl RestoreTarget for Forgetful {
    fn accepts(&self, _: &ArtifactFormat) -> bool {
        true
    }
    fn atomicity(&self) -> Atomicity {
        Atomicity::Swap
    }
    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        Ok(Box::new(Forgotten { max_open: plan.artifacts.len(), proofs: Mutex::default() }))
    }
}

#[async_trait]
impl Restore for Forgotten {
    fn max_open(&self) -> usize {
        self.max_open
    }
    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let name = reader.meta().name.to_string();
        let mut stream = reader.stream().await?;
        let mut hasher = Hasher::new();
        while let Some(bytes) = stream.try_next().await? {
            hasher.update(&bytes);
        }
        self.proofs.lock().unwrap().merge(&whole_proof(&name, &hasher.finish()));
        Ok(())
    }
    async fn prove(&self) -> Result<Proofs> {
        Ok(std::iter::once((WHOLE_BYTES.to_owned(), *self.proofs.lock().unwrap())).collect())
    }
    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        Ok((RestoreReport::default(), None))
    }
    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A sink that counts and drops, or, with a directory, one that keeps objects in files outside of this process.
#[derive(Clone, Debug)]
struct Outside {
    id: SinkId,
    dir: PathBuf,
    /// Drops artifacts, for runs that only write: markers, wraps and manifests are kept.
    forgets: bool,
}

#[derive(Debug)]
struct OutsideWriter {
    key: Key,
    size: u64,
    file: Option<tokio::fs::File>,
}

impl Outside {
    fn new(id: &str, dir: &Path, forgets: bool) -> Self {
        let dir = dir.join(id);
        std::fs::create_dir_all(&dir).unwrap();
        Self { id: SinkId::new(id), dir, forgets }
    }
    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.as_str().replace('/', "!"))
    }
    fn found(&self, key: &Key) -> Result<PathBuf> {
        Some(self.path(key))
            .filter(|path| path.exists())
            .ok_or_else(|| Error::new(backup_core::ErrorKind::NotFound, "find object"))
    }
}

fn io(error: std::io::Error) -> Error {
    Error::io("use file", error)
}

#[async_trait]
impl Sink for Outside {
    fn id(&self) -> &SinkId {
        &self.id
    }
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        let file = if self.forgets && options.kind == ObjectKind::Data {
            None
        } else {
            Some(tokio::fs::File::create(self.path(key)).await.map_err(io)?)
        };
        Ok(Box::new(OutsideWriter { key: key.clone(), size: 0, file }))
    }
    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let mut file = tokio::fs::File::open(self.found(key)?).await.map_err(io)?;
        let range = range.unwrap_or(0..u64::MAX);
        file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(io)?;
        let file = file.take(range.end - range.start);
        Ok(futures::stream::try_unfold(file, |mut file| async move {
            let mut buffer = bytes(128 * 1024);
            let read = file.read(&mut buffer).await.map_err(io)?;
            buffer.truncate(read);
            Ok((read > 0).then(|| (Bytes::from(buffer), file)))
        })
        .boxed())
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let size = std::fs::metadata(self.found(key)?).map_err(io)?.len();
        Ok(ObjectInfo::new(key.clone(), size))
    }
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        let names: Vec<String> = std::fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap().replace('!', "/"))
            .collect();
        let keys = names.into_iter().map(|name| Key::parse(name).unwrap());
        let below: Vec<_> = keys.filter(|key| key.strip_prefix(prefix).is_some()).collect();
        let (sink, infos) = (self.clone(), futures::stream::iter(below));
        infos
            .then(move |key| {
                let sink = sink.clone();
                async move { sink.head(&key).await }
            })
            .boxed()
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        if let Ok(path) = self.found(key) {
            std::fs::remove_file(path).map_err(io)?;
        }
        Ok(())
    }
}

#[async_trait]
impl SinkWriter for OutsideWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.size += chunk.len() as u64;
        if let Some(file) = &mut self.file {
            file.write_all(&chunk).await.map_err(io)?;
        }
        Ok(())
    }
    async fn finish(mut self: Box<Self>) -> Result<ObjectInfo> {
        if let Some(file) = &mut self.file {
            file.flush().await.map_err(io)?;
        }
        Ok(ObjectInfo::new(self.key, self.size))
    }
    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn bytes(len: usize) -> Vec<u8> {
    vec![0; len]
}

fn repository(sinks: [Outside; 2]) -> Repository {
    let [first, second] = sinks;
    Repository::builder()
        .sink(first)
        .sink(second)
        .require_copies(1)
        .transform(Zstd::default())
        .transform(AesGcm::new(Keyring::builder().key([5; 32]).build().unwrap()))
        .build()
        .unwrap()
}

/// The child's side: `backup 1x64 1`, `store …` (the same, to files) or `restore 1x64 1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(job) = std::env::var(JOB) else { return };
    let words: Vec<&str> = job.split(' ').collect();
    let (artifacts, mib_each) = words[1].split_once('x').unwrap();
    let source = MadeUp {
        artifacts: artifacts.parse().unwrap(),
        mib_each: mib_each.parse().unwrap(),
        max_open: words[2].parse().unwrap(),
    };
    let plain = (source.artifacts * source.mib_each * MIB) as u64;
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let forgets = words[0] == "backup";
    let repo = repository([Outside::new("first", &dir, forgets), Outside::new("second", &dir, true)]);
    if words[0] == "restore" {
        let done = repo.restore("app").into(&Forgetful).await.unwrap();
        assert_eq!(done.plain_read, plain);
    } else {
        assert_eq!(repo.backup("app", &source).await.unwrap().plain_size, plain);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("\npeak {}", peak.trim().trim_end_matches(" kB"));
}

/// Runs a job in a process of its own and returns its peak in KiB.
fn peak(job: &str, dir: &Path) -> u64 {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(JOB, job)
        .env(DIR, dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{job}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let peak = text.lines().find_map(|line| line.strip_prefix("peak ")?.parse().ok());
    peak.unwrap_or_else(|| panic!("{job}: no peak in {text}"))
}

fn is_bounded(what: &str, small: u64, large: u64) {
    assert!(small < LIMIT_KIB && large < LIMIT_KIB, "{what}: {small} KiB, then {large} KiB");
    assert!(large <= small + small / 10 + SLACK_KIB, "{what} grows: {small} KiB, then {large} KiB");
}

#[test]
fn the_memory_of_a_backup_does_not_grow_with_the_data() {
    let dir = tempfile::tempdir().unwrap();
    is_bounded("backup", peak("backup 1x64 1", dir.path()), peak("backup 1x256 1", dir.path()));
}

#[test]
fn the_memory_of_a_restore_does_not_grow_with_the_data() {
    let peaks = ["1x64 1", "1x256 1"].map(|size| {
        let dir = tempfile::tempdir().unwrap();
        peak(&format!("store {size}"), dir.path());
        peak(&format!("restore {size}"), dir.path())
    });
    is_bounded("restore", peaks[0], peaks[1]);
}

#[test]
fn many_open_artifacts_share_one_budget() {
    let dir = tempfile::tempdir().unwrap();
    is_bounded("eight at once", peak("backup 8x8 8", dir.path()), peak("backup 8x32 8", dir.path()));
}
