//! Trees to archive, tools to judge with.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_core::{Error, Item, Outcome, Snapshot, SnapshotRequest, Source, SourceReport};
use futures::StreamExt as _;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use tempfile::TempDir;

/// Whether `tool` is here. A visible skip if not, a failure if `BACKUP_TEST_REQUIRE` names `tools`.
pub(crate) fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|r| r.trim() == "tools"), "`{tool}` is required and not installed");
        backup_testkit::skip(&format!("in part: `{tool}` is not installed"));
    }
    found
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command to success and returns its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {stderr}");
    assert!(stderr.is_empty(), "{command:?} complained: {stderr}");
    String::from_utf8(out.stdout).unwrap()
}

/// Gives an entry a time in the past, different for each `n`, with nanoseconds.
pub(crate) fn age(path: &Path, n: i64) {
    set_time(path, 1_600_000_000 + n, 123_456_789);
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let both = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Incompressible, reproducible bytes.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tree with every kind of entry.
pub(crate) fn every_kind(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("plain/deep/er")).unwrap();
    fs::write(at("plain/empty"), b"").unwrap();
    fs::write(at("plain/small"), b"hello\n").unwrap();
    fs::write(at("plain/block"), noise(1, 512)).unwrap();
    fs::write(at("plain/deep/er/large"), noise(2, 700_001)).unwrap();
    fs::write(at("plain/limit"), noise(3, 256 * 1024)).unwrap();
    fs::write(at("plain/over"), noise(4, 256 * 1024 + 1)).unwrap();
    fs::create_dir(at("empty-dir")).unwrap();

    // Names.
    fs::create_dir(at("names")).unwrap();
    let names = root.join("names");
    let odd: [&[u8]; 9] = [
        b"with space",
        b"new\nline",
        b"-dash",
        b"\xff\xfenot-utf8",
        "grün ü".as_bytes(),
        b"back\\slash",
        b"*?[x]",
        b"%41=b",
        b"tab\t\x01",
    ];
    for (n, name) in odd.into_iter().enumerate() {
        fs::write(names.join(OsStr::from_bytes(name)), noise(n as u64, 10)).unwrap();
    }
    fs::write(names.join("n".repeat(100)), b"100").unwrap();
    fs::write(names.join("n".repeat(101)), b"101").unwrap();
    fs::write(names.join("n".repeat(255)), b"255").unwrap();
    let mut long_bad = vec![b'x'; 200];
    long_bad.extend_from_slice(b"\xff\xfe");
    fs::write(names.join(OsStr::from_bytes(&long_bad)), b"long, not UTF-8").unwrap();
    let far = names.join("d".repeat(120)).join("e".repeat(120)).join("f".repeat(120));
    fs::create_dir_all(&far).unwrap();
    fs::write(far.join("file"), b"far").unwrap();

    // Links.
    fs::create_dir(at("links")).unwrap();
    symlink("../plain/small", at("links/sym")).unwrap();
    symlink("nowhere", at("links/dangling")).unwrap();
    symlink("/etc/passwd", at("links/absolute")).unwrap();
    symlink("t/".repeat(150), at("links/long-target")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\n"), at("links/odd-target")).unwrap();
    fs::hard_link(at("plain/small"), at("links/hard-small")).unwrap();
    fs::hard_link(at("plain/deep/er/large"), at("links/hard-large")).unwrap();
    fs::hard_link(at("plain/small"), at("zz-hard")).unwrap();
    fs::hard_link(far.join("file"), at("links/hard-far")).unwrap();
    fs::hard_link(at("links/sym"), at("links/sym-hard")).unwrap();

    // Special files.
    fs::create_dir(at("special")).unwrap();
    mknodat(CWD, at("special/fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    drop(UnixListener::bind(at("special/socket")).unwrap());

    // Sparse files.
    fs::create_dir(at("sparse")).unwrap();
    let sparse = |name: &str, size: u64, runs: &[(u64, usize)]| {
        let file = File::create(at("sparse").join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in runs {
            file.write_all_at(&noise(*offset, *length), *offset).unwrap();
        }
    };
    sparse("all-hole", 10 << 20, &[]);
    sparse("middle", 20 << 20, &[(8 << 20, 3)]);
    sparse("ends", 4 << 20, &[(0, 4096), ((4 << 20) - 10, 10)]);
    sparse("odd-size", (3 << 20) + 77, &[(1 << 20, 5000)]);
    sparse("small", 100_000, &[(50_000, 10)]);
    let many: Vec<(u64, usize)> = (0..300).map(|n| (n * 65_536, 4096)).collect();
    sparse("many-runs", 300 * 65_536, &many);
    let long = "s".repeat(200);
    sparse(&long, 1 << 20, &[(4096, 1)]);

    // Modes.
    fs::create_dir(at("modes")).unwrap();
    for mode in [0o000, 0o444, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o6711] {
        if mode == 0 && !is_root() {
            continue;
        }
        let path = at("modes").join(format!("{mode:04o}"));
        fs::write(&path, mode.to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for mode in [0o700, 0o1777, 0o2775] {
        let path = at("modes").join(format!("d{mode:04o}"));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    attributes_and_owners(root);

    // Times last, innermost first. Symbolic links have theirs too.
    let mut paths = Vec::new();
    collect(root, &mut paths);
    for (n, path) in (0..).zip(paths.iter().rev()) {
        age(path, n);
    }
    set_time(&at("plain/block"), -1_000_000, 500_000_000);
    set_time(&at("plain/limit"), 1_700_000_000, 0);
    age(&at("plain"), 5000);
    age(root, 6000);
}

fn attributes_and_owners(root: &Path) {
    let dir = root.join("attributes");
    fs::create_dir_all(dir.join("acl-dir")).unwrap();
    let file = dir.join("file");
    fs::write(&file, b"attributes").unwrap();
    let long = "user.".to_owned() + &"n".repeat(200);
    for (name, value) in [
        ("user.text", b"value".to_vec()),
        ("user.empty", Vec::new()),
        ("user.binary", b"\0\n=\xff \0".to_vec()),
        ("user.big", noise(9, 3000)),
        ("user.a=b%3D", b"equals".to_vec()),
        (long.as_str(), b"long name".to_vec()),
    ] {
        xattr::set(&file, name, &value).unwrap();
    }
    xattr::set(dir.join("acl-dir"), "user.dir", b"of a directory").unwrap();
    // rw for the owner, r for user 1234, r for the group, x for group 77, mask rwx, nothing for others.
    let entries: [(u16, u16, u32); 6] =
        [(1, 6, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (8, 1, 77), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    xattr::set(&file, "system.posix_acl_access", &acl).unwrap();
    xattr::set(dir.join("acl-dir"), "system.posix_acl_access", &acl).unwrap();
    xattr::set(dir.join("acl-dir"), "system.posix_acl_default", &acl).unwrap();
    if !is_root() {
        backup_testkit::skip("in part: foreign owners and trusted attributes need root");
        return;
    }
    xattr::set(&file, "trusted.secret", b"root only").unwrap();
    symlink("file", dir.join("link")).unwrap();
    xattr::set(dir.join("link"), "trusted.on-a-link", b"yes").unwrap();
    std::os::unix::fs::lchown(dir.join("link"), Some(1), Some(2)).unwrap();
    std::os::unix::fs::chown(&file, Some(1234), Some(4321)).unwrap();
    let far = dir.join("owner-beyond-octal");
    fs::write(&far, b"x").unwrap();
    std::os::unix::fs::chown(&far, Some(3_000_000_000), Some(2_097_152)).unwrap();
    let capable = dir.join("capable");
    fs::write(&capable, b"#!/bin/sh\n").unwrap();
    // cap_net_bind_service=ep, revision 2 (linux/capability.h).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(&capable, "security.capability", &capability).unwrap();
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        paths.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), paths);
        }
    }
}

/// A tree of the given files.
pub(crate) fn tree(files: &[(&str, &[u8])]) -> TempDir {
    let base = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = base.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    }
    base
}

/// A whole backup in memory.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) archives: Vec<(String, Vec<u8>)>,
    pub(crate) report: SourceReport,
}

impl Taken {
    pub(crate) fn items(&self) -> Vec<Item> {
        self.report.items.iter().map(Result::unwrap).collect()
    }

    pub(crate) fn item(&self, path: &str) -> Item {
        self.items()
            .into_iter()
            .find(|i| i.path.as_bytes() == path.as_bytes())
            .unwrap_or_else(|| panic!("{path}"))
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.items().iter().map(|item| item.path.to_string()).collect()
    }

    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.report.warnings.iter().map(|w| w.code.as_ref()).collect()
    }

    /// The bytes of an item.
    pub(crate) fn member(&self, item: &Item) -> &[u8] {
        let (_, archive) = self.archives.iter().find(|(name, _)| *name == item.artifact).unwrap();
        &archive[usize::try_from(item.offset).unwrap()..][..usize::try_from(item.length).unwrap()]
    }

    /// Has GNU tar extract all archives as one stream.
    pub(crate) fn extract(&self, into: &Path) {
        let whole: Vec<u8> = self.archives.iter().flat_map(|(_, archive)| archive.iter().copied()).collect();
        untar(&whole, into);
    }
}

/// Has GNU tar extract one archive, or several that follow each other.
pub(crate) fn untar(archive: &[u8], into: &Path) {
    let file = into.with_extension("tar");
    fs::write(&file, archive).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--ignore-zeros", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*"]);
    tar.args(["--acls", "-p", "-C"]).arg(into);
    tar.args(if is_root() { &["--same-owner", "--numeric-owner"][..] } else { &[] });
    run(tar.arg("-f").arg(&file));
    fs::remove_file(&file).unwrap();
}

/// Backs up to the end.
pub(crate) async fn take(source: &dyn Source) -> Result<Taken, Error> {
    take_with(source, SnapshotRequest::full()).await
}

pub(crate) async fn take_with(source: &dyn Source, request: SnapshotRequest<'_>) -> Result<Taken, Error> {
    let mut snapshot = source.snapshot(request).await?;
    let taken = drain(snapshot.as_mut()).await;
    let outcome = if taken.is_ok() { Outcome::Committed } else { Outcome::Aborted };
    snapshot.close(outcome).await?;
    taken
}

async fn drain(snapshot: &mut dyn Snapshot) -> Result<Taken, Error> {
    let mut archives = Vec::new();
    while let Some(mut artifact) = snapshot.next().await? {
        let mut bytes = Vec::new();
        while let Some(chunk) = artifact.data.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        archives.push((artifact.meta.name.into_owned(), bytes));
    }
    Ok(Taken { archives, report: snapshot.finish().await? })
}

/// What rsync finds different between two trees: contents, owners, modes, times, links, attributes, ACLs.
pub(crate) fn differences(left: &Path, right: &Path) -> String {
    if !have("rsync") {
        return String::new();
    }
    let with_slash = |path: &Path| format!("{}/", path.display());
    run(Command::new("rsync")
        .args(["-aHAXn", "--checksum", "--delete", "--itemize-changes", "--exclude=socket"])
        .args([with_slash(left), with_slash(right)]))
}

/// Has rsync compare two trees, and looks at the nanoseconds, which it does not.
pub(crate) fn assert_same_tree(left: &Path, right: &Path) {
    assert_eq!(differences(left, right), "", "the trees differ");
    let times = |root: &Path| {
        let mut paths = Vec::new();
        collect(root, &mut paths);
        paths.retain(|path| path.file_name() != Some(OsStr::new("socket")));
        paths.sort();
        paths
            .iter()
            .map(|path| {
                let modified = fs::symlink_metadata(path).unwrap().modified().unwrap();
                (path.strip_prefix(root).unwrap().to_owned(), modified)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(times(left), times(right));
}
