//! `DirectorySource`, judged by GNU tar and rsync.

#[path = "common/files.rs"]
mod files;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use backup_core::ItemKind;
use backup_fs::DirectorySource;
use files::{assert_same_tree, every_kind, have, take};

#[tokio::test]
async fn gnu_tar_extracts_every_kind_of_entry_as_it_was() {
    if !have("tar") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, copy) = (base.path().join("tree"), base.path().join("copy"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&copy).unwrap();
    every_kind(&tree);
    let taken = take(&DirectorySource::new(&tree)).await.unwrap();
    assert_eq!(taken.archives.len(), 1);
    assert_eq!(taken.report.warnings, []);
    taken.extract(&copy);
    assert_same_tree(&tree, &copy);

    let sparse = |root: &Path, name: &str| fs::metadata(root.join("sparse").join(name)).unwrap().blocks();
    for name in ["all-hole", "middle", "ends", "many-runs"] {
        assert_eq!(sparse(&copy, name), sparse(&tree, name), "{name}");
    }
    assert_eq!(taken.item("zz-hard").kind, ItemKind::HardLink);
    drop(File::open(&copy).unwrap());
}
