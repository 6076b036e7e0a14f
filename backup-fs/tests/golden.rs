//! Frozen repositories in `tests/golden/`: what earlier versions wrote stays readable.
//!
//! Each directory there is a case: `case.json` says what it is, `repository.tar.gz` is the sink. A new case needs only
//! a line in [`CASES`] and one run of this test with `BACKUP_GOLDEN=write`; see `tests/golden/README.md`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use backup_core::{
    AesGcm, Age, BackupKind, Digest, Gzip, Keyring, Repository, RepositoryBuilder, SigningKey, TransformSpec,
    Until, Zstd, encode_segment,
};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::tools::available;
use backup_testkit::{FaultySink, LogFile, LogTarget, Operation, Rule};
use futures::TryStreamExt as _;
use serde_json::{Value, json};

const SET: &str = "golden/it's files";
const KEY: [u8; 32] = *b"golden repositories hold no data";
const PASSPHRASE: &str = "not a secret: golden";

const AGE_RECIPIENT: &str = "age1hzztvcamptqggk0499jlx0mg8uqh038slfavce4wzvjuu5ph9vxqrsj8n8";
const AGE_IDENTITY: &str = "AGE-SECRET-KEY-1AE7YVYR9VZQ2TPR6EUW5ECNV26VKUTAY56VKD9EHMNTJDD7S2MQQKSJUW4";

/// A case: its directory, its chain, what opens it, and how many backups it has.
struct Case {
    name: &'static str,
    chain: &'static [&'static str],
    key: &'static str,
    backups: usize,
    what: What,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    /// A tree; all backups but the first are incremental.
    Tree,
    /// With files of so many bytes, each of which fills an artifact.
    Large(usize),
    /// Begun by a run that died, and taken over.
    Resumed,
    /// A full, and slices of the log after it.
    Log,
}

const CASES: [Case; 9] = [
    Case { name: "plain", chain: &[], key: "none", backups: 1, what: What::Tree },
    Case { name: "gzip", chain: &["gzip"], key: "none", backups: 1, what: What::Tree },
    Case {
        name: "zstd-aes-key-file",
        chain: &["zstd", "aes"],
        key: "key-file",
        backups: 1,
        what: What::Tree,
    },
    Case {
        name: "gzip-aes-passphrase",
        chain: &["gzip", "aes"],
        key: "passphrase",
        backups: 1,
        what: What::Tree,
    },
    Case {
        name: "zstd-aes-incremental",
        chain: &["zstd", "aes"],
        key: "key-file",
        backups: 3,
        what: What::Tree,
    },
    // Not compressed, because only objects of more than 4 MiB have an index.
    Case { name: "plain-two-indexed", chain: &[], key: "none", backups: 1, what: What::Large(4_500_000) },
    Case { name: "zstd-age-incremental", chain: &["zstd", "age"], key: "age", backups: 3, what: What::Tree },
    Case {
        name: "zstd-aes-resumed",
        chain: &["zstd", "aes"],
        key: "key-file",
        backups: 2,
        what: What::Resumed,
    },
    Case { name: "gzip-aes-log", chain: &["gzip", "aes"], key: "key-file", backups: 4, what: What::Log },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn builder(chain: &[&str], key: &str) -> RepositoryBuilder {
    let keyring = || match key {
        "key-file" => Keyring::builder().key(KEY).build().unwrap(),
        "passphrase" => Keyring::from_passphrase(PASSPHRASE).unwrap(),
        other => panic!("no keys are known for `{other}`"),
    };
    chain.iter().fold(Repository::builder(), |builder, transform| match *transform {
        "gzip" => builder.transform(Gzip::default()),
        "zstd" => builder.transform(Zstd::default()),
        "aes" => builder.transform(AesGcm::new(keyring())),
        "age" => {
            let age = Age::builder().recipient(AGE_RECIPIENT).identity(AGE_IDENTITY);
            builder.transform(age.sign_with(SigningKey::from_seed(KEY).unwrap()).build().unwrap())
        }
        other => panic!("no transform is known as `{other}`"),
    })
}

/// What a tree holds: by path, the mode and what is there.
fn listing(tree: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = encode_segment(path.strip_prefix(tree).unwrap().to_str().unwrap().as_bytes());
            let mode = meta.permissions().mode() & 0o7777;
            let seconds = meta.modified().unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let what = if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_dir() {
                directories.push(path);
                format!("{mode:o} {seconds} directory")
            } else {
                format!("{mode:o} {seconds} {}", Digest::of(&fs::read(&path).unwrap()))
            };
            found.insert(name, what);
        }
    }
    found
}

/// The tree as it is at backup number `n`. Nothing in it depends on the machine or the time.
fn make_tree(tree: &Path, n: usize, large: usize) {
    let write = |name: &str, content: &[u8]| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if fs::read(&path).is_ok_and(|there| there == content) {
            return;
        }
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n as u64);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    if n == 0 {
        write("books/one.txt", b"a first line\n");
        write("books/it's \"odd\"\n$name", b"odd");
        write("books/noise.bin", &backup_testkit::noise(3_000, 1));
        write("empty", b"");
        write("goes.txt", b"deleted after the first backup");
        fs::hard_link(tree.join("books/one.txt"), tree.join("books/one again.txt")).unwrap();
        std::os::unix::fs::symlink("books/one.txt", tree.join("link")).unwrap();
        if large > 0 {
            let line = b"the same line, again and again, so that this directory stays small\n";
            for name in ["large-1.log", "large-2.log"] {
                write(name, &line.repeat(large / line.len()));
            }
        }
    } else {
        let _ = fs::remove_file(tree.join("goes.txt"));
        write(&format!("books/new-{n}.txt"), format!("written for backup {n}\n").as_bytes());
        write("changes.txt", format!("as of backup {n}\n").as_bytes());
    }
    age_directories(tree, n);
}

fn age_directories(tree: &Path, n: usize) {
    for name in ["books", "."] {
        let directory = fs::File::open(tree.join(name)).unwrap();
        directory.set_permissions(PermissionsExt::from_mode(0o750)).unwrap();
        directory.set_modified(UNIX_EPOCH + Duration::from_secs(1_700_001_000 + n as u64)).unwrap();
    }
}

/// A tree, backed up as often as it is changed.
async fn write_trees(case: &Case, place: &Path, sink: &LocalSink) -> Vec<Value> {
    let tree = place.join("tree");
    fs::create_dir(&tree).unwrap();
    let repo = builder(case.chain, case.key).sink(sink.clone()).build().unwrap();
    let (large, bound) = if let What::Large(bytes) = case.what { (bytes, 5 << 20) } else { (0, 1 << 30) };
    let source = DirectorySource::builder().root(".", &tree).artifact_size(bound).build().unwrap();
    let mut backups = Vec::new();
    for n in 0..case.backups {
        make_tree(&tree, n, large);
        // Younger files would be read again by the next incremental.
        tokio::time::sleep(Duration::from_millis(if case.backups > 1 { 3_100 } else { 0 })).await;
        if case.what == What::Resumed && n == 0 {
            // An archive with further names is not taken over.
            fs::remove_file(tree.join("books/one again.txt")).unwrap();
            age_directories(&tree, n);
            tokio::time::sleep(Duration::from_millis(3_100)).await;
            // It dies before its details: marker, key, archive, and the two notes on that are there.
            let dying = FaultySink::new(sink.clone());
            dying.arm(Rule::nth(6).on(Operation::Create).times(u64::MAX));
            let dying = builder(case.chain, case.key).sink(dying).retries(0, Duration::ZERO).build().unwrap();
            dying.backup(SET, &source).resume().await.unwrap_err();
        }
        let done = repo.backup(SET, &source).incremental().resume().label("case", case.name).await.unwrap();
        assert_eq!(done.adopted, usize::from(case.what == What::Resumed && n == 0));
        backups.push(json!({ "id": done.id, "tree": listing(&tree) }));
    }
    backups
}

/// The state of a datastore, and slices of its log.
async fn write_log(case: &Case, place: &Path, sink: &LocalSink) -> Vec<Value> {
    let repo = builder(case.chain, case.key).sink(sink.clone()).build().unwrap();
    fs::create_dir(place.join("log")).unwrap();
    let log = LogFile::create(place.join("log"));
    log.append("before the backup");
    let base = repo.backup(SET, &log.state()).label("case", case.name).await.unwrap();
    let mut backups = vec![json!({ "id": base.id, "text": log.text_of(log.len()) })];
    for n in 1..case.backups {
        let before = log.len();
        for line in 0..n {
            log.append(&format!("line {line} of slice {n}"));
        }
        if n == 2 {
            log.rotate();
        }
        // Ids of one second have no order.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let source = log.source();
        let done = repo.follow(SET, &source).slice(Duration::from_millis(1), 1 << 20).once().await.unwrap();
        assert_eq!(done.slices, 1, "{done:?}");
        let all = log.text_of(log.len());
        let newest = repo.backups(SET).await.unwrap()[0].id;
        backups.push(json!({ "id": newest, "text": all[log.text_of(before).len()..] }));
    }
    backups
}

/// Writes one case.
async fn write(case: &Case) {
    let place = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(place.path().join("sink")).unwrap().named("golden");
    let backups = match case.what {
        What::Log => write_log(case, place.path(), &sink).await,
        _ => write_trees(case, place.path(), &sink).await,
    };
    let directory = root().join(case.name);
    fs::create_dir_all(&directory).unwrap();
    let text = json!({ "set": SET, "chain": case.chain, "key": case.key, "backups": backups });
    fs::write(directory.join("case.json"), serde_json::to_string_pretty(&text).unwrap() + "\n").unwrap();
    let status = Command::new("tar")
        .args(["--create", "--gzip", "--owner=0", "--group=0", "--file"])
        .arg(directory.join("repository.tar.gz"))
        .arg("--directory")
        .arg(place.path())
        .arg("sink")
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn missing_golden_repositories_are_written_when_asked() {
    if std::env::var_os("BACKUP_GOLDEN").is_none_or(|value| value != "write") {
        eprintln!("SKIPPED: set BACKUP_GOLDEN=write to write the cases that are missing");
        return;
    }
    for case in CASES {
        // What is there is frozen.
        if !root().join(case.name).exists() {
            write(&case).await;
        }
    }
}

/// Runs the backup's own `RESTORE.txt`, and the decoder of today.
fn by_hand(
    case: &Value,
    place: &Path,
    stored: &Path,
    id: &str,
    items: usize,
    chain: &[TransformSpec],
) -> Option<PathBuf> {
    let age = case["key"] == "age";
    let encrypted = case["key"] != "none" && !age;
    if age && !available("age", "age", &["--version"], "golden repositories") {
        return None;
    }
    if encrypted && !available("python", "python3", &["-c", "import cryptography"], "golden repositories") {
        return None;
    }
    let key_file = place.join("key");
    fs::write(&key_file, KEY).unwrap();
    let identity = place.join("identity");
    fs::write(&identity, AGE_IDENTITY).unwrap();
    let option = match case["key"].as_str().unwrap() {
        "passphrase" => "--passphrase-env GOLDEN_PASSPHRASE".to_owned(),
        _ => format!("--key-file {}", key_file.display()),
    };
    let run = |command: &mut Command| {
        let command = command
            .current_dir(stored)
            .env("GOLDEN_PASSPHRASE", PASSPHRASE)
            .env("BACKUP_IDENTITY", &identity)
            .env("BACKUP_KEY_OPTION", &option);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    run(Command::new("bash").arg("RESTORE.txt"));
    if encrypted {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/decrypt.py").canonicalize().unwrap();
        let (object, undo) = match chain[0].id.as_ref() {
            "gzip" => ("details.jsonl.gz.enc", "gzip -dc"),
            _ => ("details.jsonl.zst.enc", "zstd -dc"),
        };
        let line = format!(
            "set -o pipefail; python3 \"$1\" --keys keys $BACKUP_KEY_OPTION --set \"$2\" --id \"$3\" --artifact details < {object} | {undo}"
        );
        let details = run(Command::new("bash").args(["-c", &line, "-"]).arg(script).args([SET, id]));
        let lines = String::from_utf8(details).unwrap();
        assert_eq!(lines.lines().count(), items + 1, "a head and a line for each item");
    }
    Some(stored.to_owned())
}

fn text(tree: &Value) -> &str {
    tree["text"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_golden_repository_is_listed_verified_restored_and_opened_by_hand() {
    let mut cases: Vec<_> =
        fs::read_dir(root()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    assert!(cases.len() >= CASES.len(), "cases are missing in {}", root().display());
    for directory in cases {
        let name = directory.display();
        let case: Value = serde_json::from_slice(&fs::read(directory.join("case.json")).unwrap()).unwrap();
        let chain: Vec<_> = case["chain"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let place = tempfile::tempdir().unwrap();
        let tar = directory.join("repository.tar.gz");
        let status =
            Command::new("tar").args(["--extract", "--gzip", "--file"]).arg(tar).current_dir(&place).status();
        assert!(status.unwrap().success());
        let sink = LocalSink::open(place.path().join("sink")).unwrap().named("golden");
        let repo = builder(&chain, case["key"].as_str().unwrap()).sink(sink).build().unwrap();

        let set = case["set"].as_str().unwrap();
        let list = repo.backups(set).await.unwrap();
        let ids: Vec<_> = list.iter().rev().map(|backup| backup.id.to_string()).collect();
        let expected = case["backups"].as_array().unwrap();
        assert_eq!(ids, expected.iter().map(|b| b["id"].as_str().unwrap()).collect::<Vec<_>>(), "{name}");
        assert!(list.unreadable.is_empty(), "{name}");
        for (backup, expected) in list.iter().rev().zip(expected) {
            let verified = repo.verify(set, backup.id).await.unwrap();
            assert!(verified.is_intact(), "{name}: {:?}", verified.problems);
            let contents = repo.contents(set, backup.id).await.unwrap();
            let items = contents.items().try_fold(0, |n, _| std::future::ready(Ok(n + 1))).await.unwrap();
            let id = backup.id.to_string();
            let mut stored = set
                .split('/')
                .fold(place.path().join("sink"), |at, part| at.join(encode_segment(part.as_bytes())));
            if let BackupKind::Log { from, to, .. } = &backup.kind {
                stored = stored.join("log").join(format!("{from}-{to}-{id}"));
            } else {
                stored = stored.join(&id);
            }
            let chain = &contents.manifest().chain;
            let restored = by_hand(&case, place.path(), &stored, &id, items, chain);
            if expected["tree"].is_null() {
                // A state or a slice of a log: lines.
                let lines = restored.map(|stored| fs::read_to_string(stored.join("state.lines")).unwrap());
                assert!(lines.is_none_or(|lines| lines == text(expected)), "{name}: RESTORE.txt");
                continue;
            }
            let tree: BTreeMap<String, String> = serde_json::from_value(expected["tree"].clone()).unwrap();
            // The nameless root is an item, too.
            assert_eq!(items, tree.len() + 1, "{name}");
            let back = place.path().join(format!("back-{}", backup.id));
            repo.restore(set).id(backup.id).into(&DirectoryTarget::new(&back)).await.unwrap();
            assert_eq!(listing(&back), tree, "{name}");
            if let Some(stored) = restored {
                assert_eq!(listing(&stored.join("restored")), tree, "{name}: RESTORE.txt");
            }
        }
        if expected.iter().any(|backup| backup["tree"].is_null()) {
            let target = LogTarget::new();
            repo.restore(set).until(Until::End).into(&target).await.unwrap();
            assert_eq!(target.text().unwrap(), expected.iter().map(text).collect::<String>(), "{name}");
            let ranges = repo.pitr_ranges(set).await.unwrap();
            assert!(ranges.gaps.is_empty() && ranges.len() == 1, "{name}: {ranges}");
        }
    }
}

#[test]
fn the_golden_repositories_are_what_their_names_say_and_small() {
    let mut total = 0;
    for case in CASES {
        let directory = root().join(case.name);
        for file in ["repository.tar.gz", "case.json"] {
            total += fs::metadata(directory.join(file)).unwrap().len();
        }
        let out = Command::new("tar")
            .args(["--list", "--gzip", "--file"])
            .arg(directory.join("repository.tar.gz"))
            .output();
        let names = String::from_utf8(out.unwrap().stdout).unwrap();
        let count = |end: &str| names.lines().filter(|line| line.ends_with(end)).count();
        assert_eq!(count("/manifest.json"), case.backups, "{}", case.name);
        let log = case.what == What::Log;
        assert_eq!(count("/RANGES"), if log { 0 } else { case.backups - 1 }, "{}", case.name);
        let slices = names.lines().filter(|line| line.contains("/log/") && line.ends_with("/manifest.json"));
        assert_eq!(slices.count(), if log { case.backups - 1 } else { 0 }, "{}", case.name);
        let indexes = if matches!(case.what, What::Large(_)) { 2 } else { 0 };
        assert_eq!(count(".idx"), indexes, "{}", case.name);
        assert_eq!(count("/decrypt.py") > 0, case.chain.contains(&"aes"), "{}", case.name);
        assert_eq!(count(".age") > 0, case.key == "age", "{}", case.name);
    }
    assert!(total < 500 * 1024, "{total} bytes");
}
