//! Archives, plans and comparisons.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backup_core::{
    ArtifactFormat, ArtifactMeta, ArtifactReader, Bytes, Digest, Item, ItemKind, ItemList, ItemPath,
    ItemProof, PlannedArtifact, Proof, Proofs, Restore, RestorePlan, RestoreReport, RestoreTarget as _,
    Result, Selection, Undo,
};
use backup_fs::DirectoryTarget;
use futures::StreamExt as _;

pub(crate) struct Items(pub(crate) Vec<Item>);

impl ItemList for Items {
    fn stream(&self) -> futures::stream::BoxStream<'static, Result<Item>> {
        futures::stream::iter(self.0.clone().into_iter().map(Ok)).boxed()
    }
}

pub(crate) fn meta() -> ArtifactMeta {
    ArtifactMeta::new("files-00001", ArtifactFormat::TAR)
}

/// A plan for everything in `archive`.
pub(crate) fn plan(archive: &[u8]) -> RestorePlan {
    let id = "20261120T020000Z-9f04c1".parse().unwrap();
    RestorePlan {
        set: "books/files".parse().unwrap(),
        id,
        source_kind: "directory".into(),
        server_version: None,
        artifacts: vec![PlannedArtifact {
            origin: id,
            meta: meta(),
            plain_size: archive.len() as u64,
            details: serde_json::Map::default(),
        }],
        log_position: None,
        log: Vec::new(),
        until: None,
        selection: Selection::all(),
        replace: false,
        proofs: Proofs::new(),
        details: serde_json::Map::default(),
        logical_bytes: archive.len() as u64,
        items: Arc::new(Items(Vec::new())),
    }
}

pub(crate) type Outcome = (Proof, RestoreReport, Option<Box<dyn Undo>>);

/// Offers one archive and returns what is ready to be proved.
pub(crate) async fn staged(
    target: &DirectoryTarget,
    plan: &RestorePlan,
    archive: &[u8],
) -> Result<Box<dyn Restore>> {
    let restore = target.begin(plan).await?;
    restore.artifact(ArtifactReader::from_bytes(meta(), archive.to_vec())).await?;
    Ok(restore)
}

pub(crate) async fn restore(target: &DirectoryTarget, plan: &RestorePlan, archive: &[u8]) -> Result<Outcome> {
    let restore = staged(target, plan, archive).await?;
    let proof = restore.prove().await?.remove("files").unwrap();
    let (report, undo) = restore.commit().await?;
    Ok((proof, report, undo))
}

/// An artifact in pieces of odd sizes, as a stream would bring it.
#[derive(Debug)]
pub(crate) struct InPieces(pub(crate) Vec<u8>);

impl backup_core::ArtifactBytes for InPieces {
    fn open(
        &self,
        range: Option<std::ops::Range<u64>>,
    ) -> futures::future::BoxFuture<'static, Result<backup_core::ByteStream>> {
        let mut pieces = Vec::new();
        let mut rest = Bytes::from(self.0.clone());
        if let Some(range) = range {
            rest = rest.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
        }
        let mut length = 1;
        while !rest.is_empty() {
            pieces.push(Ok(rest.split_to(length.min(rest.len()))));
            length = length * 7 % 4099 + 1;
        }
        Box::pin(async move { Ok(futures::stream::iter(pieces).boxed()) })
    }
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(program: &str, args: &[&str], directory: &Path) -> Vec<u8> {
    let out = Command::new(program)
        .args(args)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    out.stdout
}

pub(crate) fn sh(script: &str, directory: &Path) -> Vec<u8> {
    run("bash", &["-euc", script], directory)
}

/// Whether a program is on this machine; says so when it is not.
pub(crate) fn have(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        assert!(
            std::env::var_os("BACKUP_TEST_REQUIRE").is_none(),
            "{program} is required by BACKUP_TEST_REQUIRE"
        );
        println!("SKIPPED: {program} is not installed");
    }
    found
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The tree as one pax archive, made by GNU tar.
pub(crate) fn tar(tree: &Path, options: &[&str]) -> Vec<u8> {
    let mut args =
        vec!["--format=pax", "--sort=name", "--sparse", "--xattrs", "--xattrs-include=*", "--acls"];
    args.extend_from_slice(options);
    args.extend_from_slice(&["-cf", "-", "."]);
    run("tar", &args, tree)
}

/// What rsync would still have to do to make `b` like `a`: nothing when they are equal.
pub(crate) fn differences(a: &Path, b: &Path) -> String {
    let (a, b) = (format!("{}/", a.display()), format!("{}/", b.display()));
    let args = ["-aHAXn", "--checksum", "--delete", "--itemize-changes", &a, &b];
    String::from_utf8_lossy(&run("rsync", &args, Path::new("/"))).into_owned()
}

/// Makes a tree with every kind of entry, as far as this user may.
pub(crate) fn all_kinds(tree: &Path) {
    std::fs::create_dir_all(tree).unwrap();
    sh(
        r#"
        mkdir -p a/deep/er "dir with space" empty ro
        printf hello > a/small; : > a/nothing; head -c 300000 /dev/urandom > a/large
        head -c 131072 /dev/zero | tr '\0' x > a/limit
        printf '%s' 'not utf-8' > $'a/\xff\xfe'
        printf x > $'a/line\nbreak'
        ln a/small a/deep/link; ln a/small zlink
        ln -s ../nowhere a/dangling; ln -s /etc/passwd a/absolute; ln -s deep a/todir
        mkfifo pipe
        truncate -s 20M sparse; printf middle | dd of=sparse bs=1 seek=10000000 conv=notrunc status=none
        truncate -s 5M onlyhole
        printf s > "$(printf 'n%.0s' $(seq 200))"
        mkdir -p "long/$(printf 'd%.0s' $(seq 150))/$(printf 'e%.0s' $(seq 150))"
        printf l > "long/$(printf 'd%.0s' $(seq 150))/$(printf 'e%.0s' $(seq 150))/file"
        chmod 0640 a/small; chmod 0600 a/large; chmod 4755 a/limit; chmod 1777 empty; chmod 2755 "dir with space"
        setfattr -n user.origin -v 'here' a/large 2>/dev/null || true
        setfattr -n user.od%d=name -v 0x000102 a/deep 2>/dev/null || true
        setfacl -m u:1234:r a/large 2>/dev/null || true
        setfacl -d -m g:77:rwx a/deep 2>/dev/null || true
        touch -d '2001-02-03 04:05:06.123456789Z' a/small a/nothing; touch -h -d '1969-12-31 23:59:58.5Z' a/dangling
        touch -d '2038-02-03 04:05:06.000000001Z' a/deep
        if [ "$(id -u)" = 0 ]; then
            chown 1234:5678 a/large; chown -h 42:43 a/dangling; chown 7:8 empty; chmod 4755 a/limit
            setfattr -n trusted.t -v 1 a/limit 2>/dev/null || true
            setfattr -n security.capability -v 0x0100000202000000000000000000000000000000 a/nothing 2>/dev/null || true
        fi
        printf r > ro/file; chmod 0400 ro/file; chmod 0555 ro
        touch -d '1999-01-01Z' ro a .
        "#,
        tree,
    );
}

/// The items of a tree, computed here from the documented canonical form and nothing of the crate's own.
pub(crate) fn items(tree: &Path) -> Vec<Item> {
    let mut all = Vec::new();
    let mut links = HashMap::new();
    visit(tree, tree, &mut all, &mut links);
    all
}

pub(crate) fn proof_of(items: &[Item]) -> Proof {
    let mut sum = Proof::empty();
    for item in items {
        sum.merge(&item.proof.as_ref().unwrap().proof);
    }
    sum
}

fn visit(tree: &Path, path: &Path, all: &mut Vec<Item>, links: &mut HashMap<u64, Vec<u8>>) {
    let name = match path.strip_prefix(tree).unwrap().as_os_str().as_bytes() {
        b"" => b".".to_vec(),
        name => name.to_vec(),
    };
    let stat = std::fs::symlink_metadata(path).unwrap();
    let kind = match stat.mode() & 0o170_000 {
        0o100_000 => ItemKind::File,
        0o040_000 => ItemKind::Directory,
        0o120_000 => ItemKind::Symlink,
        0o010_000 => ItemKind::Fifo,
        other => panic!("unexpected kind {other:o}"),
    };
    let first = links.get(&stat.ino()).cloned();
    let item = if let Some(first) = first {
        let fields: [&[u8]; 10] =
            [b"files/1", &name, b"hardlink", &[0; 4], &[0; 4], &[0; 4], &[0; 12], &first, b"", &[0; 8]];
        let proof = Proof::of(fields);
        item(name.clone(), ItemKind::HardLink, 0, None, Some(ItemPath::new(first)), proof)
    } else {
        if kind == ItemKind::File && stat.nlink() > 1 {
            links.insert(stat.ino(), name.clone());
        }
        let (word, link, sha256): (&[u8], _, _) = match kind {
            ItemKind::File => (b"file", Vec::new(), Some(Digest::of(&std::fs::read(path).unwrap()))),
            ItemKind::Directory => (b"dir", Vec::new(), None),
            ItemKind::Symlink => {
                (b"symlink", std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(), None)
            }
            _ => (b"fifo", Vec::new(), None),
        };
        let mode = if kind == ItemKind::Symlink { 0o777 } else { stat.mode() & 0o7777 };
        let mut mtime = stat.mtime().to_le_bytes().to_vec();
        mtime.extend_from_slice(&u32::try_from(stat.mtime_nsec()).unwrap().to_le_bytes());
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = xattr::list(path)
            .unwrap()
            .filter(|name| name != "security.selinux")
            .map(|name| (name.as_bytes().to_vec(), xattr::get(path, &name).unwrap().unwrap()))
            .collect();
        xattrs.sort();
        let mut fields: Vec<Vec<u8>> = vec![
            b"files/1".to_vec(),
            name.clone(),
            word.to_vec(),
            mode.to_le_bytes().to_vec(),
            stat.uid().to_le_bytes().to_vec(),
            stat.gid().to_le_bytes().to_vec(),
            mtime,
            link,
            sha256.map_or(Vec::new(), |d| d.as_bytes().to_vec()),
            (xattrs.len() as u64).to_le_bytes().to_vec(),
        ];
        for (name, value) in xattrs {
            fields.extend([name, value]);
        }
        let size = if kind == ItemKind::File { stat.size() } else { 0 };
        item(name, kind, size, sha256, None, Proof::of(fields.iter().map(Vec::as_slice)))
    };
    all.push(item);
    if kind == ItemKind::Directory {
        let mut entries: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        for entry in entries {
            visit(tree, &entry, all, links);
        }
    }
}

fn item(
    name: Vec<u8>,
    kind: ItemKind,
    size: u64,
    sha256: Option<Digest>,
    link: Option<ItemPath>,
    proof: Proof,
) -> Item {
    Item {
        path: ItemPath::new(name),
        kind,
        origin: None,
        artifact: "files-00001".into(),
        offset: 0,
        length: 0,
        size,
        sha256,
        proof: Some(ItemProof { of: "files".into(), proof }),
        link,
        attributes: serde_json::Map::default(),
    }
}

/// Names in a directory, sorted: to see that nothing was left behind.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A ustar member, right or wrong, with its data and padding.
pub(crate) fn member(name: &[u8], kind: u8, link: &[u8], data: &[u8]) -> Vec<u8> {
    member_of_size(name, kind, link, data, &format!("{:011o}\0", data.len()))
}

/// The same with the size field as given.
pub(crate) fn member_of_size(name: &[u8], kind: u8, link: &[u8], data: &[u8], size: &str) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000755\0");
    put(108, format!("{:07o}\0", rustix::process::geteuid().as_raw()).as_bytes());
    put(116, format!("{:07o}\0", rustix::process::getegid().as_raw()).as_bytes());
    put(124, size.as_bytes());
    put(136, b"14000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut all = header.to_vec();
    all.extend_from_slice(data);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

/// Where the members of an archive are, each with the headers before it.
pub(crate) fn member_ranges(archive: &[u8]) -> Vec<std::ops::Range<u64>> {
    let mut all = Vec::new();
    let (mut start, mut at) = (0, 0);
    while archive.get(at).is_some_and(|&b| b != 0) {
        let size = std::str::from_utf8(&archive[at + 124..at + 135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        let kind = archive[at + 156];
        at += 512 + size.next_multiple_of(512);
        if !b"xgLK".contains(&kind) {
            all.push(start as u64..at as u64);
            start = at;
        }
    }
    all
}
