//! What a directory source holds while it runs, and what it leaves behind. A process of its own, because threads
//! and memory are counted for the whole process; one test at a time.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it skipped")]

#[path = "common/files.rs"]
#[expect(dead_code, reason = "shared with the other tests of the source")]
mod files;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use backup_core::{CancellationToken, ErrorKind, Outcome, Snapshot, SnapshotRequest, Source as _};
use backup_fs::DirectorySource;
use files::noise;
use futures::StreamExt as _;
use tokio::sync::Mutex;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const KIB: usize = 1024;

/// Threads of this process that belong to a source.
fn threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        // A thread may end between being listed and being asked.
        fs::read_to_string(task.ok()?.path().join("comm")).ok()
    });
    names.filter(|name| name.starts_with("backup-")).count()
}

/// Open file descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn until_no_threads() -> Duration {
    let begun = Instant::now();
    while threads() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{} threads are still there", threads());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

fn many_files(base: &Path, count: u64, size: usize) {
    for n in 0..count {
        let dir = base.join(format!("{:03}", n / 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(n.to_string()), noise(n, size)).unwrap();
    }
}

async fn begun(base: &Path) -> Box<dyn Snapshot> {
    DirectorySource::new(base).snapshot(SnapshotRequest::full()).await.unwrap()
}

#[tokio::test]
async fn dropping_a_stream_or_a_snapshot_stops_its_threads() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let base = tempfile::tempdir().unwrap();
    many_files(base.path(), 2000, 16 * KIB);
    // A file of nothing but a hole: its digest takes minutes, its archive no bytes.
    File::create(base.path().join("000/!hole")).unwrap().set_len(1 << 40).unwrap();
    let before = descriptors();

    drop(begun(base.path()).await);
    until_no_threads().await;

    for close in [false, true] {
        let mut snapshot = begun(base.path()).await;
        let artifact = snapshot.next().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(threads() > 0);
        drop(artifact);
        if close {
            snapshot.close(Outcome::Aborted).await.unwrap();
        } else {
            drop(snapshot);
        }
        until_no_threads().await;
    }

    fs::remove_file(base.path().join("000/!hole")).unwrap();
    for chunks in [0, 1, 5] {
        let mut snapshot = begun(base.path()).await;
        let mut artifact = snapshot.next().await.unwrap().unwrap();
        for _ in 0..chunks {
            artifact.data.next().await.unwrap().unwrap();
        }
        // The stream alone is enough.
        drop(artifact);
        until_no_threads().await;
        assert_eq!(snapshot.next().await.unwrap_err().kind(), ErrorKind::Cancelled);
        drop(snapshot);

        // The snapshot alone too, while somebody still holds the stream.
        let mut snapshot = begun(base.path()).await;
        let mut artifact = snapshot.next().await.unwrap().unwrap();
        for _ in 0..chunks {
            artifact.data.next().await.unwrap().unwrap();
        }
        drop(snapshot);
        until_no_threads().await;
    }
    assert_eq!(descriptors(), before);
}

#[tokio::test]
async fn cancelling_the_run_stops_the_threads() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let base = tempfile::tempdir().unwrap();
    many_files(base.path(), 2000, 16 * KIB);
    let cancelled = CancellationToken::new();
    let request = SnapshotRequest { cancelled: cancelled.clone(), ..SnapshotRequest::full() };
    let mut snapshot = DirectorySource::new(base.path()).snapshot(request).await.unwrap();
    let mut artifact = snapshot.next().await.unwrap().unwrap();
    artifact.data.next().await.unwrap().unwrap();
    cancelled.cancel();
    until_no_threads().await;
    while let Some(chunk) = artifact.data.next().await {
        if chunk.is_err() {
            break;
        }
    }
    assert_eq!(snapshot.next().await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(snapshot.finish().await.is_err());
}

/// Resets, or reads in KiB, the most memory this process had resident.
fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The most memory a backup of `base` takes beyond what is there at its start, in KiB, and its bytes.
async fn growth(base: &Path) -> (u64, u64) {
    reset_peak();
    let before = peak();
    let mut snapshot = begun(base).await;
    let mut bytes = 0;
    let mut chunks = 0u32;
    while let Some(mut artifact) = snapshot.next().await.unwrap() {
        while let Some(chunk) = artifact.data.next().await {
            bytes += chunk.unwrap().len() as u64;
            chunks += 1;
            // A slow reader lets every queue fill.
            if chunks.is_multiple_of(16) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    drop(snapshot.finish().await.unwrap());
    (peak().saturating_sub(before), bytes)
}

#[tokio::test]
async fn memory_does_not_grow_with_the_bytes() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let small = tempfile::tempdir().unwrap();
    many_files(small.path(), 600, 40 * KIB);
    let large = tempfile::tempdir().unwrap();
    many_files(large.path(), 600, 200 * KIB);
    fs::write(large.path().join("huge"), noise(1, 64 * KIB * KIB)).unwrap();
    // Once for what stays allocated.
    growth(large.path()).await;
    let (little, few) = growth(small.path()).await;
    let (much, many) = growth(large.path()).await;
    assert!(many > 7 * few, "{many} bytes and {few}");
    eprintln!("{few} bytes take {little} KiB more, {many} bytes {much} KiB more");
    assert!(much < 24 * 1024, "{much} KiB for {many} bytes");
}
