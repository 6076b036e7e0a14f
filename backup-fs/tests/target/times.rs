//! Restores to a file system with coarse times.

use std::os::unix::fs::MetadataExt as _;

use backup_fs::DirectoryTarget;

use crate::mounts::Mount;
use crate::support::*;

#[tokio::test]
async fn times_the_file_system_cannot_keep_are_rounded_and_reported() {
    if !have("mkfs.ext2") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    sh(
        "mkdir from disk; truncate -s 8M image; mkfs.ext2 -q -I 128 image 2>/dev/null
        printf x > from/file; head -c 300000 /dev/urandom > from/large; ln -s file from/link; mkdir from/dir
        ln from/file from/hard; printf x > from/whole; printf x > from/late
        touch -d '2001-02-03 04:05:06.123456789Z' from/file from/large from/dir; touch -d '2001-02-03Z' from/whole
        touch -h -d '2001-02-03 04:05:06.5Z' from/link
        touch -d '2100-01-01Z' from/late; touch -d '2001-02-03Z' from",
        dir.path(),
    );
    let disk = dir.path().join("disk");
    let image = dir.path().join("image");
    // One second, and none after January 2038.
    let Some(_mount) = Mount::with(&["-o", "loop", image.to_str().unwrap()], &disk) else { return };
    let (from, to) = (dir.path().join("from"), disk.join("to"));
    let archive = tar(&from, &[]);
    let (proof, report, _) = restore(&DirectoryTarget::new(&to), &plan(&archive), &archive).await.unwrap();
    assert_eq!(proof, proof_of(&items(&from)));
    let told: Vec<_> = report.warnings.iter().map(|w| (&*w.code, w.message.as_str())).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "time-not-kept");
    assert!(told[0].1.contains("5 entries"), "{told:?}");
    let time = |name: &str| {
        let stat = std::fs::symlink_metadata(to.join(name)).unwrap();
        (stat.mtime(), stat.mtime_nsec())
    };
    for name in ["file", "large", "link", "dir"] {
        assert_eq!(time(name), (981_173_106, 0), "{name}");
    }
    assert_eq!(time("late"), (i64::from(i32::MAX), 0));
}
