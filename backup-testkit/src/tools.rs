//! External programs that tests compare with.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Whether `program` runs with the harmless arguments `probe`. If not, the skip of `test` is printed, also when test
/// output is captured.
///
/// # Panics
///
/// When the program is missing and the environment variable `BACKUP_TEST_REQUIRE` names `requirement`: a list of words
/// separated by commas or spaces, or `all`.
pub fn available(requirement: &str, program: &str, probe: &[&str], test: &str) -> bool {
    let status = Command::new(program)
        .args(probe)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if status.is_ok_and(|s| s.success()) {
        return true;
    }
    let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
    let is_required = required.split([',', ' ']).any(|word| word == requirement || word == "all");
    assert!(
        !is_required,
        "{test}: BACKUP_TEST_REQUIRE names {requirement}, but {program} {probe:?} does not run"
    );
    // Not `eprintln!`, which the test harness captures.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {program} {probe:?} does not run here");
    false
}

/// Runs a program on `input`, and returns its standard output.
///
/// # Panics
///
/// When it cannot be started, or fails; the message holds its standard error.
pub fn filter(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // From a thread of its own, because the program may write before it has read everything.
        scope.spawn(move || stdin.map(|mut to| to.write_all(input)));
        child.wait_with_output()
    });
    let output = output.unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
