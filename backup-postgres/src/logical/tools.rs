//! PostgreSQL's own programs: finding the right one, running it, and believing its exit status only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use backup_core::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::config::PgConfig;

/// How many bytes of a program's error output are kept: its last ones.
const KEPT_STDERR: usize = 64 * 1024;
/// How many bytes are read from a program at a time.
const CHUNK: usize = 256 * 1024;

/// Where PostgreSQL's programs are and how they reach the server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// A directory, or the program itself.
    pub(crate) path: Option<PathBuf>,
    /// Words before the program: `docker exec -i db`.
    pub(crate) prefix: Vec<String>,
    /// How the programs reach the server, where that is not how this process does.
    pub(crate) reach: Option<PgConfig>,
}

/// A program that was found.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    argv: Vec<String>,
    /// Through a prefix the environment does not get there by itself.
    by_prefix: bool,
    reach: Option<PgConfig>,
    pub(crate) major: u32,
    pub(crate) version: String,
}

impl Tools {
    /// The newest `program` whose major version is at least `major`.
    pub(crate) async fn find(&self, program: &str, major: u32) -> Result<Tool> {
        let candidates = self.candidates(program);
        let mut seen = BTreeMap::new();
        for argv in candidates {
            if let Some((found, version)) = version_of(&argv).await {
                seen.entry(found).or_insert((argv, version));
            }
        }
        let Some((&newest, (argv, version))) = seen.iter().next_back() else {
            return Err(Error::new(ErrorKind::NotFound, "find PostgreSQL client")
                .message("the program was not found; install PostgreSQL's client programs, or name its path")
                .with("program", program));
        };
        if newest < major {
            return Err(Error::new(ErrorKind::Unsupported, "find PostgreSQL client")
                .message(
                    "the server is newer than every client program found, and a program refuses servers newer than \
                     itself; install client programs of the server's major version or later",
                )
                .with("program", program)
                .with("server", major)
                .with("newest", version));
        }
        Ok(Tool {
            argv: argv.clone(),
            by_prefix: !self.prefix.is_empty(),
            reach: self.reach.clone(),
            major: newest,
            version: version.clone(),
        })
    }

    fn candidates(&self, program: &str) -> Vec<Vec<String>> {
        if !self.prefix.is_empty() {
            let named = self.path.as_deref().map_or(program.to_owned(), |p| sibling(p, program));
            return vec![self.prefix.iter().cloned().chain([named]).collect()];
        }
        if let Some(path) = &self.path {
            let named =
                if path.is_dir() { path.join(program) } else { PathBuf::from(sibling(path, program)) };
            return vec![vec![named.display().to_string()]];
        }
        let mut directories: Vec<PathBuf> =
            std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
        // Where distributions keep each major version apart.
        for (parent, inner) in [
            ("/usr/lib/postgresql", "bin"),
            ("/usr/local/opt", "bin"),
            ("/opt/homebrew/opt", "bin"),
            ("/Library/PostgreSQL", "bin"),
        ] {
            let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
            directories.extend(entries.map(|e| e.path().join(inner)));
        }
        let versioned = std::fs::read_dir("/usr").into_iter().flatten().flatten();
        directories.extend(
            versioned
                .filter(|e| e.file_name().to_string_lossy().starts_with("pgsql-"))
                .map(|e| e.path().join("bin")),
        );
        directories.push("/usr/local/pgsql/bin".into());
        let programs = directories.into_iter().map(|d| d.join(program)).filter(|p| p.is_file());
        programs.map(|p| vec![p.display().to_string()]).collect()
    }
}

/// The path of `program` beside a path that may name another of PostgreSQL's programs.
fn sibling(path: &Path, program: &str) -> String {
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if name.to_string_lossy().starts_with("pg_") => {
            parent.join(program).display().to_string()
        }
        _ => path.join(program).display().to_string(),
    }
}

async fn version_of(argv: &[String]) -> Option<(u32, String)> {
    let (first, rest) = argv.split_first()?;
    let output = Command::new(first)
        .args(rest)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // "pg_dump (PostgreSQL) 15.18 (Debian …)", "pg_dump (PostgreSQL) 19devel"
    let number = text.split(") ").nth(1)?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    output.status.success().then_some((digits.parse().ok()?, text))
}

impl Tool {
    /// Starts the program against a database. Names, secrets and settings go by the environment; through a prefix,
    /// all but the password are set by `env` on the other side.
    pub(crate) fn start(&self, config: &PgConfig, arguments: &[String], feeds: bool) -> Result<Running> {
        let reach = match &self.reach {
            Some(reach) => reach.with_database(config.database()),
            None => config.clone(),
        };
        let (mut variables, password) = reach.environment();
        variables.push(("PGTZ", "UTC".to_owned()));
        variables.push(("PGAPPNAME", "backup-postgres".to_owned()));
        let mut argv = self.argv.clone();
        if self.by_prefix {
            let program = argv.pop().unwrap_or_default();
            argv.push("env".to_owned());
            argv.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
            argv.push(program);
        }
        let Some((first, rest)) = argv.split_first() else {
            return Err(Error::new(ErrorKind::Internal, "start PostgreSQL client"));
        };
        let mut command = Command::new(first);
        command.args(rest).args(arguments);
        // What this process has for its own use must not lead the program elsewhere.
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("PG")
                && name_text != "PGPASSFILE"
                && !(password.is_none() && name_text == "PGPASSWORD")
            {
                command.env_remove(&name);
            }
        }
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        command.env("LC_MESSAGES", "C");
        if let Some(password) = password {
            command.env("PGPASSWORD", password);
        }
        command
            .stdin(if feeds { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|e| Error::io("start PostgreSQL client", e).with("program", first))?;
        let missing =
            || Error::new(ErrorKind::Internal, "start PostgreSQL client").message("a pipe is missing");
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let stdin = child.stdin.take();
        let name = Path::new(self.argv.last().map_or("", String::as_str))
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Running { child, stdin, stdout, stderr: tokio::spawn(last_bytes(stderr)), name })
    }
}

/// A program at work. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: JoinHandle<Vec<u8>>,
    name: String,
}

impl Running {
    /// The next bytes of its output, empty at the end.
    pub(crate) async fn read(&mut self) -> Result<Bytes> {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        while buffer.len() < CHUNK / 2 {
            let n = self
                .stdout
                .read_buf(&mut buffer)
                .await
                .map_err(|e| Error::io("read from PostgreSQL client", e).with("program", &self.name))?;
            if n == 0 {
                break;
            }
        }
        Ok(buffer.freeze())
    }

    /// Waits for the end and returns what it said on standard error. Any status but success is an error.
    pub(crate) async fn finish(mut self) -> Result<Vec<String>> {
        drop(self.stdin.take());
        let status = self
            .child
            .wait()
            .await
            .map_err(|e| Error::io("wait for PostgreSQL client", e).with("program", &self.name))?;
        let said = self.stderr.await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        if !status.success() {
            return Err(Error::new(ErrorKind::SourceFailed, "run PostgreSQL client")
                .message(if said.is_empty() { "the program failed without a word".to_owned() } else { said })
                .with("program", &self.name)
                .with("status", status));
        }
        Ok(said.lines().map(ToOwned::to_owned).collect())
    }
}

async fn last_bytes(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..n).unwrap_or(&[]));
        if kept.len() > KEPT_STDERR {
            kept.drain(..kept.len() - KEPT_STDERR);
        }
    }
    kept
}
