//! A frame for tests that need a real server: find one, start it on a free port in a directory of its own, wait until
//! it answers, stop it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// Names the stores that must not be skipped, separated by commas: `postgres,redis`, or `all`.
const REQUIRE: &str = "BACKUP_TEST_REQUIRE";
/// The user and group `nobody` of Linux distributions. Many servers refuse to run as root.
const NOBODY: u32 = 65534;
/// How long a server may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How much of a server's log a failed start shows, in bytes.
const LOG_SHOWN: usize = 4096;

/// Where a test gets its server from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One that runs already, from `BACKUP_TEST_<STORE>_URL`. It is the user's: tests must keep to names of their own.
    Url(String),
    /// A program to start.
    Binary(PathBuf),
}

/// Looks for a server of `store` (`"redis"`): first in `BACKUP_TEST_<STORE>_URL`, then for one of `programs`, each a
/// path, or a name in `PATH` and the usual system directories.
///
/// `None` means that the test is to be skipped; this was said on the standard error.
///
/// # Panics
///
/// When nothing is found and `BACKUP_TEST_REQUIRE` names the store, or `all`.
pub fn find_server(store: &str, programs: &[&str]) -> Option<Found> {
    let variable = format!("BACKUP_TEST_{}_URL", store.to_uppercase().replace('-', "_"));
    if let Some(url) = std::env::var(&variable).ok().filter(|url| !url.is_empty()) {
        return Some(Found::Url(url));
    }
    if let Some(program) = programs.iter().find_map(|program| find_program(program)) {
        return Some(Found::Binary(program));
    }
    let required = std::env::var(REQUIRE).unwrap_or_default();
    let message = format!("no {store} server: none of {programs:?} is installed and {variable} is not set");
    assert!(!is_required(&required, store), "{message}, but {REQUIRE} asks for it");
    skip(&message);
    None
}

/// Says on the standard error that a test, or a part of it, is skipped, and why.
///
/// It is written past the test harness, which would show what `eprintln!` prints only for tests that fail.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

fn is_required(list: &str, store: &str) -> bool {
    list.split(',').map(str::trim).any(|name| name == "all" || name.eq_ignore_ascii_case(store))
}

fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A port of the loopback interface that nobody listened on just now.
pub fn free_port() -> u16 {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a port of the loopback interface");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// How to start a server.
///
/// In arguments and values of the environment, `{port}` and `{dir}` stand for the port and the data directory.
#[derive(Debug)]
pub struct ServerCommand {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: TempDir,
    port: u16,
    patience: Duration,
}

impl ServerCommand {
    /// A server to start on a free port with an empty directory, which belongs to the user it will run as.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let dir =
            tempfile::Builder::new().prefix("backup-test-").tempdir().expect("make a temporary directory");
        if is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY))
                .expect("give the directory to nobody");
        }
        let program = program.into();
        Self {
            program,
            args: Vec::new(),
            env: Vec::new(),
            dir,
            port: free_port(),
            patience: Duration::from_secs(30),
        }
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Adds arguments.
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<OsString> = args.into_iter().map(|arg| self.fill_in(arg.as_ref())).collect();
        self.args.extend(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), self.fill_in(value)));
        self
    }

    /// Sets how long the server may take until it answers: 30 seconds unless set.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn fill_in(&self, text: &str) -> OsString {
        text.replace("{port}", &self.port.to_string())
            .replace("{dir}", &self.dir.path().to_string_lossy())
            .into()
    }

    /// A command that runs as the server's user in its directory, for tools that prepare it (`initdb`).
    pub fn tool(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY).env("HOME", self.dir.path());
        }
        command
    }

    /// Starts the server and waits until `ready` says so, asked every 50 ms.
    ///
    /// # Panics
    ///
    /// When the program cannot be started, ends, or is not ready in time; the end of its log is shown.
    pub async fn start(self, ready: impl AsyncFn(u16) -> bool) -> Server {
        let log = self.dir.path().join("server.log");
        let output = std::fs::File::create(&log).expect("create the server's log");
        let mut command = self.tool(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value))).process_group(0);
        command.stderr(output.try_clone().expect("share the log")).stdout(output);
        let child =
            command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", self.program.display()));
        let mut server = Server { child, port: self.port, dir: Some(self.dir) };
        let limit = Instant::now() + self.patience;
        loop {
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!(
                    "{} ended with {status} before it was ready:\n{}",
                    self.program.display(),
                    end_of(&log)
                );
            }
            if ready(server.port).await {
                return server;
            }
            assert!(Instant::now() < limit, "{} is not ready:\n{}", self.program.display(), end_of(&log));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A server that runs. Dropping it stops it, with everything it started, and removes its directory.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    dir: Option<TempDir>,
}

impl Server {
    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once (SIGKILL), as a power cut would. It does not come back.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// The end of what it printed.
    pub fn log(&self) -> String {
        end_of(&self.dir().join("server.log"))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only if the group has ended.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Once it was waited for, its number may belong to someone else.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            let limit = Instant::now() + GRACE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(10));
            }
            if matches!(self.child.try_wait(), Ok(None)) {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

fn end_of(log: &Path) -> String {
    let mut text = Vec::new();
    let _ = std::fs::File::open(log).and_then(|mut file| file.read_to_end(&mut text));
    String::from_utf8_lossy(text.get(text.len().saturating_sub(LOG_SHOWN)..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_required_by_name_or_with_all_others() {
        assert!(is_required("postgres, Redis", "redis") && is_required("all", "redis"));
        assert!(!is_required("", "redis") && !is_required("rediss", "redis"));
    }

    #[test]
    fn absence_is_a_skip() {
        assert_eq!(find_server("testkit-no-such-store", &["no-such-program-here"]), None);
        assert!(matches!(
            find_server("testkit-shell", &["no-such-program-here", "sh"]),
            Some(Found::Binary(_))
        ));
    }

    #[tokio::test]
    async fn a_server_runs_unprivileged_in_its_directory_and_ends_with_its_helpers() {
        let command = ServerCommand::new("/bin/sh")
            .args(["-c", "id -u > user; sleep 60 & echo $! > helper; echo port {port}; wait"]);
        let ready = command.dir().join("helper");
        let server = command
            .start(async |_| std::fs::read_to_string(&ready).is_ok_and(|text| text.ends_with('\n')))
            .await;
        let helper = std::fs::read_to_string(&ready).expect("the helper's id");
        assert_ne!(std::fs::read_to_string(server.dir().join("user")).expect("the user's id").trim(), "0");
        assert!(Path::new(&format!("/proc/{}", server.id())).exists());
        let (id, dir) = (server.id(), server.dir().to_owned());
        drop(server);
        assert!(!dir.exists() && !Path::new(&format!("/proc/{id}")).exists());
        let gone = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", helper.trim())).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z")
        });
        assert!(gone, "the helper lives on");
    }

    #[tokio::test]
    #[should_panic(expected = "out of luck")]
    async fn a_server_that_ends_early_shows_its_log() {
        ServerCommand::new("/bin/sh").args(["-c", "echo out of luck; exit 3"]).start(async |_| false).await;
    }
}
