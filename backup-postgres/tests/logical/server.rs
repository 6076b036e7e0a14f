//! PostgreSQL servers of the tests' own: a data directory in a temporary directory, a free port, stopped by its pid.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use backup_postgres::PgConfig;

/// The user servers run as when the tests run as root: PostgreSQL refuses root.
const NOBODY: &str = "65534";

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub major: u32,
    pub bin: PathBuf,
    pub port: u16,
    dir: tempfile::TempDir,
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"))
}

/// Runs a program as a user PostgreSQL accepts.
fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program);
    command
}

fn checked(command: &mut Command, what: &str) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{what} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The programs of a major version: `BACKUP_TEST_PG<major>_BIN`, or where Debian has them. Skips visibly where there
/// are none, and fails where `BACKUP_TEST_REQUIRE` names `postgres<major>` (or `postgres`, for any version).
fn programs(major: u32) -> Option<PathBuf> {
    let named = std::env::var_os(format!("BACKUP_TEST_PG{major}_BIN")).map(PathBuf::from);
    let found = named.into_iter().chain([PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))]);
    let found = found.into_iter().find(|dir| dir.join("initdb").is_file());
    if found.is_none() {
        let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
        let name = format!("postgres{major}");
        assert!(
            !required.split(',').any(|r| r.trim() == name),
            "{name} is required and absent: run scripts/servers.d/postgres"
        );
        eprintln!(
            "SKIPPED: no PostgreSQL {major}; run scripts/servers.d/postgres and set BACKUP_TEST_PG{major}_BIN"
        );
    }
    found
}

/// Every version there is, of those that the test wants.
pub(crate) fn versions(wanted: &[u32]) -> Vec<u32> {
    let found: Vec<u32> = wanted.iter().copied().filter(|m| programs(*m).is_some()).collect();
    let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !found.is_empty() || !required.split(',').any(|r| r.trim() == "postgres"),
        "a PostgreSQL server is required and absent: run scripts/servers.d/postgres"
    );
    found
}

impl Server {
    /// Starts a server of this major version.
    pub(crate) fn start(major: u32) -> Self {
        Self::start_with(major, &[])
    }

    /// Starts a server with further settings (`name=value`).
    pub(crate) fn start_with(major: u32, settings: &[&str]) -> Self {
        let bin = programs(major).expect("asked for by `versions`");
        let dir = tempfile::tempdir().unwrap();
        if is_root() {
            checked(Command::new("chown").arg(NOBODY).arg(dir.path()), "chown");
        }
        let data = dir.path().join("data");
        checked(
            unprivileged(&bin.join("initdb"))
                .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
                .arg(&data)
                .current_dir(dir.path()),
            "initdb",
        );
        for attempt in 0.. {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut options = format!(
                "-p {port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off -c synchronous_commit=off -c max_connections=60"
            );
            for setting in settings {
                options.push_str(&format!(" -c {setting}"));
            }
            let started = unprivileged(&bin.join("pg_ctl"))
                .arg("-D")
                .arg(&data)
                .arg("-l")
                .arg(dir.path().join("log"))
                .args(["-o", &options, "-w", "-t", "60", "start"])
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            if started.success() {
                return Self { major, bin, port, dir };
            }
            // Another process may have taken the port in between.
            assert!(attempt < 3, "{}", std::fs::read_to_string(dir.path().join("log")).unwrap_or_default());
        }
        unreachable!("the loop returns or fails")
    }

    pub(crate) fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    pub(crate) fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    #[allow(dead_code)]
    pub(crate) fn config(&self, database: &str) -> PgConfig {
        PgConfig::parse(&self.url(database)).unwrap()
    }

    fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", database);
        command
    }

    /// Runs SQL through psql and returns its unaligned output.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql);
        assert!(output.status.success(), "{}\n{sql}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs SQL that may fail.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> Output {
        use std::io::Write as _;
        let mut child = self
            .client("psql", database)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let text = sql.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        output
    }

    /// A plain dump by the server's own `pg_dump`, without what differs from run to run.
    pub(crate) fn plain_dump(&self, database: &str) -> String {
        let output = checked(self.client("pg_dump", database).arg("--no-sync"), "pg_dump");
        let text = String::from_utf8(output.stdout).unwrap();
        let kept = text.lines().filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"));
        kept.collect::<Vec<_>>().join("\n")
    }

    /// One of PostgreSQL's programs, with its connection set up.
    pub(crate) fn run(&self, program: &str, database: &str) -> Command {
        self.client(program, database)
    }

    /// Kills the server's main process as a crash would.
    #[allow(dead_code)]
    pub(crate) fn kill(&self) {
        checked(
            unprivileged(&self.bin.join("pg_ctl"))
                .arg("-D")
                .arg(self.dir.path().join("data"))
                .args(["-m", "immediate", "-w", "stop"])
                .current_dir(self.dir.path()),
            "stop",
        );
    }

    #[allow(dead_code)]
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = unprivileged(&self.bin.join("pg_ctl"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-m", "immediate", "stop"])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
