//! Whole backups of real trees on real disks, judged by other tools and by counting.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are not seen as tests; figures are shown"
)]
#![allow(dead_code, reason = "the shared files serve several test programs")]

#[path = "common/files.rs"]
mod files;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use backup_core::{
    AesGcm, ErrorKind, Event, Gzip, Key, Keyring, MemorySink, Repository, RepositoryBuilder, Zstd,
};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::RecordingSink;
use futures::TryStreamExt as _;

const KEY: [u8; 32] = [0x5e; 32];

fn keyring() -> Keyring {
    Keyring::builder().key(KEY).build().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Chain {
    Plain,
    Gzip,
    Zstd,
    GzipAes,
    ZstdAes,
}

const CHAINS: [Chain; 5] = [Chain::Plain, Chain::Gzip, Chain::Zstd, Chain::GzipAes, Chain::ZstdAes];

impl Chain {
    fn on(self, builder: RepositoryBuilder) -> Repository {
        let aes = || AesGcm::new(keyring());
        match self {
            Self::Plain => builder,
            Self::Gzip => builder.transform(Gzip::default()),
            Self::Zstd => builder.transform(Zstd::default()),
            Self::GzipAes => builder.transform(Gzip::default()).transform(aes()),
            Self::ZstdAes => builder.transform(Zstd::default()).transform(aes()),
        }
        .build()
        .unwrap()
    }

    fn encrypts(self) -> bool {
        matches!(self, Self::GzipAes | Self::ZstdAes)
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tree(&self) -> PathBuf {
        let tree = self.at("tree");
        fs::create_dir_all(&tree).unwrap();
        files::every_kind(&tree);
        tree
    }

    fn sink(&self, name: &str) -> LocalSink {
        let path = self.at(name);
        if path.exists() { LocalSink::open(path) } else { LocalSink::init(path) }.unwrap().named(name)
    }
}

/// `rsync` finds nothing to change, contents, owners, modes, times, links, ACLs and attributes included.
fn assert_same(original: &Path, restored: &Path) {
    if !files::have("rsync") {
        return;
    }
    let slash = |path: &Path| format!("{}/", path.display());
    let out = files::run(
        Command::new("rsync")
            .args(["-aHAXn", "--checksum", "--delete", "--itemize-changes"])
            .args([slash(original), slash(restored)]),
    );
    // A socket has no content to back up.
    let lines: Vec<_> = out.lines().filter(|line| !line.contains("special/socket")).collect();
    assert!(lines.is_empty(), "restored tree differs:\n{}", lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_with_every_kind_of_file_comes_back_through_every_chain() {
    for chain in CHAINS {
        let place = Place::new();
        let tree = place.tree();
        let repo = chain.on(Repository::builder().sink(place.sink("a")).sink(place.sink("b")));
        let done = repo.backup("t/files", &DirectorySource::new(&tree)).await.unwrap();
        assert!(repo.verify("t/files", done.id).await.unwrap().is_intact(), "{chain:?}");
        let back = place.at("back");
        repo.restore("t/files").latest().into(&DirectoryTarget::new(&back)).await.unwrap();
        assert_same(&tree, &back);
    }
}

/// What `RESTORE.txt` says is run as it stands, by a shell, in a copy of the backup's directory.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_in_restore_txt_restore_the_tree_without_this_library() {
    for chain in CHAINS {
        let place = Place::new();
        let tree = place.tree();
        let repo = chain.on(Repository::builder().sink(place.sink("a")));
        // Several archives, and names that a shell would take apart.
        let source = DirectorySource::builder().root(".", &tree).artifact_size(1 << 20).build().unwrap();
        let done = repo.backup("it's a set/$HOME", &source).await.unwrap();
        let stored = place.at("a").join("it%27s%20a%20set/%24HOME").join(done.id.to_string());
        if let Some(restored) = follow_restore_txt(chain, &place, &stored) {
            assert_same(&tree, &restored);
        }
    }
}

/// Runs `RESTORE.txt` as it stands, by a shell, in the backup's directory `stored`; returns the restored tree. `None` where
/// a tool is missing.
fn follow_restore_txt(chain: Chain, place: &Place, stored: &Path) -> Option<PathBuf> {
    if chain.encrypts() && !has_python_cryptography() {
        return None;
    }
    let key_file = place.at("key");
    fs::write(&key_file, KEY).unwrap();
    let script = stored.join("RESTORE.txt");
    let out = Command::new("bash")
        .arg(&script)
        .current_dir(stored)
        .env("BACKUP_KEY_OPTION", format!("--key-file {}", key_file.display()))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{chain:?}: {stderr}\n{}", fs::read_to_string(&script).unwrap());
    Some(stored.join("restored"))
}

/// Names that a shell, a list of lines, or a program's options would take for something else.
const ODD_NAMES: [&[u8]; 9] = [
    b"-rf",
    b"--checkpoint-action=exec=false",
    b" blanks ",
    b"two\nlines",
    b"*",
    b"back\\slash\\n",
    b"it's \"quoted\" $HOME `id`",
    b"not utf-8 \xff\xfe",
    b"%2F",
];

/// The unchanged files lie in two other backups of other artifacts and chains; what was deleted stays deleted.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_in_restore_txt_of_an_incremental_restore_everything_it_lists() {
    use std::os::unix::ffi::OsStrExt as _;
    const SET: &str = "it's a set/$HOME";
    let chains = [Chain::Plain, Chain::Gzip, Chain::ZstdAes];
    let place = Place::new();
    let tree = place.tree();
    make_big_tree(&tree.join("big"), 8 << 20);
    for directory in ["odd", "odd\ndirectory", "goes"] {
        fs::create_dir(tree.join(directory)).unwrap();
        for name in ODD_NAMES {
            let path = tree.join(directory).join(std::ffi::OsStr::from_bytes(name));
            fs::write(path, [directory.as_bytes(), name].concat()).unwrap();
        }
    }
    fs::write(tree.join("becomes-directory"), "a file").unwrap();
    fs::write(tree.join("linked-1"), "one inode").unwrap();
    fs::hard_link(tree.join("linked-1"), tree.join("linked-2")).unwrap();
    fs::hard_link(tree.join("linked-1"), tree.join("odd/linked-3")).unwrap();
    let source = DirectorySource::builder().root(".", &tree).artifact_size(4 << 20).build().unwrap();
    let settle = || std::thread::sleep(std::time::Duration::from_millis(3100));
    let sink = |chain: Chain| place.sink(&format!("{chain:?}"));
    let back_up = async |chain: Chain| {
        let repo = chain.on(Repository::builder().sink(sink(chain)));
        repo.backup(SET, &source).incremental().await.unwrap()
    };
    settle();
    for chain in chains {
        back_up(chain).await;
    }
    fs::remove_dir_all(tree.join("goes")).unwrap();
    fs::remove_file(tree.join("odd/*")).unwrap();
    fs::remove_file(tree.join("becomes-directory")).unwrap();
    fs::create_dir(tree.join("becomes-directory")).unwrap();
    fs::write(tree.join("becomes-directory/file"), "in it").unwrap();
    fs::write(tree.join("big/d03/small-7"), "changed").unwrap();
    fs::rename(tree.join("big/d04"), tree.join("big/moved")).unwrap();
    fs::remove_file(tree.join("linked-1")).unwrap();
    settle();
    for chain in chains {
        // What compresses differently or not at all refers to the same backups.
        let second = if chain == Chain::Gzip {
            Chain::Zstd.on(Repository::builder().sink(sink(chain)))
        } else {
            chain.on(Repository::builder().sink(sink(chain)))
        };
        second.backup(SET, &source).incremental().await.unwrap();
    }
    fs::write(tree.join("big/d05/small-9"), "changed later").unwrap();
    // Ids tell seconds apart, and a parent is older than what builds on it.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::set_permissions(tree.join("odd"), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    for chain in chains {
        let done = back_up(chain).await;
        let repo = chain.on(Repository::builder().sink(sink(chain)));
        let list = repo.backups(SET).await.unwrap();
        // Not simply the first: ids of one second have no order.
        let listed = list.iter().find(|backup| backup.id == done.id).unwrap();
        assert_eq!(listed.references.len(), 2, "{chain:?}");
        assert!(repo.verify(SET, done.id).await.unwrap().is_intact());
        let stored =
            place.at(&format!("{chain:?}")).join("it%27s%20a%20set/%24HOME").join(done.id.to_string());
        if let Some(restored) = follow_restore_txt(chain, &place, &stored) {
            assert_same(&tree, &restored);
        }
        // An artifact of another backup that is damaged is noticed before anything is restored.
        let full = list.iter().find(|b| b.references.is_empty()).unwrap().id.to_string();
        let object = object_of(&stored.parent().unwrap().join(full), &object_name(chain));
        let mut bytes = fs::read(&object).unwrap();
        bytes[1000] ^= 1;
        fs::write(&object, bytes).unwrap();
        let status = Command::new("sha256sum")
            .args(["--check", "--status", "SHA256SUMS"])
            .current_dir(&stored)
            .status();
        assert!(!status.unwrap().success(), "{chain:?}");
    }
}

fn object_name(chain: Chain) -> String {
    let extension = match chain {
        Chain::Plain => "",
        Chain::Gzip => ".gz",
        Chain::Zstd => ".zst",
        Chain::GzipAes => ".gz.enc",
        Chain::ZstdAes => ".zst.enc",
    };
    format!("files-00001.tar{extension}")
}

fn has_python_cryptography() -> bool {
    backup_testkit::tools::available(
        "python",
        "python3",
        &["-c", "import cryptography"],
        "RESTORE.txt, encrypted",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_out_of_a_large_encrypted_backup_reads_a_fraction_of_it() {
    let place = Place::new();
    let tree = place.at("tree");
    // A gibibyte in the long runs.
    let whole = std::env::var_os("BACKUP_TORTURE").is_some();
    let (total, wanted) = (if whole { 1_u64 << 30 } else { 192 << 20 }, files::noise(77, 1 << 20));
    make_big_tree(&tree, total);
    fs::write(tree.join("d03/wanted.bin"), &wanted).unwrap();

    let local = place.sink("a");
    let recording = RecordingSink::new(local);
    let repo = Chain::ZstdAes.on(Repository::builder().sink(recording.clone()));
    let done = repo.backup("t", &DirectorySource::new(&tree)).await.unwrap();
    recording.clear();
    let back = place.at("back");
    let outcome =
        repo.restore("t").latest().into(&DirectoryTarget::new(&back)).only(["d03/wanted.bin"]).await.unwrap();
    assert_eq!(fs::read(back.join("d03/wanted.bin")).unwrap(), wanted);
    assert_eq!(outcome.report.items, 1);
    let read = recording.bytes_read();
    // 2 % of a gibibyte, whatever the size of this tree: the fixed part is what counts.
    assert!(read < 4 << 20, "{read} bytes read of {}", done.stored_size);
    println!("{read} of {} stored bytes read, of {total} logical ones", done.stored_size);
    assert!(!whole || read * 50 < done.stored_size, "{read} bytes read of {}", done.stored_size);

    // What was read is what was checked: damage in the blocks of the file is noticed, damage elsewhere is not.
    let object = object_of(&place.at("a"), "files-00001.tar.zst.enc");
    let before = fs::read(&object).unwrap();
    let contents = repo.contents("t", done.id).await.unwrap();
    let items: Vec<_> = contents.items().try_collect().await.unwrap();
    let item = items.iter().find(|i| i.path.to_string() == "d03/wanted.bin").unwrap();
    assert_eq!(item.size, 1 << 20);
    let mut damaged = before.clone();
    for byte in damaged.iter_mut().step_by(1 << 19) {
        *byte ^= 1;
    }
    fs::write(&object, &damaged).unwrap();
    let target = place.at("again");
    let error = repo
        .restore("t")
        .latest()
        .into(&DirectoryTarget::new(&target))
        .only(["d03/wanted.bin"])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(!target.exists());

    // A copy that was cut off before the range is damage too, and not a mistake of the caller.
    fs::write(&object, &before[..1000]).unwrap();
    let cut = DirectoryTarget::new(&target);
    let error = repo.restore("t").latest().into(&cut).only(["d03/wanted.bin"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(!target.exists());
}

/// Half text, half noise, in directories `d00` to `d07`.
fn make_big_tree(tree: &Path, total: u64) {
    for directory in 0..8_u64 {
        let path = tree.join(format!("d{directory:02}"));
        fs::create_dir_all(&path).unwrap();
        let file = fs::File::create(path.join("large")).unwrap();
        for n in 0..total / 8 / (1 << 20) {
            let piece = if n % 2 == 0 {
                files::noise(directory * 1000 + n, 1 << 20)
            } else {
                format!("line {n} of {directory}\n").repeat(1 << 17).into_bytes()[..1 << 20].to_vec()
            };
            file.write_all_at(&piece, n << 20).unwrap();
        }
        for n in 0..50 {
            fs::write(path.join(format!("small-{n}")), format!("{directory} {n}")).unwrap();
        }
    }
}

fn object_of(root: &Path, name: &str) -> PathBuf {
    let found = walk(root).into_iter().find(|p| p.file_name().is_some_and(|n| n == name));
    found.unwrap_or_else(|| panic!("no {name} below {}", root.display()))
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(walk(&path)) } else { all.push(path) }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_with_disjoint_damage_restore_completely_and_with_overlapping_damage_not_at_all() {
    let place = Place::new();
    let tree = place.at("tree");
    make_big_tree(&tree, 48 << 20);
    let repo = Chain::GzipAes.on(Repository::builder().sink(place.sink("a")).sink(place.sink("b")));
    repo.backup("t", &DirectorySource::new(&tree)).await.unwrap();
    let objects = ["a", "b"].map(|sink| object_of(&place.at(sink), "files-00001.tar.gz.enc"));
    let flip = |object: &Path, offset: u64| {
        let file = fs::OpenOptions::new().read(true).write(true).open(object).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    };
    let size = fs::metadata(&objects[0]).unwrap().len();
    for block in 0..size >> 20 {
        flip(&objects[usize::from(block % 2 == 0)], (block << 20) + 1000);
    }
    let back = place.at("back");
    let damaged = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&damaged);
    repo.restore("t")
        .into(&DirectoryTarget::new(&back))
        .observer(move |event: &Event<'_>| {
            if let Event::CopyDamaged { sink, .. } = event {
                seen.lock().unwrap().insert(sink.to_string());
            }
        })
        .await
        .unwrap();
    assert_same(&tree, &back);
    assert_eq!(damaged.lock().unwrap().len(), 2);

    let precious = place.at("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "still here").unwrap();
    flip(&objects[0], (3 << 20) + 5);
    flip(&objects[1], (3 << 20) + 50);
    let error = repo.restore("t").into(&DirectoryTarget::new(&precious)).replace().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(error.chain().contains("files-00001.tar.gz.enc"), "{}", error.chain());
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "still here");
    assert_eq!(fs::read_dir(&precious).unwrap().count(), 1);
    let left: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "nothing may be left beside the target: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_stores_only_changes_and_restores_from_either_sink() {
    let place = Place::new();
    let tree = place.tree();
    make_big_tree(&tree.join("big"), 16 << 20);
    let repo = Chain::ZstdAes.on(Repository::builder().sink(place.sink("a")).sink(place.sink("b")));
    // Younger files are read again: their times cannot tell whether they changed once more.
    std::thread::sleep(std::time::Duration::from_millis(3100));
    let full = repo.backup("t", &DirectorySource::new(&tree)).incremental().await.unwrap();
    fs::write(tree.join("big/d00/small-1"), "changed").unwrap();
    fs::write(tree.join("big/d00/new"), "new").unwrap();
    fs::remove_file(tree.join("big/d01/small-2")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(3100));
    let second = repo.backup("t", &DirectorySource::new(&tree)).incremental().await.unwrap();
    assert!(second.stored_size * 10 < full.stored_size, "{} of {}", second.stored_size, full.stored_size);
    fs::write(tree.join("big/d00/small-2"), "changed again").unwrap();
    // Ids tell seconds apart, and a parent is older than what builds on it.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let third = repo.backup("t", &DirectorySource::new(&tree)).incremental().await.unwrap();
    let list = repo.backups("t").await.unwrap();
    assert_eq!(list.len(), 3);
    assert!(list[0].references.contains(&full.id) && list[0].references.contains(&second.id));

    for sink in ["a", "b"] {
        let alone = Chain::ZstdAes.on(Repository::builder().sink(place.sink(sink)));
        assert!(alone.verify("t", third.id).await.unwrap().is_intact());
        let back = place.at(&format!("back-{sink}"));
        alone.restore("t").latest().into(&DirectoryTarget::new(&back)).await.unwrap();
        assert_same(&tree, &back);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_shows_up_nowhere() {
    const PASSPHRASE: &str = "SENTINEL-passphrase-9d1f";
    const CONTENT: &str = "SENTINEL-content-27aa";
    const NAME: &str = "SENTINEL-name-c0de";
    let keyring = Keyring::from_passphrase(PASSPHRASE).unwrap();
    let place = Place::new();
    let tree = place.at("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(NAME), CONTENT.repeat(1000)).unwrap();
    let events = Arc::new(Mutex::new(String::new()));
    let log = Arc::clone(&events);
    let sink = place.sink("a");
    let repo = Repository::builder()
        .sink(sink.clone())
        .transform(Zstd::default())
        .transform(AesGcm::new(keyring.clone()))
        .require_encryption()
        .observer(move |event: &Event<'_>| log.lock().unwrap().push_str(&format!("{event:?}\n")))
        .build()
        .unwrap();
    let source = DirectorySource::new(&tree);
    let done = repo.backup("t", &source).await.unwrap();
    let mut said = format!("{repo:?} {keyring:?} {source:?} {done:?} {:?}", repo.backups("t").await.unwrap());
    said += &format!("{:?}", repo.contents("t", done.id).await.unwrap());

    // Errors of every kind that keys are involved in.
    let wrong = Repository::builder()
        .sink(place.sink("a"))
        .transform(AesGcm::new(Keyring::from_passphrase("SENTINEL-wrong-one").unwrap()))
        .build()
        .unwrap();
    let error = wrong.restore("t").id(done.id).into(&DirectoryTarget::new(place.at("no"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
    said += &format!("{error:?} {}", error.chain());
    let error = wrong.backup("t", &source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
    said += &format!("{error:?} {}", error.chain());
    let none = Repository::builder().sink(place.sink("a")).build().unwrap();
    let error = none.restore("t").id(done.id).into(&DirectoryTarget::new(place.at("no"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
    said += &format!("{error:?} {}", error.chain());
    assert!(!place.at("no").exists());

    said += &events.lock().unwrap();
    assert!(!said.contains("SENTINEL-passphrase") && !said.contains("SENTINEL-wrong"), "{said}");
    assert!(!said.contains(CONTENT), "{said}");
    for file in walk(&place.at("a")) {
        let bytes = fs::read(&file).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
        assert!(!holds(b"SENTINEL"), "{} holds a secret in the clear", file.display());
        let digest = backup_core::Digest::of(CONTENT.repeat(1000).as_bytes()).to_string();
        assert!(!holds(digest.as_bytes()), "{} holds a digest of plain content", file.display());
        assert!(!holds(&backup_core::Digest::of(CONTENT.as_bytes()).as_bytes()[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_broken_sink_does_not_stop_the_others() {
    use backup_testkit::{Fault, FaultySink, Operation, Rule};
    let place = Place::new();
    let tree = place.at("tree");
    make_big_tree(&tree, 16 << 20);
    for fault in [Fault::Fail { kind: ErrorKind::Io, retryable: false }, Fault::Hang, Fault::Cut] {
        let good = MemorySink::named("good");
        let faulty = FaultySink::new(MemorySink::named("bad"));
        let repo = Repository::builder()
            .sink(good.clone())
            .sink(faulty.clone())
            .transform(Zstd::default())
            .stall_timeout(std::time::Duration::from_millis(500))
            .retries(1, std::time::Duration::from_millis(10))
            .build()
            .unwrap();
        faulty.arm(Rule::nth(3).on(Operation::Write).times(u64::MAX).fault(fault));
        let error = repo.backup("t", &DirectorySource::new(&tree)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooFewCopies, "{}", error.chain());
        let id = error.context_value("id").unwrap().parse().unwrap();
        faulty.disarm();
        let list = repo.backups("t").await.unwrap();
        assert_eq!((list[0].id, list[0].degraded, list[0].copies.len()), (id, true, 1));
        let back = place.at("back");
        repo.restore("t").id(id).into(&DirectoryTarget::new(&back)).await.unwrap();
        assert_same(&tree, &back);
        fs::remove_dir_all(&back).unwrap();
        let wrong: Vec<Key> =
            good.keys().into_iter().filter(|k| k.as_str().ends_with("pending.json")).collect();
        assert_eq!(wrong, []);
    }
}
