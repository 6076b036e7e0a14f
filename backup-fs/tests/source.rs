//! `DirectorySource`, judged by GNU tar and rsync.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it skipped")]

#[path = "common/files.rs"]
mod files;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use backup_core::{
    Digest, ErrorKind, Item, ItemKind, Outcome, Proof, Selection, SnapshotRequest, Source as _,
};
use backup_fs::DirectorySource;
use files::{age, assert_same_tree, differences, every_kind, have, noise, run, take, take_with, tree, untar};
use futures::StreamExt as _;

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
}

/// Plain bytes of an archive in the next test.
const BOUND: u64 = 1 << 20;

#[tokio::test]
async fn a_tree_becomes_several_whole_archives_that_extract_in_order() {
    if !have("tar") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, copy) = (base.path().join("tree"), base.path().join("copy"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&copy).unwrap();
    every_kind(&tree);
    let a_large_one = noise(5, 3 << 20);
    fs::write(tree.join("plain/huge"), &a_large_one).unwrap();
    age(&tree.join("plain/huge"), 1);
    age(&tree.join("plain"), 2);
    let source = DirectorySource::builder().root(".", &tree).artifact_size(BOUND).build().unwrap();
    let taken = take(&source).await.unwrap();

    assert!(taken.archives.len() > 4, "{}", taken.archives.len());
    for (n, (name, archive)) in taken.archives.iter().enumerate() {
        assert_eq!(*name, format!("files-{:05}", n + 1));
        assert!(archive.ends_with(&[0; 1024]) && archive.len() % 512 == 0);
        let lone_giant = taken.items().iter().filter(|i| i.artifact == *name).count() == 1;
        assert!(archive.len() as u64 <= BOUND || lone_giant, "{name} has {} bytes", archive.len());
    }
    // The name that carries the content and the other one are in different archives.
    let (first, second) = (taken.item("links/hard-small"), taken.item("zz-hard"));
    assert_eq!((first.kind, second.kind), (ItemKind::File, ItemKind::HardLink));
    assert_ne!(first.artifact, second.artifact);
    assert_eq!(second.link, Some(first.path));
    taken.extract(&copy);
    assert_same_tree(&tree, &copy);

    // One by one, in order: only the times of directories that go on in a later archive are lost.
    let again = base.path().join("again");
    fs::create_dir(&again).unwrap();
    for (_, archive) in &taken.archives {
        untar(archive, &again);
    }
    let different = differences(&tree, &again);
    assert!(different.lines().all(|line| line.starts_with(".d..t...... ")), "{different}");
}

#[tokio::test]
async fn the_same_tree_gives_the_same_bytes_however_many_threads_read_it() {
    let base = tempfile::tempdir().unwrap();
    every_kind(base.path());
    let with = |readers| {
        DirectorySource::builder().root("tree", base.path()).readers(readers).read_ahead(1).build().unwrap()
    };
    let one = take(&with(1)).await.unwrap();
    let many = take(&with(8)).await.unwrap();
    let default = take(&DirectorySource::builder().root("tree", base.path()).build().unwrap()).await.unwrap();
    assert!(one.archives == many.archives && one.archives == default.archives);
    assert_eq!(one.report.proofs, many.report.proofs);
}

#[tokio::test]
async fn items_tile_the_archives_and_add_up_to_the_proof() {
    let base = tempfile::tempdir().unwrap();
    every_kind(base.path());
    let source = DirectorySource::builder().root(".", base.path()).artifact_size(4 << 20).build().unwrap();
    let taken = take(&source).await.unwrap();
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let mut sum = Proof::empty();
    let items = taken.items();
    for item in &items {
        let end = ends.entry(&item.artifact).or_default();
        assert_eq!(item.offset, *end, "{:?}", item.path);
        *end += item.length;
        let proof = item.proof.as_ref().unwrap();
        assert_eq!(proof.of, "files");
        sum.merge(&proof.proof);
        if item.kind == ItemKind::File {
            let content = fs::read(base.path().join(OsStr::from_bytes(item.path.as_bytes()))).unwrap();
            assert_eq!(item.size, content.len() as u64, "{:?}", item.path);
            assert_eq!(item.sha256, Some(Digest::of(&content)), "{:?}", item.path);
        } else {
            assert_eq!((item.size, item.sha256), (0, None), "{:?}", item.path);
        }
    }
    for (name, archive) in &taken.archives {
        assert_eq!(ends[name.as_str()] + 1024, archive.len() as u64);
    }
    assert_eq!(taken.report.proofs["files"], sum);
    assert_eq!(taken.report.details["files"], items.iter().filter(|i| i.kind == ItemKind::File).count());
    assert_eq!(taken.report.details["sockets_skipped"], 1);
    let small = taken.item("links/hard-small");
    let stat = fs::metadata(base.path().join("links/hard-small")).unwrap();
    assert_eq!(small.attributes["mode"], stat.mode() & 0o7777);
    assert_eq!(small.attributes["inode"], stat.ino());
    assert_eq!(small.attributes["mtime"], stat.mtime() * 1_000_000_000 + stat.mtime_nsec());
}

#[tokio::test]
async fn members_taken_out_by_their_ranges_are_an_archive_of_their_own() {
    if !have("tar") {
        return;
    }
    let base = tree(&[("a/one", b"1"), ("a/two", &noise(1, 400_000)), ("b/three", b"3")]);
    let taken = take(&DirectorySource::new(base.path())).await.unwrap();
    let mut archive = Vec::new();
    for path in ["a/two", "b/three"] {
        archive.extend_from_slice(taken.member(&taken.item(path)));
    }
    archive.extend_from_slice(&[0; 1024]);
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("part.tar"), archive).unwrap();
    run(Command::new("tar").current_dir(out.path()).args(["-xf", "part.tar"]));
    assert_eq!(fs::read(out.path().join("a/two")).unwrap(), noise(1, 400_000));
    assert_eq!(fs::read(out.path().join("b/three")).unwrap(), b"3");
    assert!(!out.path().join("a/one").exists());
}

/// Prints the digest of every regular file.
const SCRIPT: &str = "
import sys, tarfile, hashlib
for member in tarfile.open(sys.argv[1]):
    if member.isreg():
        data = tarfile.open(sys.argv[1]).extractfile(member.name).read()
        print(hashlib.sha256(data).hexdigest())
";

#[tokio::test]
async fn another_tar_reader_sees_the_same_contents() {
    if !have("python3") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    every_kind(base.path());
    let taken = take(&DirectorySource::new(base.path())).await.unwrap();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("a.tar"), &taken.archives[0].1).unwrap();
    let digests = run(Command::new("python3").args(["-c", SCRIPT]).arg(out.path().join("a.tar")));
    let ours: Vec<String> = taken.items().iter().filter_map(|item| Some(item.sha256?.to_string())).collect();
    assert_eq!(digests.lines().collect::<Vec<_>>(), ours);
}

#[tokio::test]
async fn roots_and_files_have_names_of_their_own() {
    let base = tree(&[("docs/a/b", b"b"), ("docs/c", b"c"), (".env", b"KEY=1"), ("other/d", b"d")]);
    let at = |name: &str| base.path().join(name);
    std::os::unix::fs::symlink("docs", at("current")).unwrap();
    let source = DirectorySource::builder()
        .root("content", at("current"))
        .file("config/.env", at(".env"))
        .root("config/other", at("other"))
        .build()
        .unwrap();
    assert!(source.check().await.unwrap().is_ok());
    let taken = take(&source).await.unwrap();
    assert_eq!(
        taken.paths(),
        ["config/.env", "config/other", "config/other/d", "content", "content/a", "content/a/b", "content/c"]
    );
}

#[tokio::test]
async fn a_root_that_is_missing_or_of_another_kind_is_an_error() {
    let base = tree(&[("file", b"x")]);
    let missing = DirectorySource::new(base.path().join("none"));
    let no_directory = DirectorySource::new(base.path().join("file"));
    let no_file = DirectorySource::builder().file("f", base.path()).build().unwrap();
    for source in [missing, no_directory, no_file] {
        let report = source.check().await.unwrap();
        assert!(!report.is_ok());
        assert!(report.findings[0].message.contains("path="), "{:?}", report.findings);
        assert!(take(&source).await.is_err());
    }
}

#[tokio::test]
async fn an_empty_directory_is_an_archive_with_one_member() {
    let base = tempfile::tempdir().unwrap();
    let taken = take(&DirectorySource::new(base.path())).await.unwrap();
    assert_eq!(taken.paths(), ["."]);
    assert_eq!(taken.archives.len(), 1);
}

#[tokio::test]
async fn globs_decide_what_is_archived() {
    let base = tree(&[
        ("docs/a.md", b""),
        ("docs/a.tmp", b""),
        ("docs/deep/b.md", b""),
        ("docs/empty/x.png", b""),
        ("cache/c.md", b""),
        ("d.md", b""),
    ]);
    let builder = DirectorySource::builder().root("r", base.path());
    let paths = async |builder: backup_fs::DirectorySourceBuilder| {
        take(&builder.build().unwrap()).await.unwrap().paths()
    };
    let without = paths(builder.clone().exclude(["**/*.tmp", "r/cache", "**/*.png"])).await;
    assert_eq!(
        without,
        ["r", "r/d.md", "r/docs", "r/docs/a.md", "r/docs/deep", "r/docs/deep/b.md", "r/docs/empty"]
    );
    let only = paths(builder.clone().include(["**/*.md"]).exclude(["r/cache"])).await;
    assert_eq!(only, ["r", "r/d.md", "r/docs", "r/docs/a.md", "r/docs/deep", "r/docs/deep/b.md"]);

    let request =
        SnapshotRequest { selection: Selection::globs(["r/docs/deep"]).unwrap(), ..SnapshotRequest::full() };
    let asked = take_with(&builder.build().unwrap(), request).await.unwrap();
    assert_eq!(asked.paths(), ["r", "r/docs", "r/docs/deep", "r/docs/deep/b.md"]);
}

#[tokio::test]
async fn ignore_files_and_cache_tags_are_followed_when_asked() {
    let base = tree(&[
        (".backupignore", b"*.log\n/build/\n!keep.log\n"),
        ("a.log", b""),
        ("keep.log", b""),
        ("build/out", b""),
        ("src/build/kept", b""),
        ("src/.backupignore", b"!b.log\nbad{\n"),
        ("src/b.log", b""),
        ("cache/CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n"),
        ("cache/blob", b""),
        ("cache/sub/blob", b""),
    ]);
    let everything = take(&DirectorySource::new(base.path())).await.unwrap();
    assert_eq!(everything.paths().len(), 10 + 6);
    let source = DirectorySource::builder()
        .root(".", base.path())
        .ignore_file(".backupignore")
        .skip_caches()
        .build()
        .unwrap();
    let taken = take(&source).await.unwrap();
    assert_eq!(
        taken.paths(),
        [
            ".",
            ".backupignore",
            "cache",
            "cache/CACHEDIR.TAG",
            "keep.log",
            "src",
            "src/.backupignore",
            "src/b.log",
            "src/build",
            "src/build/kept"
        ]
    );
    assert_eq!(taken.warnings(), ["ignore-file-not-followed"]);
}

#[tokio::test]
async fn one_file_system_stops_at_mount_points() {
    let device = |path: &str| fs::metadata(path).map(|m| m.dev()).ok();
    if device("/dev/shm").is_none() || device("/dev/shm") == device("/dev") {
        eprintln!("SKIPPED: nothing is mounted on /dev/shm");
        return;
    }
    let there = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(there.path().join("f"), b"x").unwrap();
    let name = format!("dev{}", there.path().strip_prefix("/dev").unwrap().display())
        .replacen("devshm", "dev/shm", 1);
    let builder =
        DirectorySource::builder().root("dev", "/dev").include([name.as_str(), "dev/shm"]).allow_unreadable();
    let builder = builder.exclude(["dev/shm/[!.]*"]);
    let across = take(&builder.clone().build().unwrap()).await.unwrap();
    assert!(across.paths().contains(&format!("{name}/f")), "{:?}", across.paths());
    let within = take(&builder.one_file_system().build().unwrap()).await.unwrap();
    assert_eq!(within.paths(), ["dev", "dev/shm"]);
}

#[tokio::test]
async fn a_tree_deeper_than_the_open_directories_is_walked() {
    let base = tempfile::tempdir().unwrap();
    let (tree, copy) = (base.path().join("tree"), base.path().join("copy"));
    fs::create_dir(&copy).unwrap();
    let mut path = tree.clone();
    for depth in 0..200 {
        path.push(format!("d{}", depth % 10));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("a"), depth.to_string()).unwrap();
        fs::write(path.join("z"), depth.to_string()).unwrap();
    }
    let taken = take(&DirectorySource::new(&tree)).await.unwrap();
    assert_eq!(taken.items().len(), 1 + 200 * 3);
    assert_eq!(taken.report.warnings, []);
    if have("tar") {
        taken.extract(&copy);
        assert_same_tree(&tree, &copy);
    }
}

/// Reads the first chunk, lets `meddle` loose, then drains the rest.
async fn meddled_with(
    source: &DirectorySource,
    meddle: impl FnOnce(),
) -> (Vec<u8>, backup_core::SourceReport) {
    let mut snapshot = source.snapshot(SnapshotRequest::full()).await.unwrap();
    let mut artifact = snapshot.next().await.unwrap().unwrap();
    let mut bytes = artifact.data.next().await.unwrap().unwrap().to_vec();
    meddle();
    while let Some(chunk) = artifact.data.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    assert!(snapshot.next().await.unwrap().is_none());
    let report = snapshot.finish().await.unwrap();
    snapshot.close(Outcome::Committed).await.unwrap();
    (bytes, report)
}

type Meddle = fn(&Path);
/// Looks at what is archived, and at what the file was before.
type Judge = fn(&[u8], &[u8]);

#[tokio::test]
async fn a_large_file_that_changes_while_it_is_streamed_keeps_its_size_and_is_reported() {
    const SIZE: usize = 8 << 20;
    let before = noise(1, SIZE);
    let cases: [(&str, Meddle, Judge); 3] = [
        (
            "grows",
            |path| OpenOptions::new().append(true).open(path).unwrap().write_all(&noise(7, 100_000)).unwrap(),
            |content, before| assert!(content == before, "what was announced is there, whole"),
        ),
        (
            "shrinks",
            |path| OpenOptions::new().write(true).open(path).unwrap().set_len(6 << 20).unwrap(),
            |content, before| {
                assert!(content[..6 << 20] == before[..6 << 20]);
                assert!(content[6 << 20..].iter().all(|&b| b == 0));
            },
        ),
        (
            "is touched",
            |path| {
                File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_modified(std::time::SystemTime::now())
                    .unwrap();
            },
            |content, before| assert!(content == before),
        ),
    ];
    for (what, meddle, judge) in cases {
        let base = tree(&[("big", &before)]);
        age(&base.path().join("big"), 1);
        let path = base.path().join("big");
        let (archive, report) = meddled_with(&DirectorySource::new(base.path()), || meddle(&path)).await;
        let codes: Vec<_> = report.warnings.iter().map(|w| w.code.as_ref()).collect();
        assert_eq!(codes, ["file-changed-while-read"], "{what}");
        let items: Vec<Item> = report.items.iter().map(Result::unwrap).collect();
        let [_, item] = &items[..] else { panic!("{items:?}") };
        assert_eq!(item.attributes["changed"], true, "{what}");
        assert_eq!(item.size, SIZE as u64);
        let member =
            &archive[usize::try_from(item.offset).unwrap()..][..usize::try_from(item.length).unwrap()];
        let content = &member[member.len() - SIZE..];
        judge(content, &before);
        assert_eq!(item.sha256, Some(Digest::of(content)), "the digest is that of what is archived: {what}");
        assert_eq!(archive.len() as u64, item.offset + item.length + 1024);
    }
}

#[tokio::test]
async fn a_small_file_that_is_never_quiet_is_archived_and_reported() {
    // The kernel's own files have contents that do not fit their size: they never look quiet.
    let source = DirectorySource::builder().file("uptime", "/proc/uptime").build().unwrap();
    let taken = take(&source).await.unwrap();
    assert_eq!(taken.warnings(), ["file-changed-while-read"]);
    let item = taken.item("uptime");
    assert_eq!(item.attributes["changed"], true);
    assert_eq!((item.size, item.sha256), (0, Some(Digest::of(b""))));
}

#[tokio::test]
async fn files_that_vanish_are_reported_and_leave_the_archive_whole() {
    let base = tempfile::tempdir().unwrap();
    for n in 0..1500 {
        fs::write(base.path().join(format!("{n:04}")), noise(n, 20_000)).unwrap();
    }
    let (archive, report) = meddled_with(&DirectorySource::new(base.path()), || {
        for n in 1000..1500 {
            fs::remove_file(base.path().join(format!("{n:04}"))).unwrap();
        }
    })
    .await;
    assert_eq!(report.items.len(), 1001);
    assert_eq!(report.warnings.len(), 500);
    assert!(report.warnings.iter().all(|w| w.code == "file-vanished"), "{:?}", report.warnings[0]);
    assert!(archive.ends_with(&[0; 1024]));
}

#[tokio::test]
async fn an_unreadable_file_fails_the_backup_unless_that_is_allowed() {
    let base = tree(&[("fine", b"fine")]);
    // Reading the lowest address of a process is an input/output error, for root too.
    let builder = DirectorySource::builder()
        .root("r", base.path())
        .file("memory", format!("/proc/{}/mem", std::process::id()));
    let error = take(&builder.clone().build().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceFailed);
    assert!(error.to_string().contains("memory: "), "{error}");

    let taken = take(&builder.allow_unreadable().build().unwrap()).await.unwrap();
    assert_eq!(taken.warnings(), ["file-unreadable"]);
    assert_eq!(taken.paths(), ["r", "r/fine"]);
    assert_eq!(taken.report.details["unreadable_count"], 1);
}

#[tokio::test]
async fn an_unreadable_directory_is_told_from_an_empty_one() {
    if files::is_root() {
        eprintln!("SKIPPED: root can read every directory");
        return;
    }
    let base = tree(&[("closed/file", b"x")]);
    let mode = fs::Permissions::from_mode;
    fs::set_permissions(base.path().join("closed"), mode(0o000)).unwrap();
    let result = take(&DirectorySource::new(base.path())).await;
    fs::set_permissions(base.path().join("closed"), mode(0o700)).unwrap();
    assert_eq!(result.unwrap_err().kind(), ErrorKind::SourceFailed);
}

#[tokio::test]
async fn finish_gives_no_report_before_every_archive_was_read() {
    let base = tree(&[("big", &noise(1, 4 << 20))]);
    let mut snapshot = DirectorySource::new(base.path()).snapshot(SnapshotRequest::full()).await.unwrap();
    let artifact = snapshot.next().await.unwrap().unwrap();
    assert!(snapshot.finish().await.is_err());
    drop(artifact);
    assert_eq!(snapshot.next().await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(snapshot.finish().await.is_err());
    snapshot.close(Outcome::Aborted).await.unwrap();
}
