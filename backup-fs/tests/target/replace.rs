//! Replacing what exists.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use backup_core::{
    ArtifactReader, ErrorKind, Item, Proof, RestorePlan, RestoreReport, RestoreTarget as _, Selection, Undo,
};
use backup_fs::{DirectoryTarget, Owners};

use crate::support::{items as items_of, *};

fn target(path: &Path) -> DirectoryTarget {
    let target = DirectoryTarget::new(path);
    if is_root() { target.owners(Owners::Numeric) } else { target }
}

/// As the engine does it: ask what is needed, then offer an archive of just that.
async fn replace(
    from: &Path,
    to: &Path,
    plan: &mut RestorePlan,
    items: &[Item],
) -> (Proof, RestoreReport, Option<Box<dyn Undo>>, Vec<String>) {
    plan.replace = true;
    plan.items = Arc::new(Items(items.to_vec()));
    let restore = target(to).begin(plan).await.unwrap();
    let mut needed = Vec::new();
    for item in items {
        if restore.needs(item).await.unwrap() {
            needed.push(item.path.to_string());
        }
    }
    let (archive, all) = (tar(from, &[]), items_of(from));
    let ranges = member_ranges(&archive);
    assert_eq!(ranges.len(), all.len());
    let parts = all.iter().zip(ranges).filter(|(item, _)| needed.contains(&item.path.to_string()));
    let parts = parts.map(|(_, range)| range).collect();
    let size = archive.len() as u64;
    let reader = ArtifactReader::new(meta(), size, Some(parts), Arc::new(InPieces(archive)));
    restore.artifact(reader).await.unwrap();
    let proof = restore.prove().await.unwrap()["files"];
    let (report, undo) = restore.commit().await.unwrap();
    (proof, report, undo, needed)
}

fn plan_of(logical_bytes: u64) -> RestorePlan {
    RestorePlan { logical_bytes, ..plan(&[]) }
}

fn tree(path: &Path) {
    std::fs::create_dir(path).unwrap();
    sh(
        "mkdir -p a/b keep; printf 1 > a/one; printf 2 > a/b/two; printf 3 > keep/three; ln -s x keep/link
         mkfifo keep/pipe; ln a/one keep/hard; touch -h -d 2015-05-05Z a/one a/b/two keep/* a/b a keep .",
        path,
    );
}

#[tokio::test]
async fn the_old_tree_is_kept_until_dropped_and_undo_brings_it_back() {
    if !have("rsync") {
        return;
    }
    for drop_old in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, copy) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("copy"));
        tree(&from);
        sh("mkdir to; printf old > to/old; chmod 0711 to; cp -a to copy", dir.path());
        let items = items_of(&from);
        let (proof, report, undo, needed) = replace(&from, &to, &mut plan_of(100_000), &items).await;
        assert_eq!(proof, proof_of(&items));
        assert_eq!(needed.len(), items.len());
        assert_eq!(differences(&from, &to), "");
        let kept = report.old_kept_at.unwrap();
        assert_eq!(differences(&copy, Path::new(&kept)), "");
        assert_eq!(names(dir.path()).len(), 4);
        if drop_old {
            undo.unwrap().drop_old().await.unwrap();
            assert_eq!(differences(&from, &to), "");
        } else {
            undo.unwrap().undo().await.unwrap();
            assert_eq!(differences(&copy, &to), "");
        }
        assert_eq!(names(dir.path()), ["copy", "from", "to"]);
    }
}

#[tokio::test]
async fn unchanged_files_are_linked_and_the_others_are_read() {
    if !have("rsync") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from);
    sh("printf same > from/same; printf same2 > from/mode; printf aaaa > from/content; touch -d 2015-05-05Z from/* from
        cp -a from to; chmod 0600 to/mode; printf bbbb > to/content; touch -r from/content to/content
        printf extra > to/extra", dir.path());
    let before = std::fs::metadata(to.join("same")).unwrap().ino();
    let items = items_of(&from);
    let (proof, report, undo, needed) = replace(&from, &to, &mut plan_of(100_000), &items).await;
    assert_eq!(proof, proof_of(&items));
    assert_eq!(report.items, items.len() as u64);
    for (name, expected) in
        [("same", false), ("a/b/two", false), ("mode", true), ("content", true), ("keep", true)]
    {
        assert_eq!(needed.iter().any(|n| n == name), expected, "{name}: {needed:?}");
    }
    assert_eq!(std::fs::metadata(to.join("same")).unwrap().ino(), before);
    assert_eq!(differences(&from, &to), "");
    let kept = report.old_kept_at.unwrap();
    assert_eq!(std::fs::read(Path::new(&kept).join("content")).unwrap(), b"bbbb");
    assert_eq!(std::fs::metadata(Path::new(&kept).join("mode")).unwrap().mode() & 0o777, 0o600);
    undo.unwrap().drop_old().await.unwrap();
    assert_eq!(differences(&from, &to), "");
}

#[tokio::test]
async fn two_items_never_become_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    sh(
        "mkdir from to; printf x > from/a; printf x > from/b; touch -d 2015-05-05Z from/a from/b
        cp -p from/a to/a; ln to/a to/b",
        dir.path(),
    );
    let items = items_of(&from);
    let (proof, ..) = replace(&from, &to, &mut plan_of(10_000), &items).await;
    assert_eq!(proof, proof_of(&items));
    assert_ne!(
        std::fs::metadata(to.join("a")).unwrap().ino(),
        std::fs::metadata(to.join("b")).unwrap().ino()
    );
}

#[tokio::test]
async fn what_is_not_selected_stays_as_it_was() {
    if !have("rsync") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to, copy) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("copy"));
    tree(&from);
    tree(&to);
    sh("printf changed > to/a/b/two; printf extra > to/a/b/extra; printf mine > to/keep/mine; rm to/a/one
        chmod 0750 to/keep to/a; setfattr -n user.x -v 1 to/keep || true; touch -d 2016-06-06Z to/a/b to/a to/keep to
        cp -a to copy", dir.path());
    let mut plan = plan_of(10_000);
    plan.selection = Selection::globs(["a/b"]).unwrap();
    let selected: Vec<_> = items_of(&from).into_iter().filter(|i| plan.selection.matches(&i.path)).collect();
    let (proof, report, undo, _) = replace(&from, &to, &mut plan, &selected).await;
    assert_eq!(proof, proof_of(&selected));
    assert_eq!(report.items, 2);
    assert_eq!(differences(&from.join("a/b"), &to.join("a/b")), "");
    sh("rm -r copy/a/b; cp -a from/a/b copy/a/b; touch -r to/a copy/a", dir.path());
    assert_eq!(differences(&copy, &to), "");
    assert_eq!(std::fs::metadata(to.join("a")).unwrap().mtime(), 1_465_171_200);
    undo.unwrap().undo().await.unwrap();
    assert_eq!(std::fs::read(to.join("a/b/extra")).unwrap(), b"extra");
    assert_eq!(names(dir.path()), ["copy", "from", "to"]);
}

#[tokio::test]
async fn a_destination_that_changed_meanwhile_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from);
    let archive = tar(&from, &[]);
    for (prepare, meanwhile) in [
        ("rm -rf to", "mkdir to; printf x > to/f"),
        ("rm -rf to; mkdir to", "printf x > to/f"),
        ("rm -rf to; mkdir to; touch to/old", "rm -r to; mkdir to; printf x > to/f"),
    ] {
        sh(prepare, dir.path());
        let mut plan = plan(&archive);
        plan.replace = true;
        let restore = staged(&target(&to), &plan, &archive).await.unwrap();
        restore.prove().await.unwrap();
        sh(meanwhile, dir.path());
        let error = restore.commit().await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::TargetNotEmpty, "{}", error.chain());
        assert_eq!(std::fs::read(to.join("f")).unwrap(), b"x");
        assert_eq!(names(dir.path()), ["from", "to"]);
    }
}

#[tokio::test]
async fn undo_refuses_when_the_trees_were_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from);
    sh("mkdir to; printf old > to/old", dir.path());
    let items = items_of(&from);
    let (_, report, undo, _) = replace(&from, &to, &mut plan_of(10_000), &items).await;
    sh("mv to elsewhere; mkdir to; printf new > to/new", dir.path());
    assert_eq!(undo.unwrap().undo().await.err().unwrap().kind(), ErrorKind::WrongPlace);
    assert!(Path::new(&report.old_kept_at.unwrap()).join("old").exists());
    assert_eq!(names(&to), ["new"]);
}

#[tokio::test]
async fn leftovers_of_dead_processes_are_removed_and_other_names_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    tree(&from);
    let archive = tar(&from, &[]);
    sh("mkdir -p .to.restore-20261120T020000Z-9f04c1-0123abcd/tree/x .to.discard-0123abcd/y .to.restore-mine .to.before-x
        mkdir .to.restore-20261120T020000Z-9f04c1-nothex00 .other.discard-0123abcd
        chmod 0700 .to.restore-20261120T020000Z-9f04c1-0123abcd", dir.path());
    restore(&target(&dir.path().join("to")), &plan(&archive), &archive).await.unwrap();
    assert_eq!(
        names(dir.path()),
        [
            ".other.discard-0123abcd",
            ".to.before-x",
            ".to.restore-20261120T020000Z-9f04c1-nothex00",
            ".to.restore-mine",
            "from",
            "to"
        ]
    );
}

#[tokio::test]
async fn a_restore_under_way_is_not_taken_for_a_leftover() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from);
    let archive = tar(&from, &[]);
    let first = staged(&target(&to), &plan(&archive), &archive).await.unwrap();
    let second = staged(&target(&to), &plan(&archive), &archive).await.unwrap();
    first.prove().await.unwrap();
    second.prove().await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(second.commit().await.err().unwrap().kind(), ErrorKind::TargetNotEmpty);
    assert_eq!(names(dir.path()), ["from", "to"]);
}
