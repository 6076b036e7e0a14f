//! Through the whole engine: `DirectorySource`, a repository, `DirectoryTarget`.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use backup_core::{ErrorKind, MemorySink, Repository, Zstd};
use backup_fs::{DirectorySource, DirectoryTarget, Owners};

use crate::support::*;

fn repository() -> Repository {
    Repository::builder().sink(MemorySink::new()).transform(Zstd::default()).build().unwrap()
}

fn target(path: &Path) -> DirectoryTarget {
    let target = DirectoryTarget::new(path).check_space(false);
    if is_root() { target.owners(Owners::Numeric) } else { target }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_entry_goes_through_many_archives_and_comes_back() {
    if !have("rsync") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    all_kinds(&from);
    let repo = repository();
    let source = DirectorySource::builder().root(".", &from).artifact_size(100_000).build().unwrap();
    repo.backup("site", &source).await.unwrap();
    let outcome = repo.restore("site").into(&target(&to)).await.unwrap();
    assert_eq!(differences(&from, &to), "");
    assert_eq!(outcome.proofs["files"], proof_of(&items(&from)));

    // Rehearsed: proved, and thrown away.
    repo.restore("site").into(&target(&dir.path().join("other"))).rehearse().await.unwrap();
    assert_eq!(names(dir.path()), ["from", "to"]);

    let full = repo.restore("site").into(&target(&to)).await.err().unwrap();
    assert_eq!(full.kind(), ErrorKind::TargetNotEmpty);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_reads_only_what_changed() {
    if !have("rsync") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    all_kinds(&from);
    let repo = repository();
    repo.backup("site", &DirectorySource::new(&from)).await.unwrap();
    let whole = repo.restore("site").into(&target(&to)).await.unwrap().plain_read;
    let inode = |name: &str| std::fs::metadata(to.join(name)).unwrap().ino();
    let before = (inode("a/large"), inode("a/nothing"));
    std::fs::write(to.join("a/nothing"), "no longer").unwrap();
    std::fs::write(to.join("extra"), "extra").unwrap();

    let outcome = repo.restore("site").into(&target(&to)).replace().await.unwrap();
    assert_eq!(differences(&from, &to), "");
    assert_eq!(before.0, inode("a/large"), "linked");
    assert_ne!(before.1, inode("a/nothing"), "restored");
    assert!(outcome.plain_read < whole / 4, "{} of {whole} bytes read", outcome.plain_read);
    outcome.undo.unwrap().undo().await.unwrap();
    assert_eq!(std::fs::read(to.join("a/nothing")).unwrap(), b"no longer");
    assert_eq!(names(dir.path()), ["from", "to"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_restored_with_the_content_of_its_links() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    sh("mkdir a b c; printf content > a/file; ln a/file b/link; ln a/file b/link2; printf x > c/x", &from);
    let repo = repository();
    let source = DirectorySource::builder().root("srv/site", &from).build().unwrap();
    repo.backup("site", &source).await.unwrap();
    let outcome = repo
        .restore("site")
        .into(&target(&to).strip_components(2))
        .only(["srv/site/b/link*", "srv/site/c"])
        .await
        .unwrap();
    assert_eq!(outcome.report.items, 4);
    assert_eq!(names(&to), ["b", "c"]);
    assert_eq!(std::fs::read(to.join("b/link")).unwrap(), b"content");
    assert_eq!(std::fs::metadata(to.join("b/link2")).unwrap().nlink(), 2);

    // Into the existing tree: the rest stays.
    sh("printf changed > to/c/x; printf mine > to/mine; printf changed > to/b/link", dir.path());
    let strip = target(&to).strip_components(2);
    repo.restore("site").into(&strip).only(["srv/site/c"]).replace().await.unwrap();
    assert_eq!(std::fs::read(to.join("c/x")).unwrap(), b"x");
    assert_eq!(std::fs::read(to.join("b/link")).unwrap(), b"changed");
    assert_eq!(std::fs::read(to.join("mine")).unwrap(), b"mine");
}
