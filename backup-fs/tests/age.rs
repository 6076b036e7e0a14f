//! A producer that holds an age public key and a signing key, and nothing to read with: acceptance of promises 3, 9 and
//! 12 for such a host.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]
#![allow(dead_code, reason = "the shared files serve several test programs")]

#[path = "common/files.rs"]
mod files;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backup_core::{Age, BackupId, BackupKind, BackupReport, ErrorKind, Repository, SigningKey, Zstd};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::tools;

const SET: &str = "web/content";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let tree = place.at("tree");
        fs::create_dir_all(&tree).unwrap();
        for n in 0..40 {
            fs::write(tree.join(format!("page {n}")), files::noise(n, 200_000)).unwrap();
        }
        // Younger files are read again: their times cannot tell whether they changed once more.
        std::thread::sleep(Duration::from_millis(2100));
        // It tells the public key on its standard error.
        tools::filter(Command::new("age-keygen").arg("-o").arg(place.at("identity")), b"");
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sink(&self, name: &str) -> LocalSink {
        let path = self.at(name);
        if path.exists() { LocalSink::open(path) } else { LocalSink::init(path) }.unwrap().named(name)
    }

    /// Knows the recipient and its own signing key.
    fn producer(&self) -> Repository {
        let recipient = files::run(Command::new("age-keygen").arg("-y").arg(self.at("identity")));
        let age = Age::builder().recipient(recipient.trim()).sign_with(signing()).build().unwrap();
        let builder = Repository::builder().sink(self.sink("a")).sink(self.sink("b"));
        let builder = builder.transform(Zstd::default()).transform(age);
        builder.state_directory(self.at("state")).build().unwrap()
    }

    fn reader(&self, sink: &str) -> Repository {
        let age = Age::builder().identity_file(self.at("identity")).trust(signing().verifying_key());
        Repository::builder().sink(self.sink(sink)).reads(age.build().unwrap()).build().unwrap()
    }

    async fn back_up(&self) -> BackupReport {
        // Ids of one second have no order.
        std::thread::sleep(Duration::from_millis(1100));
        let source = DirectorySource::new(self.at("tree"));
        self.producer().backup(SET, &source).incremental().await.unwrap()
    }

    fn stored(&self, sink: &str, id: BackupId) -> PathBuf {
        self.at(sink).join(SET).join(id.to_string())
    }

    async fn is_incremental(&self, id: BackupId) -> bool {
        let list = self.producer().backups(SET).await.unwrap();
        let found = list.iter().find(|backup| backup.id == id).unwrap();
        matches!(found.kind, BackupKind::Incremental { .. })
    }
}

fn signing() -> SigningKey {
    SigningKey::from_seed([0x51; 32]).unwrap()
}

fn has_age() -> bool {
    tools::available("tools", "age", &["--version"], "age")
}

fn assert_same(original: &Path, restored: &Path) {
    let out = files::run(Command::new("diff").arg("-r").args([original, restored]));
    assert!(out.is_empty(), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_makes_full_and_incremental_backups_that_it_cannot_read_and_age_can() {
    if !has_age() {
        return;
    }
    let place = Place::new();
    let full = place.back_up().await;
    fs::write(place.at("tree/page 7"), "changed").unwrap();
    fs::write(place.at("tree/a new page"), "new").unwrap();
    fs::remove_file(place.at("tree/page 8")).unwrap();
    let second = place.back_up().await;
    assert!(place.is_incremental(second.id).await && !place.is_incremental(full.id).await);
    assert!(second.stored_size * 20 < full.stored_size, "{} of {}", second.stored_size, full.stored_size);

    // Not one of its verbs gets at the content, and no file of the sinks or name in them shows any.
    let producer = place.producer();
    for id in [full.id, second.id] {
        let error = producer.contents(SET, id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
        let error =
            producer.restore(SET).id(id).into(&DirectoryTarget::new(place.at("no"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
        assert!(producer.verify(SET, id).stored_only().await.unwrap().is_intact());
    }
    assert!(!place.at("no").exists());

    // Every encrypted object is one for the `age` command.
    for id in [full.id, second.id] {
        let objects: Vec<_> =
            fs::read_dir(place.stored("a", id)).unwrap().map(|e| e.unwrap().path()).collect();
        let ages: Vec<_> = objects.iter().filter(|p| p.extension().is_some_and(|e| e == "age")).collect();
        assert!(ages.len() >= 2, "{objects:?}");
        for object in ages {
            let age = ["--decrypt", "--output", "/dev/null", "--identity"];
            files::run(Command::new("age").args(age).arg(place.at("identity")).arg(object));
        }
    }

    // Any one sink and the identity restore everything, also by the lines of RESTORE.txt alone.
    for sink in ["a", "b"] {
        let reads = place.reader(sink);
        assert!(reads.verify(SET, second.id).await.unwrap().is_intact());
        let back = place.at(&format!("back-{sink}"));
        reads.restore(SET).latest().into(&DirectoryTarget::new(&back)).await.unwrap();
        assert_same(&place.at("tree"), &back);
        let one = place.at(&format!("one-{sink}"));
        reads.restore(SET).latest().into(&DirectoryTarget::new(&one)).only(["page 9"]).await.unwrap();
        assert!(fs::read(one.join("page 9")).unwrap() == files::noise(9, 200_000));
    }
    for id in [full.id, second.id] {
        let stored = place.stored("b", id);
        let lines = Command::new("bash")
            .arg("RESTORE.txt")
            .current_dir(&stored)
            .env("BACKUP_IDENTITY", place.at("identity"))
            .output()
            .unwrap();
        assert!(lines.status.success(), "{}", String::from_utf8_lossy(&lines.stderr));
    }
    assert_same(&place.at("tree"), &place.stored("b", second.id).join("restored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_producer_keeps_is_private_and_losing_it_costs_a_full_backup_only() {
    if !has_age() {
        return;
    }
    let place = Place::new();
    let state = place.at("state");
    let kept = || {
        let mut found = Vec::new();
        for entry in fs::read_dir(&state).unwrap().map(Result::unwrap) {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o700);
            for file in fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
                assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
                found.push(file.path());
            }
        }
        found.sort();
        found
    };
    let first = place.back_up().await;
    let second = place.back_up().await;
    assert!(place.is_incremental(second.id).await);
    // The list of the newest, and which it is; nothing of those before.
    assert_eq!(kept().len(), 2);
    let list = kept().into_iter().find(|p| p.extension().is_some_and(|e| e == "jsonl")).unwrap();
    assert!(list.to_str().unwrap().contains(&second.id.to_string()));

    for damage in 0..4 {
        let state_json = list.with_file_name("state.json");
        let newest = kept().into_iter().find(|p| p.extension().is_some_and(|e| e == "jsonl")).unwrap();
        let (path, change): (_, fn(&mut Vec<u8>)) = match damage {
            0 => (newest, |bytes| bytes[100] ^= 1),
            1 => (newest, |bytes| bytes.truncate(bytes.len() / 2)),
            2 => (state_json, |bytes| bytes.truncate(20)),
            _ => {
                fs::remove_dir_all(&state).unwrap();
                let after = place.back_up().await;
                assert!(!place.is_incremental(after.id).await);
                continue;
            }
        };
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let after = place.back_up().await;
        assert!(!place.is_incremental(after.id).await, "damage {damage}");
        let after = place.back_up().await;
        assert!(place.is_incremental(after.id).await, "after damage {damage}");
        assert_eq!(kept().len(), 2);
    }
    assert!(place.reader("a").verify(SET, first.id).await.unwrap().is_intact());
    // Without anywhere to keep it, every backup is a full one.
    let recipient = files::run(Command::new("age-keygen").arg("-y").arg(place.at("identity")));
    let age = Age::builder().recipient(recipient.trim()).sign_with(signing()).build().unwrap();
    let forgets = Repository::builder().sink(place.sink("a")).transform(age).build().unwrap();
    let source = DirectorySource::new(place.at("tree"));
    let done = forgets.backup(SET, &source).incremental().await.unwrap();
    assert!(!place.is_incremental(done.id).await);
}
