//! File systems mounted for a test, and unmounted also when it panics.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Mounted file systems of a test: the temporary directory they are in.
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
        let own = directory_of_test(at);
        let mut mount = Command::new("mount");
        let done = mount.args(arguments).arg(at).stderr(Stdio::null()).status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(own));
        }
        let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
        let required = required.split(',').any(|r| r.trim() == "mount");
        assert!(!required, "mounting is required and denied: {arguments:?}");
        backup_testkit::skip(&format!("mount {} is denied (root may)", arguments.join(" ")));
        None
    }
}

impl Drop for Mount {
    /// Unmounts everything below the test's own temporary directory: what was mounted may have been moved since.
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in points.into_iter().rev().filter(|point| Path::new(point).starts_with(&self.0)) {
            let _ = Command::new("umount").arg(point).status();
        }
    }
}

/// The directory of the test that `at` lies in.
fn directory_of_test(at: &Path) -> PathBuf {
    let temporary = std::env::temp_dir().canonicalize().unwrap();
    let at = at.canonicalize().unwrap();
    let own = at.ancestors().find(|above| above.parent() == Some(&temporary));
    own.expect("mounts are made in temporary directories only").to_owned()
}
