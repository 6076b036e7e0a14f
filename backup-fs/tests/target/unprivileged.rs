//! The same tests once more, run by an ordinary user.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::support::*;

#[test]
fn an_ordinary_user_passes_all_other_tests() {
    if !is_root() || !have("setpriv") {
        println!("SKIPPED: these tests run as an ordinary user already, or cannot become one");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let exe = dir.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let out = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(&exe)
        .args(["--skip", "crash::", "--test-threads=2"])
        .env("TMPDIR", dir.path())
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
