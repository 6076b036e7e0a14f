//! Backups of directories that are killed, and taken up again: what had been finished is not read a second time, and what
//! changed meanwhile is.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]
#![allow(dead_code, reason = "the shared files serve several test programs")]

#[path = "common/files.rs"]
mod files;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::{
    AesGcm, Artifact, BackupId, BackupReport, CheckReport, Error, ErrorKind, Event, Finished, Keyring,
    Outcome, Repository, Result, Sink, Snapshot, SnapshotRequest, Source, SourceReport, Zstd, async_trait,
};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::{Crash, Ended, FaultySink, Kill};

const SET: &str = "t/files";
const KEY: [u8; 32] = [0x5e; 32];
const SINKS: [&str; 2] = ["one", "two"];

fn over<S: Sink + 'static>(sinks: impl IntoIterator<Item = S>) -> Repository {
    let builder = sinks.into_iter().fold(Repository::builder(), backup_core::RepositoryBuilder::sink);
    let keyring = Keyring::builder().key(KEY).build().unwrap();
    builder.transform(Zstd::default()).transform(AesGcm::new(keyring)).build().unwrap()
}

fn sinks(dir: &Path) -> [LocalSink; 2] {
    SINKS.map(|name| {
        let path = dir.join(name);
        if path.exists() { LocalSink::open(path) } else { LocalSink::init(path) }.unwrap().named(name)
    })
}

/// Archives of a quarter of a MiB.
fn source(dir: &Path) -> DirectorySource {
    DirectorySource::builder().root(".", dir.join("tree")).artifact_size(256 << 10).build().unwrap()
}

/// Times of files that are younger do not tell whether they changed once more.
const OLD_ENOUGH: Duration = Duration::from_millis(3100);

/// Directories `d0` to `d7` with four files of 50 to 90 KB each, links and a pipe.
fn make_tree(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    for d in 0..8_u64 {
        let path = tree.join(format!("d{d}"));
        fs::create_dir_all(path.join("empty")).unwrap();
        for n in 0..4_u64 {
            let length = usize::try_from(50_000 + (d * 7 + n * 13) % 40 * 1000).unwrap();
            fs::write(path.join(format!("file{n}")), files::noise(d * 10 + n, length)).unwrap();
        }
        std::os::unix::fs::symlink("file0", path.join("link")).unwrap();
    }
    files::run(Command::new("mkfifo").arg(tree.join("d1/pipe")));
    tree
}

/// What a run read, and what it took over, in plain bytes by archive.
#[derive(Debug)]
struct Seen {
    report: BackupReport,
    read: BTreeMap<String, u64>,
    adopted: BTreeMap<String, u64>,
}

async fn resume(dir: &Path) -> Seen {
    let seen: Arc<Mutex<[BTreeMap<String, u64>; 2]>> = Arc::default();
    let observer = {
        let seen = Arc::clone(&seen);
        move |event: &Event<'_>| {
            let (of, name, bytes) = match event {
                Event::ArtifactFinished { artifact, plain, .. } => (0, *artifact, *plain),
                Event::ArtifactAdopted { artifact, plain, .. } => (1, *artifact, *plain),
                _ => return,
            };
            assert!(seen.lock().unwrap()[of].insert(name.to_owned(), bytes).is_none());
        }
    };
    let report = over(sinks(dir)).backup(SET, &source(dir)).resume().observer(observer).await.unwrap();
    let [read, adopted] = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(report.adopted, adopted.len());
    assert_eq!(report.plain_size, read.values().chain(adopted.values()).sum::<u64>());
    Seen { report, read, adopted }
}

/// Each sink alone holds the backup whole, and gives the tree.
async fn assert_whole(dir: &Path, seen: &Seen, case: &str) {
    for sink in sinks(dir) {
        let name = sink.id().to_string();
        let repo = over([sink]);
        assert!(repo.backups(SET).await.unwrap().unreadable.is_empty());
        let checked = repo.verify(SET, seen.report.id).await.unwrap();
        assert!(checked.is_intact(), "{case}: {:?}", checked.problems);
        let back = dir.join(format!("back-{name}"));
        repo.restore(SET).id(seen.report.id).into(&DirectoryTarget::new(&back)).await.unwrap();
        files::assert_same_tree(&dir.join("tree"), &back);
        fs::remove_dir_all(back).unwrap();
    }
}

/// A source that fails when everything was read: every archive is finished then.
#[derive(Debug)]
struct FailsAtTheEnd(DirectorySource);

struct Failing(Box<dyn Snapshot>);

#[async_trait]
impl Source for FailsAtTheEnd {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }
    async fn check(&self) -> Result<CheckReport> {
        self.0.check().await
    }
    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(Failing(self.0.snapshot(request).await?)))
    }
}

#[async_trait]
impl Snapshot for Failing {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        self.0.next().await
    }
    fn finished(&mut self, artifact: &str) -> Option<Finished> {
        self.0.finished(artifact)
    }
    async fn finish(&mut self) -> Result<SourceReport> {
        Err(Error::new(ErrorKind::SourceFailed, "read source"))
    }
    async fn close(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.0.close(outcome).await
    }
}

/// A run that fails when all archives are finished.
async fn dead(dir: &Path) {
    let source = FailsAtTheEnd(source(dir));
    over(sinks(dir)).backup(SET, &source).resume().await.unwrap_err();
}

#[test]
fn a_killed_backup_goes_on_where_it_was() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(child) = Crash::child() {
        let dir = PathBuf::from(child.var("dir"));
        let [one, two] = sinks(&dir);
        let both: [Arc<dyn Sink>; 2] = [Arc::new(child.sink(one)), Arc::new(two)];
        let repo = over(both);
        runtime.block_on(async { repo.backup(SET, &source(&dir)).resume().await.unwrap() });
        return;
    }
    let original = tempfile::tempdir().unwrap();
    make_tree(original.path());
    std::thread::sleep(OLD_ENOUGH);
    drop(sinks(original.path()));
    let copied = |to: &Path| {
        for name in ["one", "two"] {
            files::run(Command::new("cp").arg("-a").arg(original.path().join(name)).arg(to));
        }
        // Not a copy: its inodes would be others.
        std::os::unix::fs::symlink(original.path().join("tree"), to.join("tree")).unwrap();
    };
    let calm = tempfile::tempdir().unwrap();
    copied(calm.path());
    let counting = FaultySink::new(sinks(calm.path())[0].clone());
    let all = runtime.block_on(async {
        over([counting.clone()]).backup(SET, &source(calm.path())).resume().await.unwrap()
    });
    let calls = counting.total();
    let kills = Crash::kills(8);
    let mut adopted = Vec::new();
    for n in 0..kills {
        let dir = tempfile::tempdir().unwrap();
        copied(dir.path());
        let at = 1 + n * calls / kills;
        let crash = Crash::of("a_killed_backup_goes_on_where_it_was").var("dir", dir.path());
        assert_eq!(crash.run(Kill::AtCall(at)), Ended::Killed);
        let seen = runtime.block_on(resume(dir.path()));
        assert_eq!(seen.report.plain_size, all.plain_size, "killed at {at}");
        adopted.push(seen.adopted.len());
        runtime.block_on(assert_whole(dir.path(), &seen, &format!("killed at call {at}")));
    }
    assert_eq!(adopted[0], 0, "{adopted:?}");
    // The last ones may have been killed after their manifest.
    assert!(adopted.iter().max() >= Some(&9), "{adopted:?}");
}

type Change = (&'static str, fn(&Path));

/// What happens to a tree between two runs.
const CHANGES: [Change; 9] = [
    ("nothing", |_| {}),
    ("content of the same size and mtime", |tree| {
        let path = tree.join("d2/file1");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    }),
    ("a mode", |tree| {
        fs::set_permissions(tree.join("d3/file2"), fs::Permissions::from_mode(0o640)).unwrap();
    }),
    ("a directory's mode", |tree| {
        fs::set_permissions(tree.join("d4/empty"), fs::Permissions::from_mode(0o700)).unwrap();
    }),
    ("one more", |tree| fs::write(tree.join("d5/file1-new"), "new").unwrap()),
    ("one less", |tree| fs::remove_file(tree.join("d6/file3")).unwrap()),
    ("a second name", |tree| fs::hard_link(tree.join("d0/file0"), tree.join("d7/zz")).unwrap()),
    ("a link that points elsewhere", |tree| {
        fs::remove_file(tree.join("d1/link")).unwrap();
        std::os::unix::fs::symlink("file1", tree.join("d1/link")).unwrap();
    }),
    ("a directory all gone", |tree| fs::remove_dir_all(tree.join("d3")).unwrap()),
];

#[tokio::test(flavor = "multi_thread")]
async fn only_archives_whose_entries_are_all_the_same_are_taken_over() {
    let places = CHANGES.map(|_| tempfile::tempdir().unwrap());
    for place in &places {
        make_tree(place.path());
    }
    std::thread::sleep(OLD_ENOUGH);
    for ((what, change), place) in CHANGES.iter().zip(&places) {
        let dir = place.path();
        dead(dir).await;
        change(&dir.join("tree"));
        let seen = resume(dir).await;
        assert!(seen.adopted.len() >= 5, "{what}: {seen:?}");
        // All but nothing is noticed, and only what it touches is read again.
        assert_eq!(seen.read.is_empty(), *what == "nothing", "{what}: {seen:?}");
        assert!(seen.read.len() <= 3, "{what}: {seen:?}");
        assert_whole(dir, &seen, what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_over_is_restored_by_hand_and_built_upon() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let tree = make_tree(dir);
    std::thread::sleep(OLD_ENOUGH);
    dead(dir).await;
    fs::write(tree.join("d2/file1"), "changed").unwrap();
    let seen = resume(dir).await;
    assert!(!seen.adopted.is_empty() && !seen.read.is_empty(), "{seen:?}");
    by_hand(dir, seen.report.id, &tree);

    fs::write(tree.join("d5/file2"), "changed, too").unwrap();
    fs::remove_file(tree.join("d6/file0")).unwrap();
    let next = over(sinks(dir)).backup(SET, &source(dir)).incremental().resume().await.unwrap();
    assert!(next.plain_size < seen.report.plain_size / 5, "{next:?}");
    by_hand(dir, next.id, &tree);
    for sink in sinks(dir) {
        let back = dir.join("again");
        over([sink]).restore(SET).latest().into(&DirectoryTarget::new(&back)).await.unwrap();
        files::assert_same_tree(&tree, &back);
        fs::remove_dir_all(back).unwrap();
    }
}

/// Runs `RESTORE.txt` as it stands.
fn by_hand(dir: &Path, id: BackupId, tree: &Path) {
    let cryptography = Command::new("python3").args(["-c", "import cryptography"]).output();
    if !cryptography.is_ok_and(|out| out.status.success()) {
        backup_testkit::skip("in part: python3 with cryptography is not installed");
        return;
    }
    let (stored, key) = (dir.join("two").join(SET).join(id.to_string()), dir.join("key"));
    fs::write(&key, KEY).unwrap();
    let script = fs::read_to_string(stored.join("RESTORE.txt")).unwrap();
    let option = format!("--key-file {}", key.display());
    let mut command = Command::new("bash");
    command.arg("RESTORE.txt").current_dir(&stored).env("BACKUP_KEY_OPTION", option);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}\n{script}", String::from_utf8_lossy(&out.stderr));
    files::assert_same_tree(tree, &stored.join("restored"));
    fs::remove_dir_all(stored.join("restored")).unwrap();
}
