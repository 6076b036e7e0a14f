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
    pub bin: PathBuf,
    pub port: u16,
    dir: tempfile::TempDir,
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"))
}

/// Gives a file or directory to the user servers run as.
pub(crate) fn give_to_server(path: &Path) {
    if is_root() {
        checked(Command::new("chown").arg(NOBODY).arg(path), "chown");
    }
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
            !required.split(',').any(|r| r.trim() == name || r.trim() == "all"),
            "{name} is required and absent: run scripts/servers.d/postgres"
        );
        backup_testkit::skip(&format!("no PostgreSQL {major}; scripts/servers installs it"));
    }
    found
}

/// Every version there is, of those that the test wants.
pub(crate) fn versions(wanted: &[u32]) -> Vec<u32> {
    let found: Vec<u32> = wanted.iter().copied().filter(|m| programs(*m).is_some()).collect();
    let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !found.is_empty() || !required.split(',').any(|r| ["postgres", "all"].contains(&r.trim())),
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
        give_to_server(dir.path());
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
                return Self { bin, port, dir };
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
}

impl Server {
    /// Starts it again after it was killed, with the settings it had.
    pub(crate) fn start_again(&self) {
        let started = unprivileged(&self.bin.join("pg_ctl"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-l")
            .arg(self.dir.path().join("log"))
            .args(["-w", "-t", "60", "restart"])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(
            started.success(),
            "{}",
            std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
        );
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

/// A pgbouncer, from `BACKUP_TEST_PGBOUNCER_BIN` or the system.
pub(crate) fn pgbouncer() -> Option<PathBuf> {
    let named = std::env::var_os("BACKUP_TEST_PGBOUNCER_BIN").map(PathBuf::from);
    let found = named.into_iter().chain([PathBuf::from("/usr/sbin/pgbouncer")]).find(|p| p.is_file());
    if found.is_none() {
        let required = std::env::var("BACKUP_TEST_REQUIRE").unwrap_or_default();
        let asked = required.split(',').any(|r| ["pgbouncer", "all"].contains(&r.trim()));
        assert!(!asked, "pgbouncer is required and absent: run scripts/servers");
        backup_testkit::skip("no pgbouncer; scripts/servers installs it");
    }
    found
}

/// A pool of connections to a server.
pub(crate) struct Pool {
    child: std::process::Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Pool {
    /// Starts a pool in a mode of pgbouncer.
    pub(crate) fn start(program: &Path, server: &Server, mode: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        give_to_server(dir.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = any\npool_mode = {mode}\nunix_socket_dir =\nlogfile = {}\nignore_startup_parameters = extra_float_digits\n",
            server.port,
            dir.path().join("log").display()
        );
        let file = dir.path().join("pgbouncer.ini");
        std::fs::write(&file, ini).unwrap();
        let child = unprivileged(program).arg(&file).stderr(Stdio::null()).spawn().unwrap();
        let pool = Self { child, port, _dir: dir };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return pool;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("pgbouncer does not answer");
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
