//! Promise 6: the memory of a whole process that backs up directories. Each figure is the peak (`VmHWM`) of a process of its own.
//! `BACKUP_TORTURE` makes the trees four times as large.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test says what it measured"
)]

#[path = "common/files.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod files;

use std::fs;
use std::path::Path;
use std::process::Command;

use backup_core::{Repository, Zstd};
use backup_fs::{DirectorySource, LocalSink};

const CHILD: &str = "BACKUP_FS_TEST_MEMORY_TREE";
const FILES: u64 = 192;
const KIB: usize = 1024;
/// KiB by which the peaks of equal runs were seen to differ. A tree of four times the bytes has 144 MiB more.
const VARIES: u64 = 16 * 1024;

fn make(tree: &Path, count: u64, size: usize) {
    for n in 0..count {
        let dir = tree.join(format!("{:04}", n / 256));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file-{n}")), files::noise(n, size)).unwrap();
    }
}

/// Not a test of its own: the process that is measured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_backs_up() {
    let Some(tree) = std::env::var_os(CHILD) else { return };
    let sink = tempfile::tempdir().unwrap();
    let sink = LocalSink::init(sink.path().join("repository")).unwrap();
    let repository = Repository::builder().sink(sink).transform(Zstd::default()).build().unwrap();
    repository.backup("t", &DirectorySource::new(tree)).await.unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
}

/// Whether this is one of the long runs.
fn is_long() -> bool {
    std::env::var_os("BACKUP_TORTURE").is_some()
}

/// The most memory a process had that backed up `tree`, in KiB: in the long runs the median of three.
fn peak(tree: &Path) -> u64 {
    let mut all: Vec<u64> = (0..if is_long() { 3 } else { 1 })
        .map(|_| {
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_backs_up", "--nocapture", "--test-threads=1"])
                .env(CHILD, tree)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
            let line = text.lines().find_map(|line| line.split("VmHWM:").nth(1)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        })
        .collect();
    all.sort_unstable();
    all[all.len() / 2]
}

#[test]
fn a_process_takes_the_same_memory_for_more_bytes_and_little_for_more_files() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let scale = if is_long() { 4 } else { 1 };
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| base.path().join(name);
    make(&at("bytes"), FILES, 256 * KIB * scale);
    let few = peak(&at("bytes"));
    fs::remove_dir_all(at("bytes")).unwrap();
    make(&at("bytes"), FILES, 1024 * KIB * scale);
    let four_times = peak(&at("bytes"));
    fs::remove_dir_all(at("bytes")).unwrap();
    eprintln!("{FILES} files of {} KiB: {few} KiB; of {} KiB: {four_times} KiB", 256 * scale, 1024 * scale);
    // How far the queues fill varies from run to run, by more than a tenth where other programs run too.
    let most = few * 11 / 10 + VARIES;
    assert!(four_times <= most, "{four_times} KiB for four times the bytes of {few} KiB");

    let (little, many) = (5_000, 5_000 + 20_000 * scale as u64);
    make(&at("little"), little, 200);
    make(&at("many"), many, 200);
    // Fills every queue in both, so that the difference is that of the files.
    for tree in ["little", "many"] {
        fs::write(at(tree).join("!large"), files::noise(1, 48 * KIB * KIB)).unwrap();
    }
    let (with_little, with_many) = (peak(&at("little")), peak(&at("many")));
    let each = with_many.saturating_sub(with_little) * 1024 / (many - little);
    eprintln!("{little} files: {with_little} KiB; {many} files: {with_many} KiB; {each} bytes for each more");
    // With few files the steps in which an allocator grows count too.
    let most = if is_long() { 200 } else { 400 };
    assert!(each <= most, "{each} bytes for each further file");
}
