//! A disk that becomes full, a small tmpfs: old backups stay readable, the failed run lists nothing and says what to do, and
//! the next run works once there is space (promise 1).
//!
//! Needs root to mount; a visible skip otherwise.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use backup_core::{AesGcm, BackupId, ErrorKind, Keyring, Repository};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::noise;
use backup_testkit::retention::Random;

const SET: &str = "app/data";
const MIB: usize = 1024 * 1024;
/// Of the whole disk; a backup of the tree takes 9 MiB.
const SIZE: usize = 24 * MIB;
const POINTS: usize = 10;
const SEED: u64 = 20_261_121;

/// A mounted tmpfs; dropping it unmounts it, on a panic, too.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={SIZE},mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        let good = mounted.is_ok_and(|done| done.status.success());
        good.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn sink(&self) -> PathBuf {
        self.path().join("sink")
    }

    /// Leaves `free` bytes.
    fn fill(&self, free: usize) -> PathBuf {
        let output = Command::new("df").args(["-B1", "--output=avail"]).arg(self.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let available: usize = text.lines().nth(1).unwrap().trim().parse().unwrap();
        let path = self.path().join("filler");
        std::fs::write(&path, vec![7; available.saturating_sub(free)]).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn repository(disk: &SmallDisk) -> Repository {
    let keyring = Keyring::builder().key([4; 32]).build().unwrap();
    let sink = LocalSink::open(disk.sink()).unwrap();
    Repository::builder().sink(sink).transform(AesGcm::new(keyring)).build().unwrap()
}

async fn restores(repo: &Repository, id: BackupId) {
    assert!(repo.verify(SET, id).await.unwrap().is_intact());
    let dir = tempfile::tempdir().unwrap();
    let target = DirectoryTarget::new(dir.path().join("restored"));
    repo.restore(SET).id(id).into(&target).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_no_backup_and_lists_no_half_one() {
    let Some(disk) = SmallDisk::mount() else {
        return backup_testkit::skip("a small disk can be mounted only by root");
    };
    drop(LocalSink::init(disk.sink()).unwrap());
    let tree = tempfile::tempdir().unwrap();
    for n in 0..9_u64 {
        std::fs::write(tree.path().join(format!("file{n}")), noise(MIB, n)).unwrap();
    }
    let source = DirectorySource::new(tree.path());
    let repo = repository(&disk);
    let old = repo.backup(SET, &source).await.unwrap();

    let mut random = Random::new(SEED);
    let full = usize::try_from(old.stored_size).unwrap();
    for point in 0..POINTS {
        // From nothing at all to nearly enough.
        let free = match point {
            0 => 0,
            _ => usize::try_from(random.below(full as u64 - 64 * 1024)).unwrap(),
        };
        let filler = disk.fill(free);
        let error = repo.backup(SET, &source).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{free} bytes free: {}", error.chain());
        let said = error.chain();
        assert!(said.contains("free") || said.contains("space"), "it says nothing to do: {said}");

        let list = repo.backups(SET).await.unwrap();
        assert!(list.unreadable.is_empty(), "{free} bytes free: {:?}", list.unreadable);
        assert_eq!(list.iter().map(|b| b.id).collect::<Vec<_>>(), [old.id], "{free} bytes free");
        restores(&repo, old.id).await;

        std::fs::remove_file(filler).unwrap();
        let next = repo.backup(SET, &source).await.unwrap_or_else(|e| panic!("{free} bytes: {}", e.chain()));
        restores(&repo, next.id).await;
        // Room for the next point; a prune would keep the newest instead.
        std::fs::remove_dir_all(disk.sink().join(SET).join(next.id.to_string())).unwrap();
    }
}
