//! [`Crash`]: a test that kills processes in the middle of their work and looks at what they leave.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Seek as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backup_core::Sink;

use crate::{Fault, FaultySink, Rule};

const STARTED: &str = "BACKUP_CRASH_STARTED";
const AT_CALL: &str = "BACKUP_CRASH_AT_CALL";
const VAR: &str = "BACKUP_CRASH_VAR_";
const TORTURE: &str = "BACKUP_TORTURE";

/// Runs the calling test again in a child process, as another role, and kills it with SIGKILL.
///
/// One test is both sides. In the child, [`Crash::child`] is `Some`: the test plays its role and returns. In the
/// parent it is `None`, and the test starts children, kills them, and checks what they left on disk.
///
/// ```no_run
/// use backup_core::MemorySink;
/// use backup_testkit::{Crash, Ended, Kill};
///
/// // #[test]
/// fn what_was_confirmed_survives_a_kill() {
///     if let Some(child) = Crash::child() {
///         let sink = child.sink(MemorySink::new()); // really: a sink in the directory `child.var("dir")`
///         // … do the work that is to be interrupted on `sink` …
///         return;
///     }
///     let dir = tempfile::tempdir().unwrap();
///     // The name as `cargo test` prints it, modules included.
///     let crash = Crash::of("what_was_confirmed_survives_a_kill").var("dir", dir.path());
///     for n in 1..Crash::kills(20) {
///         match crash.run(Kill::AtCall(n)) {
///             Ended::Killed => { /* … is everything that was confirmed still there? … */ }
///             Ended::Completed => break, // it has fewer calls than that
///         }
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Crash {
    test: String,
    vars: BTreeMap<String, OsString>,
}

/// When a child is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kill {
    /// Not at all: to see that the role works, and how long it takes.
    Never,
    /// Before the n-th call (from 1) of the child's [`CrashChild::sink`] does anything. Calls are those that
    /// [`FaultySink`] counts.
    AtCall(u64),
    /// This long after the child began its role.
    After(Duration),
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was killed.
    Killed,
    /// It did all its work before.
    Completed,
}

impl Crash {
    /// Children run the test of this name, which must be the calling one: the path as `cargo test` prints it.
    pub fn of(test: impl Into<String>) -> Self {
        Self { test: test.into(), vars: BTreeMap::new() }
    }

    /// Hands a value to the children.
    pub fn var(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.vars.insert(name.to_owned(), value.as_ref().to_owned());
        self
    }

    /// How many kills to do: `least`, or what the environment variable `BACKUP_TORTURE` says, if that is more.
    pub fn kills(least: u64) -> u64 {
        std::env::var(TORTURE).ok().and_then(|n| n.parse().ok()).map_or(least, |n: u64| n.max(least))
    }

    /// In a child, its role; in the parent, `None`.
    pub fn child() -> Option<CrashChild> {
        let started = std::env::var_os(STARTED)?;
        std::fs::write(started, "").expect("a child says that it has begun");
        Some(CrashChild { at_call: std::env::var(AT_CALL).ok().and_then(|n| n.parse().ok()) })
    }

    /// Runs a child to its end, which may come early. Blocks.
    ///
    /// # Panics
    ///
    /// When the child fails on its own, with what it wrote to standard error; when no test has the name; when a child
    /// does not begin, or does not end within two minutes.
    pub fn run(&self, kill: Kill) -> Ended {
        let dir = tempfile::tempdir().expect("a directory for a child's signs");
        let started = dir.path().join("started");
        let mut stderr = tempfile::tempfile().expect("a file for a child's errors");
        let mut command = Command::new(std::env::current_exe().expect("this test has a binary"));
        command
            .args(["--exact", &self.test, "--test-threads=1", "--nocapture"])
            .env(STARTED, &started)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone().expect("a second handle to a file"));
        for (name, value) in &self.vars {
            command.env(format!("{VAR}{name}"), value);
        }
        if let Kill::AtCall(n) = kill {
            command.env(AT_CALL, n.to_string());
        }
        let mut child = command.spawn().expect("a test can start itself");
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut kill_at = None;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            let now = Instant::now();
            if let (Kill::After(time), None, true) = (kill, kill_at, started.exists()) {
                kill_at = Some(now + time);
            }
            let overdue = now > deadline;
            if overdue || kill_at.is_some_and(|at| now >= at) {
                child.kill().expect("a child can be killed");
                let status = child.wait().expect("a child can be waited for");
                assert!(!overdue, "a child of {} did not end within two minutes", self.test);
                break status;
            }
            let rest = kill_at.map_or(Duration::from_millis(1), |at| at - now);
            std::thread::sleep(rest.min(Duration::from_millis(1)));
        };
        if status.signal() == Some(9) {
            return Ended::Killed;
        }
        let mut said = String::new();
        let _ = stderr.rewind().and_then(|()| stderr.read_to_string(&mut said));
        assert!(status.success(), "a child of {} failed with {status}:\n{said}", self.test);
        assert!(started.exists(), "no test is named {}, or it does not call `Crash::child`", self.test);
        Ended::Completed
    }
}

/// The role of a child.
#[derive(Clone, Debug)]
pub struct CrashChild {
    at_call: Option<u64>,
}

impl CrashChild {
    /// A value the parent handed over.
    ///
    /// # Panics
    ///
    /// When there is none of this name.
    pub fn var(&self, name: &str) -> OsString {
        std::env::var_os(format!("{VAR}{name}")).unwrap_or_else(|| panic!("the parent gave no `{name}`"))
    }

    /// The sink to work on: `inner`, and the process dies at the call that the parent chose.
    pub fn sink(&self, inner: impl Sink + 'static) -> FaultySink {
        let sink = FaultySink::new(inner);
        if let Some(n) = self.at_call {
            sink.arm(Rule::nth(n).fault(Fault::Kill));
        }
        sink
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup_core::{Key, MemorySink, ObjectKind, PutOptions, put_bytes};

    #[tokio::test]
    async fn a_child_dies_where_it_was_told_to() {
        if let Some(child) = Crash::child() {
            let sink = child.sink(MemorySink::new());
            let path = child.var("file");
            for n in 0..3 {
                let key = Key::parse(format!("object{n}")).unwrap();
                put_bytes(&sink, &key, "x".into(), PutOptions::overwrite(ObjectKind::Note)).await.unwrap();
                std::fs::write(&path, (n + 1).to_string()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(300));
            std::fs::write(&path, "all").unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let crash = Crash::of("crash::tests::a_child_dies_where_it_was_told_to").var("file", &file);
        let read = || std::fs::read_to_string(&file).unwrap_or_default();
        // Each put is create, write, finish.
        assert_eq!(crash.run(Kill::AtCall(1)), Ended::Killed);
        assert_eq!(read(), "");
        assert_eq!(crash.run(Kill::AtCall(6)), Ended::Killed);
        assert_eq!(read(), "1");
        assert_eq!(crash.run(Kill::After(Duration::from_millis(100))), Ended::Killed);
        assert_ne!(read(), "all");
        assert_eq!(crash.run(Kill::AtCall(100)), Ended::Completed);
        assert_eq!(read(), "all");
    }

    #[test]
    #[should_panic(expected = "no test is named")]
    fn a_wrong_name_is_noticed() {
        Crash::of("there::is::no::such_test").run(Kill::Never);
    }
}
