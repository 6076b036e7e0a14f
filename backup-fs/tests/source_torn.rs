//! Promise 10: what a source archives without a warning is what the file held at one moment, even where the file system
//! tells changes apart no better than by the kernel's clock tick. Ramfs is such a file system on every kernel.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it skipped")]

#[path = "common/files.rs"]
#[expect(dead_code, reason = "shared with the other tests of the source")]
mod files;
#[path = "common/mounts.rs"]
#[expect(dead_code, reason = "shared with the tests of the target")]
mod mounts;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backup_fs::DirectorySource;
use files::{Taken, noise, take};
use mounts::Mount;

/// Writes a growing number to the beginning of each file, then to its end, as fast as it can.
fn write_on(paths: &[&Path], stop: &AtomicBool) {
    let files: Vec<(File, u64)> = paths
        .iter()
        .map(|path| {
            let file = File::options().write(true).open(path).unwrap();
            let end = file.metadata().unwrap().len() - 8;
            (file, end)
        })
        .collect();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        for (file, end) in &files {
            file.write_all_at(&number.to_be_bytes(), 0).unwrap();
            file.write_all_at(&number.to_be_bytes(), *end).unwrap();
        }
    }
}

/// At no moment was the number at the end larger than the one at the beginning.
fn is_torn(content: &[u8]) -> bool {
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    number(&content[content.len() - 8..]) > number(&content[..8])
}

fn content<'a>(taken: &'a Taken, name: &str) -> (&'a [u8], bool) {
    let item = taken.item(name);
    let member = taken.member(&item);
    let size = usize::try_from(item.size).unwrap();
    let start = member.len() - size.next_multiple_of(512);
    (&member[start..][..size], item.attributes.contains_key("changed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_written_within_one_tick_is_never_torn_without_a_warning() {
    let base = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new("ramfs", base.path()) else { return };
    let (small, large) = (base.path().join("small"), base.path().join("large"));
    fs::write(&small, [vec![0; 8], noise(1, 200_000), vec![0; 8]].concat()).unwrap();
    fs::write(&large, [vec![0; 8], noise(1, 600_000), vec![0; 8]].concat()).unwrap();
    let source = DirectorySource::new(base.path());
    let stop = AtomicBool::new(false);
    let (mut torn, mut silent) = (0, 0);
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| write_on(&[&small, &large], &stop));
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(3) {
                let taken = tokio::runtime::Handle::current().block_on(take(&source));
                // A failure must not leave the writer writing.
                let Ok(taken) = taken else { break };
                for name in ["small", "large"] {
                    let (content, changed) = content(&taken, name);
                    torn += u32::from(is_torn(content));
                    silent += u32::from(is_torn(content) && !changed);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    eprintln!("{torn} files were torn, {silent} of them without a warning");
    assert!(torn > 0, "nothing was torn: the test tests nothing");
    assert_eq!(silent, 0);

    // The same files, changed a moment ago and now left alone.
    let taken = take(&source).await.unwrap();
    assert_eq!(taken.report.warnings, []);
    assert!(!is_torn(content(&taken, "small").0) && !is_torn(content(&taken, "large").0));
}

#[tokio::test]
async fn an_inode_that_got_another_file_is_not_taken_for_a_hard_link() {
    use backup_core::{Outcome, SnapshotRequest, Source as _};
    use futures::StreamExt as _;

    let base = tempfile::tempdir().unwrap();
    let tree = base.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let at = |name: &str| tree.join(name);
    fs::write(at("a"), noise(1, 400_000)).unwrap();
    fs::hard_link(at("a"), at("z")).unwrap();
    // Holds the archive back while the tree changes.
    fs::write(at("m"), noise(2, 64 << 20)).unwrap();
    fs::hard_link(at("m"), base.path().join("m-too")).unwrap();
    let number = fs::metadata(at("a")).unwrap().ino();

    let source = DirectorySource::new(&tree);
    let mut snapshot = source.snapshot(SnapshotRequest::full()).await.unwrap();
    let mut artifact = snapshot.next().await.unwrap().unwrap();
    let mut archive = Vec::new();
    // Until `a` was archived.
    while archive.len() < 1 << 20 {
        archive.extend_from_slice(&artifact.data.next().await.unwrap().unwrap());
    }
    fs::remove_file(at("a")).unwrap();
    fs::remove_file(at("z")).unwrap();
    let mut reused = false;
    // A new file gets the first free number near its directory, unless another process takes it.
    for n in 0..5000 {
        let new = at(&format!("new-{n}"));
        let file = File::create(&new).unwrap();
        if file.metadata().unwrap().ino() == number {
            file.write_all_at(&noise(3, 400_000), 0).unwrap();
            fs::hard_link(&new, at("z")).unwrap();
            reused = true;
            break;
        }
    }
    if !reused {
        backup_testkit::skip("this file system does not give an inode's number to another file");
        return;
    }
    while let Some(chunk) = artifact.data.next().await {
        archive.extend_from_slice(&chunk.unwrap());
    }
    assert!(snapshot.next().await.unwrap().is_none());
    let report = snapshot.finish().await.unwrap();
    snapshot.close(Outcome::Committed).await.unwrap();
    let items: Vec<_> = report.items.iter().map(Result::unwrap).collect();
    let z = items.iter().find(|item| item.path.to_string() == "z").unwrap();
    assert_eq!(z.link, None, "it is not the file that `a` was");
    assert_eq!(z.sha256, Some(backup_core::Digest::of(&noise(3, 400_000))));
    let codes: Vec<_> = report.warnings.iter().map(|w| w.code.as_ref()).collect();
    assert_eq!(codes, ["hard-link-not-kept"]);
}
