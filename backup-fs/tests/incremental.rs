//! Whole incremental backups of directories: what they cost, and that each copy stands alone (promise 3).
//!
//! `BACKUP_TORTURE` set: 20,000 files, and the time of an incremental without changes is a limit, too.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests; figures are printed")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::{AesGcm, BackupId, BackupReport, Keyring, Repository, Zstd};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::noise;

const SET: &str = "t";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.tree()).unwrap();
        place
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn sink(&self, name: &str) -> LocalSink {
        let path = self.dir.path().join(name);
        if path.exists() { LocalSink::open(path) } else { LocalSink::init(path) }.unwrap().named(name)
    }

    fn on(&self, sinks: &[&str]) -> Repository {
        let aes = AesGcm::new(Keyring::builder().key([7; 32]).build().unwrap());
        let builder = sinks.iter().fold(Repository::builder(), |builder, name| builder.sink(self.sink(name)));
        builder.transform(Zstd::default()).transform(aes).build().unwrap()
    }

    async fn incremental(&self, sinks: &[&str]) -> BackupReport {
        // Ids tell seconds apart, and a parent is older than what builds on it.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        self.on(sinks).backup(SET, &DirectorySource::new(self.tree())).incremental().await.unwrap()
    }

    /// Restores the newest backup from `sink` alone and compares every file.
    async fn assert_restores_from(&self, sink: &str) {
        let back = self.dir.path().join(format!("back-{sink}"));
        let repo = self.on(&[sink]);
        repo.restore(SET).latest().into(&DirectoryTarget::new(&back)).await.unwrap();
        assert_eq!(listing(&back), listing(&self.tree()), "restored from {sink}");
        fs::remove_dir_all(back).unwrap();
    }

    /// The objects of the backup `id` on `sink`.
    fn directory(&self, sink: &str, id: BackupId) -> PathBuf {
        self.dir.path().join(sink).join(SET).join(id.to_string())
    }
}

/// Every file: its path, mode, times and content.
fn listing(root: &Path) -> Vec<(PathBuf, u32, i64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                directories.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.push((name, meta.mode(), meta.mtime(), meta.mtime_nsec(), content));
        }
    }
    found.sort();
    found
}

/// Waits until what was written can be told from a later change by its times.
fn settle() {
    std::thread::sleep(Duration::from_millis(3100));
}

/// Files of 8 to 24 KiB that do not compress, 100 to a directory.
fn make_tree(tree: &Path, files: usize) {
    for n in 0..files {
        let directory = tree.join(format!("books/{:03}", n / 100));
        if n % 100 == 0 {
            fs::create_dir_all(&directory).unwrap();
        }
        fs::write(directory.join(format!("chapter-{n:05}")), noise(8_192 + n * 7919 % 16_384, n as u64))
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_incremental_costs_next_to_nothing_and_a_changed_one_restores_from_either_sink() {
    let torture = std::env::var_os("BACKUP_TORTURE").is_some();
    let count = if torture { 20_000 } else { 2_000 };
    let place = Place::new();
    make_tree(&place.tree(), count);
    settle();
    let full = place.incremental(&["a", "b"]).await;
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let same = place.incremental(&["a", "b"]).await;
        fastest = fastest.min(same.elapsed);
        let (all, again) = (full.stored_size, same.stored_size);
        eprintln!(
            "{count} files, {all} bytes: an unchanged incremental takes {:?} and {again} bytes",
            same.elapsed
        );
        assert!(again * 100 < all, "{again} of {all} bytes");
        assert_eq!(same.items, full.items);
        assert_eq!(same.proofs, full.proofs);
    }
    assert!(!torture || fastest < Duration::from_secs(1), "{fastest:?}");

    for n in (0..100).map(|n| n * count / 100) {
        let path = place.tree().join(format!("books/{:03}/chapter-{n:05}", n / 100));
        fs::write(path, noise(5_000 + n, (count + n) as u64)).unwrap();
    }
    let changed = place.incremental(&["a", "b"]).await;
    assert!(changed.stored_size * 5 < full.stored_size, "{} of {}", changed.stored_size, full.stored_size);
    for sink in ["a", "b"] {
        place.assert_restores_from(sink).await;
    }
}

/// A small tree, and a full backup of it on two sinks.
async fn begun() -> (Place, BackupReport) {
    let place = Place::new();
    make_tree(&place.tree(), 40);
    settle();
    let full = place.incremental(&["a", "b"]).await;
    (place, full)
}

async fn kind_of_newest(place: &Place) -> (bool, usize) {
    let list = place.on(&["a", "b"]).backups(SET).await.unwrap();
    (list[0].references.is_empty(), list.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_missing_or_broken_on_a_sink_is_healed_before_something_builds_on_it() {
    let (place, full) = begun().await;
    // Away altogether; then without one of its objects; then with a part of one.
    fs::remove_dir_all(place.directory("b", full.id)).unwrap();
    place.incremental(&["a", "b"]).await;
    assert_eq!(kind_of_newest(&place).await, (false, 2));
    place.assert_restores_from("b").await;

    let object = place.directory("b", full.id).join("files-00001.tar.zst.enc");
    fs::remove_file(&object).unwrap();
    let second = place.incremental(&["a", "b"]).await;
    assert_eq!(kind_of_newest(&place).await, (false, 3));
    place.assert_restores_from("b").await;

    let whole = fs::read(&object).unwrap();
    fs::write(&object, &whole[..whole.len() / 2]).unwrap();
    fs::remove_dir_all(place.directory("a", second.id)).unwrap();
    place.incremental(&["a", "b"]).await;
    assert_eq!(kind_of_newest(&place).await, (false, 4));
    for sink in ["a", "b"] {
        place.assert_restores_from(sink).await;
        let only = place.on(&[sink]);
        for backup in only.backups(SET).await.unwrap().iter() {
            assert!(only.verify(SET, backup.id).await.unwrap().is_intact());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_parent_cannot_be_healed_every_sink_gets_a_full() {
    let (place, full) = begun().await;
    // No sink holds it whole any more: each lacks the one artifact there is.
    for sink in ["a", "b"] {
        fs::remove_file(place.directory(sink, full.id).join("files-00001.tar.zst.enc")).unwrap();
    }
    let second = place.incremental(&["a", "b"]).await;
    assert_eq!(kind_of_newest(&place).await, (true, 2));
    assert_eq!(second.plain_size, full.plain_size);
    for sink in ["a", "b"] {
        place.assert_restores_from(sink).await;
    }
    // A sink that is new to the set gets all that the incremental needs, and one that joins an empty set a full.
    place.incremental(&["b", "c"]).await;
    assert!(place.on(&["c"]).backups(SET).await.unwrap().len() == 2);
    place.assert_restores_from("c").await;
    let alone = place.incremental(&["d"]).await;
    assert_eq!(alone.plain_size, full.plain_size);
    place.assert_restores_from("d").await;
}
