//! File systems mounted for a test, and unmounted also when it panics.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts a file system of `kind` (`tmpfs`, `ramfs`) on `at`; `None`, with a visible skip, where that is denied.
    pub(crate) fn new(kind: &str, at: &Path) -> Option<Self> {
        Self::with(&["-t", kind, "none"], at)
    }

    /// Shows the directory or file `what` at `at` too.
    pub(crate) fn bind(what: &Path, at: &Path) -> Option<Self> {
        Self::with(&["--bind", what.to_str().unwrap()], at)
    }

    /// `mount ARGUMENTS AT`.
    pub(crate) fn with(arguments: &[&str], at: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        let done = mount.args(arguments).arg(at).stderr(Stdio::null()).status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
        let required = required.split(',').any(|r| r.trim() == "mount");
        assert!(!required, "mounting is required and denied: {arguments:?}");
        backup_testkit::skip(&format!("mount {} is denied (root may)", arguments.join(" ")));
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        // A file system that stays would be emptied by whoever removes the directory it is mounted in.
        if !done.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        }
    }
}
