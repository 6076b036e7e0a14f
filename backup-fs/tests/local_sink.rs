//! The local sink keeps the contract of sinks, and more.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "helpers of tests, outside test functions"
)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use backup_core::{ErrorKind, Key, ObjectKind, PutOptions, Sink, put_bytes, read_bytes};
use backup_fs::LocalSink;
use backup_testkit::{SinkSuite, noise, skip};
use futures::TryStreamExt as _;

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn new_note() -> PutOptions {
    PutOptions::create_new(ObjectKind::Note)
}

async fn names(sink: &LocalSink) -> Vec<String> {
    let mut found: Vec<String> =
        sink.list(&Key::root()).map_ok(|info| info.key.to_string()).try_collect().await.unwrap();
    found.sort();
    found
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_sink_keeps_the_contract_of_sinks() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    SinkSuite::new()
        .run(async || {
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Arc::new(LocalSink::init(dir.path().join(n.to_string())).unwrap())
        })
        .await;
    for n in 0..count.into_inner() {
        let staging = dir.path().join(n.to_string()).join("@staging");
        assert_eq!(files_in(&staging), 0, "staging files are left");
    }
}

#[test]
fn only_a_marked_directory_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    assert_eq!(LocalSink::open(&path).unwrap_err().kind(), ErrorKind::WrongPlace, "absent");
    std::fs::create_dir(&path).unwrap();
    let error = LocalSink::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongPlace, "an empty mount point");
    assert!(error.to_string().contains("mount") && error.to_string().contains("init"), "{error}");
    assert_eq!(files_in(&path), 0, "looking left something");

    let made = LocalSink::init(&path).unwrap();
    assert_eq!(made.repository_id().len(), 32);
    assert_eq!(made.id().as_str(), format!("local:{}", path.display()));
    assert_eq!(LocalSink::init(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let opened = LocalSink::open(&path).unwrap().expect_id(made.repository_id()).unwrap().named("disk");
    assert_eq!(opened.id().as_str(), "disk");
    let other = LocalSink::open(&path).unwrap().expect_id(&"0".repeat(32)).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::WrongPlace);

    std::fs::write(path.join("@repository.json"), "{").unwrap();
    assert_eq!(LocalSink::open(&path).unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::write(path.join("@repository.json"), r#"{"format":9,"id":"x","created":""}"#).unwrap();
    assert_eq!(LocalSink::open(&path).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_directory_with_something_in_it_is_adopted_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    put_bytes(&sink, &key("a/b"), "x".into(), new_note()).await.unwrap();
    std::fs::remove_file(dir.path().join("@repository.json")).unwrap();
    assert_eq!(LocalSink::init(dir.path()).unwrap_err().kind(), ErrorKind::TargetNotEmpty);
    let adopted = LocalSink::adopt(dir.path()).unwrap();
    assert_eq!(read_bytes(&adopted, &key("a/b"), 10).await.unwrap(), "x");
    assert_ne!(adopted.repository_id(), sink.repository_id());
}

#[tokio::test]
async fn files_and_directories_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    let sink = LocalSink::init(&path).unwrap();
    put_bytes(&sink, &key("a/b"), "x".into(), new_note()).await.unwrap();
    let mode = |p: &str| std::fs::metadata(path.join(p)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(""), mode("a"), mode("@staging")], [0o700; 3]);
    assert_eq!([mode("a/b"), mode("@repository.json")], [0o600; 2]);
}

#[tokio::test]
async fn a_range_beyond_the_end_of_an_object_is_damage_and_one_that_runs_backwards_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path().join("repo")).unwrap();
    put_bytes(&sink, &key("a/b"), noise(1000, 1), new_note()).await.unwrap();
    std::fs::File::options().write(true).open(dir.path().join("repo/a/b")).unwrap().set_len(100).unwrap();
    let cut = sink.open(&key("a/b"), Some(500..600)).await.err().unwrap();
    assert_eq!(cut.kind(), ErrorKind::Corrupt, "{cut}");
    let (from, to) = (50, 20);
    let backwards = sink.open(&key("a/b"), Some(from..to)).await.err().unwrap();
    assert_eq!(backwards.kind(), ErrorKind::InvalidInput, "{backwards}");
}

#[tokio::test]
async fn a_removed_repository_is_not_taken_for_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    let sink = LocalSink::init(&path).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let listed: Result<Vec<_>, _> = sink.list(&Key::root()).try_collect().await;
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::WrongPlace);
    assert_eq!(sink.head(&key("a")).await.unwrap_err().kind(), ErrorKind::WrongPlace);
    assert_eq!(sink.delete(&key("a")).await.unwrap_err().kind(), ErrorKind::WrongPlace);
    let put = put_bytes(&sink, &key("a"), "x".into(), new_note()).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::WrongPlace);
}

#[tokio::test]
async fn no_symbolic_link_leads_out_of_the_repository() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "private").unwrap();
    let path = dir.path().join("repo");
    let sink = LocalSink::init(&path).unwrap();
    symlink(&outside, path.join("dir")).unwrap();
    symlink(outside.join("file"), path.join("link")).unwrap();

    for name in ["dir/file", "link"] {
        assert_eq!(sink.open(&key(name), None).await.err().unwrap().kind(), ErrorKind::WrongPlace, "{name}");
        assert_eq!(sink.head(&key(name)).await.unwrap_err().kind(), ErrorKind::WrongPlace, "{name}");
    }
    assert!(put_bytes(&sink, &key("dir/new"), "x".into(), new_note()).await.is_err());
    assert!(sink.delete(&key("dir/file")).await.is_err());
    assert_eq!(names(&sink).await, [""; 0]);
    // Overwriting the name of a link replaces the link, not what it points to.
    put_bytes(&sink, &key("link"), "new".into(), PutOptions::overwrite(ObjectKind::Note)).await.unwrap();
    assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"private");
    assert_eq!(files_in(&outside), 1);
    // Nor does the marker.
    std::fs::rename(path.join("@repository.json"), outside.join("marker")).unwrap();
    symlink(outside.join("marker"), path.join("@repository.json")).unwrap();
    assert!(LocalSink::open(&path).is_err());
}

#[tokio::test]
async fn foreign_files_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    put_bytes(&sink, &key("a/b"), "x".into(), new_note()).await.unwrap();
    for foreign in ["lost+found/x", "a/with space", "a/~backup", "a/%zz"] {
        let path = dir.path().join(foreign);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("a/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(names(&sink).await, ["a/b"]);
    assert_eq!(sink.open(&key("a/fifo"), None).await.err().unwrap().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_object_and_a_directory_cannot_share_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    put_bytes(&sink, &key("a/b"), "x".into(), new_note()).await.unwrap();
    for (name, options) in [
        ("a/b/c", new_note()),
        ("a", new_note()),
        ("a", PutOptions::overwrite(ObjectKind::Note)),
        ("a/b/c/d", PutOptions::overwrite(ObjectKind::Note)),
    ] {
        let error = put_bytes(&sink, &key(name), "y".into(), options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
    }
    // Found out only at the end, when the conflict appears meanwhile.
    for late in ["late/b", "late"] {
        let writer = sink.create(&key("late/b/c"), new_note()).await.unwrap();
        put_bytes(&sink, &key(late), "z".into(), new_note()).await.unwrap();
        assert_eq!(writer.finish().await.unwrap_err().kind(), ErrorKind::InvalidInput);
        sink.delete(&key(late)).await.unwrap();
    }
    assert_eq!(names(&sink).await, ["a/b"]);
    assert!(!dir.path().join("late").exists(), "empty directories are left");
}

#[tokio::test]
async fn a_sweep_removes_what_dead_writers_left_and_nothing_of_the_living() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    let staging = dir.path().join("@staging");
    let mut living = sink.create(&key("living"), new_note()).await.unwrap();
    living.write(noise(600_000, 1)).await.unwrap();
    std::fs::write(staging.join("dead"), "left").unwrap();
    assert_eq!(sink.sweep(Duration::from_secs(3600)).await.unwrap(), 0, "too young");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(sink.sweep(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(files_in(&staging), 1);
    living.finish().await.unwrap();
    assert_eq!(names(&sink).await, ["living"]);
    assert_eq!(files_in(&staging), 0);
}

#[tokio::test]
async fn space_is_that_of_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let space = LocalSink::init(dir.path()).unwrap().space().await.unwrap().unwrap();
    assert!(space.available > 0 && space.available <= space.total);
}

/// Runs this very test binary again, as another process with a task, when the variable is set.
const CHILD: &str = "LOCAL_SINK_TEST_CHILD";

fn child(task: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_other_process", "--nocapture"]).env(CHILD, task).env("REPO", path);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[tokio::test]
async fn the_other_process() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let sink = LocalSink::open(std::env::var_os("REPO").unwrap()).unwrap();
    if task == "write-for-ever" {
        let mut writer = sink.create(&key("killed/object"), new_note()).await.unwrap();
        loop {
            writer.write(noise(1 << 20, 1)).await.unwrap();
            println!("written");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for round in 0..30 {
        let name = key(&format!("race/{round}"));
        if put_bytes(&sink, &name, task.clone().into(), new_note()).await.is_ok() {
            println!("won {round}");
        }
    }
}

#[tokio::test]
async fn a_killed_writer_leaves_nothing_listed_and_a_sweep_cleans_up() {
    use std::io::BufRead as _;
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    let mut other = child("write-for-ever", dir.path()).spawn().unwrap();
    let lines = std::io::BufReader::new(other.stdout.take().unwrap()).lines();
    let written = lines.map_while(Result::ok).filter(|line| line.contains("written")).take(5).count();
    let before = files_in(&dir.path().join("@staging"));
    assert_eq!(sink.sweep(Duration::ZERO).await.unwrap(), 0, "the writer lives");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!((written, before), (5, 1));
    assert_eq!(names(&sink).await, [""; 0]);
    assert_eq!(sink.head(&key("killed/object")).await.unwrap_err().kind(), ErrorKind::NotFound);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(sink.sweep(Duration::ZERO).await.unwrap(), 1);
    put_bytes(&sink, &key("killed/object"), "x".into(), new_note()).await.unwrap();
}

#[tokio::test]
async fn of_several_processes_that_create_one_name_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    let others: Vec<_> = (0..4).map(|n| child(&format!("racer-{n}"), dir.path()).spawn().unwrap()).collect();
    let mut winners = std::collections::BTreeMap::new();
    for (n, other) in others.into_iter().enumerate() {
        let out = other.wait_with_output().unwrap();
        assert!(out.status.success());
        for line in String::from_utf8(out.stdout).unwrap().lines() {
            if let Some((_, round)) = line.split_once("won ") {
                assert!(winners.insert(round.to_owned(), n).is_none(), "round {round} was won twice");
            }
        }
    }
    assert_eq!(winners.len(), 30);
    for (round, n) in winners {
        let found = read_bytes(&sink, &key(&format!("race/{round}")), 100).await.unwrap();
        assert_eq!(found, format!("racer-{n}"));
    }
}

/// A mounted tmpfs of a few MiB, unmounted on drop. `None` where this process may not mount.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=700");
        let mounted = is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(dir.path())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            skip("mounting a tmpfs needs root");
            return None;
        }
        Some(Self(dir))
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).stderr(Stdio::null()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_no_debris_is_left() {
    let Some(disk) = Tmpfs::mount("3m") else { return };
    let sink = LocalSink::init(disk.0.path()).unwrap();
    put_bytes(&sink, &key("small/one"), "x".into(), new_note()).await.unwrap();
    let mut writer = sink.create(&key("large/one"), new_note()).await.unwrap();
    let error = loop {
        if let Err(e) = writer.write(noise(400_000, 1)).await {
            break e;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    assert!(!error.is_retryable() && error.to_string().contains("free some"), "{error}");
    assert!(writer.write(noise(10, 1)).await.is_err(), "a torn writer cannot go on");
    drop(writer);
    assert_eq!(files_in(&disk.0.path().join("@staging")), 0);
    assert_eq!(names(&sink).await, ["small/one"]);
    put_bytes(&sink, &key("large/two"), noise(1_000_000, 2), new_note()).await.unwrap();
}

#[tokio::test]
async fn a_read_only_disk_opens_reads_and_refuses_to_write() {
    if let Some(disk) = Tmpfs::mount("3m") {
        let sink = LocalSink::init(disk.0.path()).unwrap();
        put_bytes(&sink, &key("a/b"), "x".into(), new_note()).await.unwrap();
        disk.remount("ro");
        let sink = LocalSink::open(disk.0.path()).unwrap();
        assert_eq!(read_bytes(&sink, &key("a/b"), 10).await.unwrap(), "x");
        assert_eq!(sink.probe().await.unwrap()[0].code, "read-only");
        for name in ["a/b", "a/c"] {
            let put = put_bytes(&sink, &key(name), "y".into(), PutOptions::overwrite(ObjectKind::Note)).await;
            assert_eq!(put.unwrap_err().kind(), ErrorKind::ReadOnly);
        }
        assert_eq!(sink.delete(&key("a/b")).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        disk.remount("rw");
        put_bytes(&sink, &key("a/c"), "y".into(), new_note()).await.unwrap();
    }
    if is_root() {
        skip("permissions do not bind root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(dir.path()).unwrap();
    put_bytes(&sink, &key("a/b"), "x".into(), new_note()).await.unwrap();
    for part in ["@staging", ""] {
        std::fs::set_permissions(dir.path().join(part), std::fs::Permissions::from_mode(0o500)).unwrap();
    }
    let sink = LocalSink::open(dir.path()).unwrap();
    assert_eq!(read_bytes(&sink, &key("a/b"), 10).await.unwrap(), "x");
    let put = put_bytes(&sink, &key("c"), "y".into(), new_note()).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::PermissionDenied);
    for part in ["@staging", ""] {
        std::fs::set_permissions(dir.path().join(part), std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[tokio::test]
async fn an_unmounted_disk_is_refused() {
    let Some(disk) = Tmpfs::mount("3m") else { return };
    let path = disk.0.path().to_owned();
    drop(LocalSink::init(&path).unwrap());
    assert!(LocalSink::open(&path).is_ok());
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    assert_eq!(LocalSink::open(&path).unwrap_err().kind(), ErrorKind::WrongPlace);
    assert_eq!(files_in(&path), 0, "the mount point was written to");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sinks_on_one_file_system_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let sink = |name: &str| LocalSink::init(dir.path().join(name)).unwrap().named(name);
    let both = backup_core::Repository::builder().sink(sink("a")).sink(sink("b")).build().unwrap();
    assert_eq!(both.warnings().len(), 1);
    assert!(both.warnings()[0].message.contains("a and b"));
    let source = backup_core::MemorySource::new().artifact("x", "y");
    let done = both.backup("app", &source).await.unwrap();
    assert_eq!(done.warnings, both.warnings());
    let one = backup_core::Repository::builder().sink(sink("c")).build().unwrap();
    assert!(one.warnings().is_empty());
}
