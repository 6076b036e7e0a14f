//! What was archived comes back the same.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use backup_core::{ArtifactReader, ErrorKind, RestoreTarget as _, Selection};
use backup_fs::{DirectoryTarget, OwnerMap, Owners};

use crate::support::*;

fn numeric(path: &std::path::Path) -> DirectoryTarget {
    let target = DirectoryTarget::new(path);
    if is_root() { target.owners(Owners::Numeric) } else { target }
}

#[tokio::test]
async fn every_kind_of_entry_comes_back_and_proves_what_the_original_proves() {
    if !have("rsync") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    all_kinds(&from);
    let archive = tar(&from, &[]);
    let mut plan = plan(&archive);
    plan.logical_bytes = 30_000_000;

    let (proof, report, undo) = restore(&numeric(&to), &plan, &archive).await.unwrap();

    assert_eq!(differences(&from, &to), "");
    assert_eq!(differences(&to, &from), "");
    let items = items(&from);
    assert_eq!(proof, proof_of(&items));
    assert_eq!(report.items, items.len() as u64);
    assert_eq!(report.bytes, items.iter().map(|i| i.size).sum::<u64>());
    assert!(undo.is_none() && report.old_kept_at.is_none());
    assert_eq!(report.warnings, []);
    assert!(std::fs::metadata(to.join("sparse")).unwrap().blocks() < 2000, "holes stay holes");
    assert_eq!(names(dir.path()), ["from", "to"]);
}

#[tokio::test]
async fn all_formats_of_gnu_tar_restore_the_same_tree() {
    if !have("rsync") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    sh(
        r#"
        mkdir -p "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 90))"
        printf x > "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 90))/file"
        ln -s "$(printf 'l%.0s' $(seq 90))" link
        head -c 5000 /dev/urandom > f; ln f g; mkfifo p; touch -d 2020-01-01Z f p . d*/e*/file d*/e* d*
        touch -h -d 2020-01-01Z link
        for i in $(seq 0 40); do printf "$i" | dd of=sparse bs=1 seek=$((i * 40000)) conv=notrunc status=none; done
        touch -d 2020-01-01Z sparse; touch -d 2020-01-01Z .
        "#,
        &from,
    );
    let formats: [&[&str]; 7] = [
        &["--format=v7", "--exclude=d*", "--exclude=p"],
        &["--format=ustar"],
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for (n, options) in formats.iter().enumerate() {
        let to = dir.path().join(format!("to{n}"));
        let mut args = options.to_vec();
        args.extend(["-cf", "-", "."]);
        let archive = run("tar", &args, &from);
        let mut plan = plan(&archive);
        plan.logical_bytes = 10_000_000;
        restore(&numeric(&to), &plan, &archive)
            .await
            .unwrap_or_else(|e| panic!("{options:?}: {}", e.chain()));
        if n == 0 {
            sh("cmp from/f to0/f; cmp from/sparse to0/sparse; [ to0/f -ef to0/g ]", dir.path());
        } else {
            assert_eq!(differences(&from, &to), "", "{options:?}");
        }
    }
}

#[tokio::test]
async fn pieces_of_any_size_make_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    all_kinds(&from);
    let archive = tar(&from, &[]);
    let mut plan = plan(&archive);
    plan.logical_bytes = 30_000_000;
    let restore = numeric(&to).begin(&plan).await.unwrap();
    let size = archive.len() as u64;
    restore.artifact(ArtifactReader::new(meta(), size, None, Arc::new(InPieces(archive)))).await.unwrap();
    assert_eq!(restore.prove().await.unwrap()["files"], proof_of(&items(&from)));
    restore.abort().await.unwrap();
    assert_eq!(names(dir.path()), ["from"]);
}

#[tokio::test]
async fn an_empty_destination_keeps_its_mode_and_a_full_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    sh("mkdir from from/sub to; printf x > from/sub/f; chmod 0711 to; touch -d 2010-01-01Z to", dir.path());
    let archive = run("tar", &["-cf", "-", "sub"], &dir.path().join("from"));
    let to = dir.path().join("to");
    restore(&numeric(&to), &plan(&archive), &archive).await.unwrap();
    let stat = std::fs::metadata(&to).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.mtime()), (0o711, 1_262_304_000));
    assert_eq!(std::fs::read(to.join("sub/f")).unwrap(), b"x");

    let refused = numeric(&to).begin(&plan(&archive)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::TargetNotEmpty);
    let refused = numeric(&to.join("sub/f")).begin(&plan(&archive)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::TargetNotEmpty);
    let refused = numeric(&dir.path().join("no/where")).begin(&plan(&archive)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert_eq!(names(dir.path()), ["from", "to"]);
}

#[tokio::test]
async fn dropping_a_restore_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    all_kinds(&dir.path().join("from"));
    let archive = tar(&dir.path().join("from"), &[]);
    let to = dir.path().join("to");
    let mut plan = plan(&archive);
    plan.logical_bytes = 30_000_000;
    drop(staged(&numeric(&to), &plan, &archive).await.unwrap());
    assert_eq!(names(dir.path()), ["from"]);
    let proved = staged(&numeric(&to), &plan, &archive).await.unwrap();
    proved.prove().await.unwrap();
    drop(proved);
    assert_eq!(names(dir.path()), ["from"]);
    // Cut off in the middle: an error, and nothing left.
    let cut = &archive[..archive.len() / 2];
    let error = staged(&numeric(&to), &plan, cut).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert_eq!(names(dir.path()), ["from"]);
}

#[tokio::test]
async fn stripped_components_are_gone_and_the_proof_is_still_that_of_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    sh("mkdir -p from/srv/books/sub; printf x > from/srv/books/sub/f; ln from/srv/books/sub/f from/srv/books/g
        chmod 0750 from/srv/books; touch -d 2011-01-01Z from/srv/books", dir.path());
    let from = dir.path().join("from");
    let archive = tar(&from, &[]);
    let to = dir.path().join("to");
    let target = numeric(&to).strip_components(2);
    let (proof, report, _) = restore(&target, &plan(&archive), &archive).await.unwrap();
    assert_eq!(proof, proof_of(&items(&from)));
    assert_eq!(names(&to), ["g", "sub"]);
    assert_eq!(std::fs::metadata(to.join("g")).unwrap().nlink(), 2);
    let stat = std::fs::metadata(&to).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.mtime()), (0o750, 1_293_840_000));
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    assert_eq!(report.warnings[0].code, "leading-directory-left-out");

    let too_many = DirectoryTarget::new(dir.path().join("n")).strip_components(5);
    let error = restore(&too_many, &plan(&archive), &archive).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_selected_hard_link_gets_the_content_of_the_item_that_was_not_selected() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        "mkdir from from/a from/b from/c; printf content > from/a/file; chmod 0604 from/a/file
        ln from/a/file from/b/link; ln from/a/file from/b/link2; printf other > from/c/other",
        dir.path(),
    );
    let from = dir.path().join("from");
    let archive = tar(&from, &[]);
    let all = items(&from);
    let mut plan = plan(&archive);
    plan.selection = Selection::globs(["b/**"]).unwrap();
    let selected: Vec<_> = all.into_iter().filter(|i| plan.selection.matches(&i.path)).collect();
    let expected = proof_of(&selected);
    plan.items = Arc::new(Items(selected));
    let to = dir.path().join("to");
    let (proof, report, _) = restore(&numeric(&to), &plan, &archive).await.unwrap();
    assert_eq!(proof, expected);
    assert_eq!(report.items, 2);
    assert_eq!(names(&to), ["b"]);
    assert_eq!(std::fs::read(to.join("b/link2")).unwrap(), b"content");
    let stat = std::fs::metadata(to.join("b/link")).unwrap();
    assert_eq!((stat.mode() & 0o777, stat.nlink()), (0o604, 2));
}

#[tokio::test]
async fn owners_are_mapped_and_the_proof_does_not_mind() {
    if !is_root() {
        println!("SKIPPED: only root may give files away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    sh("mkdir from; printf x > from/mine; printf y > from/theirs; printf z > from/suid
        chown 4001:4002 from/mine; chown 4003:4003 from/theirs; chown 4001:4002 from/suid; chmod 6755 from/suid",
        dir.path());
    let from = dir.path().join("from");
    let expected = proof_of(&items(&from));
    let archive = tar(&from, &[]);
    let owner = |path: std::path::PathBuf| {
        let stat = std::fs::metadata(path).unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };

    let to = dir.path().join("mapped");
    let map = OwnerMap::new().user("4001", "nobody").group("4002", "5002");
    let target = DirectoryTarget::new(&to).owners(Owners::Mapped(map));
    let (proof, report, _) = restore(&target, &plan(&archive), &archive).await.unwrap();
    assert_eq!(proof, expected);
    let nobody = owner(to.join("mine")).0;
    assert_ne!(nobody, 4001);
    assert_eq!(owner(to.join("mine")).1, 5002);
    assert_eq!(owner(to.join("theirs")), (4003, 4003, 0o644));
    assert_eq!(owner(to.join("suid")), (nobody, 5002, 0o755), "not setuid for somebody else");
    assert_eq!(report.warnings.iter().map(|w| &*w.code).collect::<Vec<_>>(), ["setuid-dropped"]);

    let to = dir.path().join("all");
    let target = DirectoryTarget::new(&to).owners(Owners::all("root", "7777"));
    let (proof, ..) = restore(&target, &plan(&archive), &archive).await.unwrap();
    assert_eq!(proof, expected);
    assert_eq!(owner(to.join("theirs")), (0, 7777, 0o644));

    let to = dir.path().join("left");
    let target = DirectoryTarget::new(&to).owners(Owners::Leave);
    let (proof, report, _) = restore(&target, &plan(&archive), &archive).await.unwrap();
    assert_eq!(proof, expected);
    assert_eq!(owner(to.join("theirs")), (0, 0, 0o644));
    assert!(report.warnings.iter().any(|w| w.code == "owner-not-set" && w.message.contains("3 entries")));

    let unknown = DirectoryTarget::new(dir.path().join("x")).owners(Owners::all("no-such-user-here", "root"));
    assert_eq!(unknown.begin(&plan(&archive)).await.err().unwrap().kind(), ErrorKind::InvalidInput);

    // By name: the name decides where this machine knows it, whatever the number was.
    let archive = tar(&from, &["--owner=nobody:4444", "--group=no-such-group:4445"]);
    let to = dir.path().join("named");
    restore(&DirectoryTarget::new(&to), &plan(&archive), &archive).await.unwrap();
    let (uid, gid, _) = owner(to.join("mine"));
    assert_eq!((uid, gid), (nobody, 4445));
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(&[]);
    plan.logical_bytes = 1 << 60;
    let to = dir.path().join("to");
    let error = DirectoryTarget::new(&to).begin(&plan).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(error.context_value("needed_bytes"), Some("1152921504606846976"));
    assert!(error.context_value("available_bytes").is_some());
    assert!(names(dir.path()).is_empty());
    let open = DirectoryTarget::new(&to).check_space(false).begin(&plan).await.unwrap();
    open.abort().await.unwrap();
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_leaves_no_debris() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("disk");
    std::fs::create_dir(&mount).unwrap();
    if !is_root() {
        println!("SKIPPED: only root may mount");
        return;
    }
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&mount)
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        println!("SKIPPED: mounting is not possible here");
        return;
    }
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    sh("for i in $(seq 100); do head -c 100000 /dev/urandom > f$i; done", &from);
    let archive = tar(&from, &[]);
    let to = mount.join("to");
    let refused = DirectoryTarget::new(&to).begin(&plan(&archive)).await.err().unwrap();
    let full = staged(&DirectoryTarget::new(&to).check_space(false), &plan(&archive), &archive).await.err();
    let mount_point = DirectoryTarget::new(&mount).begin(&plan(&[])).await.err().unwrap();
    let left = names(&mount);
    run("umount", &[mount.to_str().unwrap()], dir.path());
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert_eq!(full.unwrap().kind(), ErrorKind::StorageFull);
    assert_eq!(mount_point.kind(), ErrorKind::InvalidInput);
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn a_hard_link_may_come_before_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let link = member(b"d/link", b'1', b"late/file", b"");
    let file = member(b"late/file", b'0', b"", b"content");
    let restore = DirectoryTarget::new(&to).begin(&plan(&[])).await.unwrap();
    for archive in [link, file] {
        restore.artifact(ArtifactReader::from_bytes(meta(), archive)).await.unwrap();
    }
    assert_eq!(restore.prove().await.unwrap()["files"].count, 2);
    restore.commit().await.unwrap();
    assert_eq!(std::fs::metadata(to.join("d/link")).unwrap().nlink(), 2);
    assert_eq!(std::fs::read(to.join("d/link")).unwrap(), b"content");
}
