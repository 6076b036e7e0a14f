//! Promise 5: what is mounted inside a tree is neither moved away nor removed with it. Needs the right to mount; a visible
//! skip otherwise.

use std::path::{Path, PathBuf};

use backup_core::{Error, ErrorKind, RestoreTarget as _, Selection, Undo};
use backup_fs::DirectoryTarget;

use crate::mounts::Mount;
use crate::support::*;

/// `to` is to be replaced by the archive of `from`; `disk` is what gets mounted.
struct Site {
    dir: tempfile::TempDir,
    to: PathBuf,
    archive: Vec<u8>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(
            "mkdir -p from/uploads to/uploads disk; printf new > from/page; printf old > to/page
            printf precious > disk/photo",
            dir.path(),
        );
        let archive = tar(&dir.path().join("from"), &[]);
        Self { to: dir.path().join("to"), archive, dir }
    }

    fn plan(&self) -> backup_core::RestorePlan {
        backup_core::RestorePlan { replace: true, ..plan(&self.archive) }
    }

    async fn replaced(&self) -> (PathBuf, Box<dyn Undo>) {
        let (_, report, undo) = restore(&self.target(), &self.plan(), &self.archive).await.unwrap();
        (report.old_kept_at.unwrap().into(), undo.unwrap())
    }

    fn target(&self) -> DirectoryTarget {
        DirectoryTarget::new(&self.to)
    }

    /// Mounts the disk (a part of the same file system), or an empty one with a photo on it.
    fn mount(&self, bind: bool, at: &Path) -> Option<Mount> {
        if bind {
            return Mount::bind(&self.dir.path().join("disk"), at);
        }
        let mount = Mount::new("tmpfs", at)?;
        std::fs::write(at.join("photo"), "precious").unwrap();
        Some(mount)
    }
}

/// The error names the mount, which is as it was.
fn refused(error: &Error, at: &Path) {
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", error.chain());
    let mount = error.context_value("mount").expect("the mount is named");
    assert_eq!(Path::new(mount), at.canonicalize().unwrap());
    assert!(error.to_string().contains("unmount"), "{error}");
    assert_eq!(std::fs::read(at.join("photo")).unwrap(), b"precious");
}

#[tokio::test]
async fn a_tree_with_a_mount_in_it_is_not_replaced_not_even_in_part() {
    for bind in [false, true] {
        let site = Site::new();
        let at = site.to.join("uploads");
        let Some(_mount) = site.mount(bind, &at) else { return };
        let mut plan = site.plan();
        for part in [false, true] {
            if part {
                plan.selection = Selection::globs(["page"]).unwrap();
            }
            let error = site.target().begin(&plan).await.err().expect("it must be refused");
            refused(&error, &at);
            assert_eq!(std::fs::read(site.to.join("page")).unwrap(), b"old");
            assert_eq!(names(site.dir.path()), ["disk", "from", "to"]);
        }
    }
}

#[tokio::test]
async fn what_is_mounted_while_the_restore_runs_stops_it_before_the_swap() {
    for bind in [false, true] {
        let site = Site::new();
        let restore = staged(&site.target(), &site.plan(), &site.archive).await.unwrap();
        restore.prove().await.unwrap();
        let at = site.to.join("uploads");
        let Some(_mount) = site.mount(bind, &at) else { return };
        let error = restore.commit().await.expect_err("it must be refused");
        refused(&error, &at);
        assert_eq!(std::fs::read(site.to.join("page")).unwrap(), b"old");
        assert_eq!(names(site.dir.path()), ["disk", "from", "to"]);
    }
}

#[tokio::test]
async fn neither_dropping_the_old_tree_nor_undo_touches_what_was_mounted_since() {
    for bind in [false, true] {
        let site = Site::new();
        let (kept, undo) = site.replaced().await;
        let at = kept.join("uploads");
        let Some(mount) = site.mount(bind, &at) else { return };
        refused(&undo.drop_old().await.unwrap_err(), &at);
        assert_eq!(names(&kept), ["page", "uploads"], "nothing of the old tree is gone");
        drop(mount);

        let site = Site::new();
        let (kept, undo) = site.replaced().await;
        let at = site.to.join("uploads");
        let Some(_mount) = site.mount(bind, &at) else { return };
        refused(&undo.undo().await.unwrap_err(), &at);
        assert_eq!(std::fs::read(site.to.join("page")).unwrap(), b"new");
        assert_eq!(std::fs::read(kept.join("page")).unwrap(), b"old");
    }
}

#[tokio::test]
async fn cleaning_up_after_dead_processes_does_not_enter_a_mount() {
    for kind in ["directory", "file", "tmpfs"] {
        let site = Site::new();
        sh("mkdir -p .to.discard-0123abcd/a/b; touch .to.discard-0123abcd/a/f", site.dir.path());
        let leftover = site.dir.path().join(".to.discard-0123abcd/a");
        let mounted = match kind {
            "file" => Mount::bind(&site.dir.path().join("disk/photo"), &leftover.join("f")),
            kind => site.mount(kind == "directory", &leftover.join("b")),
        };
        let Some(_mount) = mounted else { return };
        let error = site.target().begin(&site.plan()).await.err().expect("it must be refused");
        assert!(error.to_string().contains("mounted"), "{kind}: {}", error.chain());
        let photo = if kind == "file" { leftover.join("f") } else { leftover.join("b/photo") };
        assert_eq!(std::fs::read(photo).unwrap(), b"precious", "{kind}");
    }
}
