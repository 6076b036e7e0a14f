//! Servers of the tests: found, started on a free port in a temporary directory, and stopped by process id.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup_testkit::{free_port, skip};

/// A store that tests may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    /// As `BACKUP_TEST_REQUIRE` names it.
    pub(crate) name: &'static str,
    variable: &'static str,
    program: Option<&'static str>,
}

pub(crate) const REDIS: Store =
    Store { name: "redis", variable: "BACKUP_TEST_REDIS_BIN", program: Some("redis-server") };
pub(crate) const REDIS6: Store = Store { name: "redis6", variable: "BACKUP_TEST_REDIS6_BIN", program: None };
pub(crate) const REDIS8: Store = Store { name: "redis8", variable: "BACKUP_TEST_REDIS8_BIN", program: None };
pub(crate) const VALKEY: Store =
    Store { name: "valkey", variable: "BACKUP_TEST_VALKEY_BIN", program: Some("valkey-server") };
pub(crate) const ALL: [Store; 4] = [REDIS6, REDIS, REDIS8, VALKEY];

impl Store {
    /// The server's program, or a visible skip. Fails when `BACKUP_TEST_REQUIRE` names the store.
    pub(crate) fn find(self) -> Option<PathBuf> {
        let found = program(self.variable, self.program);
        if found.is_none() {
            absent(self.name, self.variable);
        }
        found
    }
}

/// `redis-check-rdb` of Redis 8 (which reads all versions), or of 7.
pub(crate) fn check_rdb() -> Option<PathBuf> {
    program("BACKUP_TEST_REDIS8_CHECK_RDB", None)
        .or_else(|| program("BACKUP_TEST_REDIS_CHECK_RDB", Some("redis-check-rdb")))
        .or_else(|| {
            absent("redis-check-rdb", "BACKUP_TEST_REDIS8_CHECK_RDB");
            None
        })
}

fn program(variable: &str, name: Option<&str>) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let name = name?;
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn absent(name: &str, variable: &str) {
    let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').map(str::trim).any(|r| r == name || r == "all"),
        "{name} is required but was not found: run scripts/servers, or set {variable}"
    );
    skip(&format!("no {name} here: set {variable}, or run scripts/servers"));
}

/// How many times a torture test repeats: a tenth of the full count, and at least 20; all with `BACKUP_TORTURE`.
pub(crate) fn repetitions(full: usize) -> usize {
    if std::env::var_os("BACKUP_TORTURE").is_some() { full } else { (full / 10).max(20).min(full) }
}

/// A running server, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    password: Option<String>,
}

impl Server {
    /// Starts one. It does not save to its disk, and begins to send its snapshot at once.
    pub(crate) fn start(program: &Path, more: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), program, more)
    }

    pub(crate) fn start_in(dir: tempfile::TempDir, program: &Path, more: &[&str]) -> Self {
        Self::start_until(dir, program, more, false)
    }

    /// As `start_in`, without waiting until it has loaded the data that lies there.
    pub(crate) fn start_loading(dir: tempfile::TempDir, program: &Path, more: &[&str]) -> Self {
        Self::start_until(dir, program, more, true)
    }

    fn start_until(mut dir: tempfile::TempDir, program: &Path, more: &[&str], loading: bool) -> Self {
        for _ in 0..20 {
            let port = free_port();
            let mut arguments: Vec<String> = [
                "--save",
                "",
                "--appendonly",
                "no",
                "--repl-diskless-sync-delay",
                "0",
                "--bind",
                "127.0.0.1",
            ]
            .map(str::to_owned)
            .into();
            arguments.extend(more.iter().map(|&s| s.to_owned()));
            let password = more.iter().position(|&s| s == "--requirepass").map(|at| more[at + 1].to_owned());
            let mut server =
                Self { program: program.to_owned(), arguments, child: None, dir, port, password };
            if server.run(loading) {
                return server;
            }
            dir = server.into_dir();
        }
        panic!("{} does not start", program.display());
    }

    fn into_dir(mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"))
    }

    fn run(&mut self, loading: bool) -> bool {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log");
        let child = Command::new(&self.program)
            .args(["--port", &self.port.to_string(), "--dir"])
            .arg(self.dir.path())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the server's program runs");
        self.child = Some(child);
        let give_up = Instant::now() + Duration::from_secs(20);
        while Instant::now() < give_up {
            if let Some(mut client) = self.try_client()
                && (loading || !client.command(&["PING"]).is_error_of("LOADING"))
            {
                return true;
            }
            let ended = self.child.as_mut().expect("a child").try_wait().expect("wait");
            if ended.is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("a server does not answer: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on its port and directory.
    pub(crate) fn start_again(&mut self) {
        self.kill();
        assert!(self.run(false), "a server does not start again: {}", self.log());
    }

    pub(crate) fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    fn try_client(&self) -> Option<Client> {
        let mut client = Client::connect(self.port)?;
        if let Some(password) = &self.password {
            client.command(&["AUTH", password]);
        }
        Some(client)
    }

    pub(crate) fn client(&self) -> Client {
        // A server that has only just begun to listen may refuse the first try.
        for _ in 0..50 {
            if let Some(client) = self.try_client() {
                return client;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("no connection to the server at port {}", self.port);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Text(Vec<u8>),
    Error(String),
    Int(i64),
    Nil,
    Array(Vec<Answer>),
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Self::Int(n) => n.to_string(),
            other => panic!("not a text: {other:?}"),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone(),
            other => panic!("not a text: {other:?}"),
        }
    }

    pub(crate) fn int(&self) -> i64 {
        match self {
            Self::Int(n) => *n,
            other => panic!("not a number: {other:?}"),
        }
    }

    pub(crate) fn array(&self) -> &[Answer] {
        match self {
            Self::Array(items) => items,
            other => panic!("not an array: {other:?}"),
        }
    }

    pub(crate) fn is_error_of(&self, code: &str) -> bool {
        matches!(self, Self::Error(e) if e.starts_with(code))
    }
}

/// How long an answer is waited for: a busy machine takes minutes for the digest of millions of keys.
const PATIENCE: Duration = Duration::from_secs(600);

/// A small blocking client.
#[derive(Debug)]
pub(crate) struct Client {
    input: BufReader<TcpStream>,
    output: TcpStream,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Option<Self> {
        let output = TcpStream::connect(("127.0.0.1", port)).ok()?;
        output.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(Self { input: BufReader::new(output.try_clone().ok()?), output })
    }

    /// Sends a command and reads the answer; a lost connection is an error.
    pub(crate) fn command<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Answer {
        self.pipeline(&[arguments]).pop().expect("an answer")
    }

    /// As `command`, but an error is the test's failure.
    pub(crate) fn ok<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Answer {
        let answer = self.command(arguments);
        if let Answer::Error(e) = &answer {
            panic!("{}: {e}", String::from_utf8_lossy(arguments[0].as_ref()));
        }
        answer
    }

    pub(crate) fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[&[A]]) -> Vec<Answer> {
        let mut out = Vec::new();
        for command in commands {
            out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for argument in *command {
                let argument = argument.as_ref();
                out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                out.extend_from_slice(argument);
                out.extend_from_slice(b"\r\n");
            }
        }
        if self.output.write_all(&out).is_err() {
            return vec![Answer::Error("CLOSED".to_owned())];
        }
        commands.iter().map(|_| self.answer()).collect()
    }

    fn answer(&mut self) -> Answer {
        let mut line = String::new();
        if !self.input.read_line(&mut line).is_ok_and(|n| n > 0) {
            return Answer::Error("CLOSED".to_owned());
        }
        let (sign, rest) = line.trim_end().split_at(1);
        match sign {
            "+" => Answer::Text(rest.as_bytes().to_vec()),
            "-" => Answer::Error(rest.to_owned()),
            ":" => Answer::Int(rest.parse().expect("a number")),
            "$" | "*" if rest == "-1" => Answer::Nil,
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().expect("a length") + 2];
                self.input.read_exact(&mut text).expect("a text");
                text.truncate(text.len() - 2);
                Answer::Text(text)
            }
            "*" => {
                Answer::Array((0..rest.parse::<usize>().expect("a count")).map(|_| self.answer()).collect())
            }
            _ => panic!("an answer that cannot be read: {line}"),
        }
    }
}
