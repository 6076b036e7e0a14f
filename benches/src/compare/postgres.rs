//! A generated PostgreSQL database, beside `pg_dump | openssl` and `pg_dump -Fd -j2`, and back.
//!
//! The programs are those of `BACKUP_TEST_PG17_BIN` (zstd in `pg_dump` needs 16 or later and a build with it), or those
//! Debian has for 15. The server syncs as it does in production, and both sides restore into it; only vacuuming in the
//! background is off. `--size` is megabytes of rows as text; the size of the database is printed. `--chain gzip6` or `--chain zstd3`
//! runs the pairs of that chain only.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backup_benches::measure::{Cost, median, pipeline, quote};
use backup_benches::tables;
use backup_core::{AesGcm, Gzip, Keyring, Repository, Zstd};
use backup_fs::LocalSink;
use backup_postgres::{DumpFormat, PgDump, PgRestore};

use super::fs::size_below;
use super::{Fallible, Options, Pair};

const SET: &str = "compare/postgres";
/// The user the server runs as where this program runs as root, which PostgreSQL refuses.
const NOBODY: &str = "65534";

/// A server that ends with this value.
struct Server {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
    root: bool,
}

impl Server {
    fn start(place: &Path) -> Fallible<Self> {
        let bin = std::env::var_os("BACKUP_TEST_PG17_BIN")
            .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
        let root = Command::new("id").arg("-u").output()?.stdout.starts_with(b"0\n");
        let home = place.join("server");
        fs::create_dir(&home)?;
        if root {
            run(Command::new("chown").arg(NOBODY).arg(&home))?;
            run(Command::new("chmod").arg("755").arg(place))?;
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let server = Self { bin, data: home.join("data"), port, root };
        run(server
            .program("initdb")
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&server.data))?;
        let options = format!(
            "-p {port} -k '' -c listen_addresses=127.0.0.1 -c shared_buffers=512MB -c max_wal_size=8GB -c autovacuum=off"
        );
        run(server
            .program("pg_ctl")
            .args(["-w", "-t", "60", "-o", &options, "-l"])
            .arg(home.join("log"))
            .arg("-D")
            .arg(&server.data)
            .arg("start"))?;
        Ok(server)
    }

    /// One of the server's own programs, as the user it runs as.
    fn program(&self, name: &str) -> Command {
        let mut command = if self.root { Command::new("setpriv") } else { Command::new(self.bin.join(name)) };
        if self.root {
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(self.bin.join(name));
        }
        command.current_dir(self.data.parent().unwrap_or(&self.data)).stdout(Stdio::null());
        command
    }

    /// A client program for the shell, with its connection set up.
    fn client(&self, name: &str, arguments: &str) -> String {
        let program = quote(self.bin.join(name));
        format!("env PGHOST=127.0.0.1 PGPORT={} PGUSER=postgres {program} {arguments}", self.port)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Runs a script through psql and returns what it prints.
    fn sql(&self, database: &str, sql: &str) -> Fallible<String> {
        self.fed(database, |mut input| Ok(input.write_all(sql.as_bytes())?))
    }

    fn fed(
        &self,
        database: &str,
        feed: impl FnOnce(std::process::ChildStdin) -> Fallible<()>,
    ) -> Fallible<String> {
        let mut child = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        feed(child.stdin.take().ok_or("psql has no input")?)?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err("psql failed".into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Nothing of what ran before is left to be written while the next one is timed.
    fn settle(&self, place: &Path) -> Fallible<()> {
        self.sql("postgres", "CHECKPOINT")?;
        pipeline(place, &["sync".to_owned()])?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.program("pg_ctl").arg("-D").arg(&self.data).args(["-m", "immediate", "stop"]).status();
    }
}

fn run(command: &mut Command) -> Fallible<()> {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
    if output.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
}

pub(crate) fn run_all(options: &Options) -> Fallible<Vec<Pair>> {
    let place = tempfile::tempdir()?;
    let server = Server::start(place.path())?;
    server.sql("postgres", "CREATE DATABASE library")?;
    server.sql("library", tables::TABLES)?;
    server.fed("library", |input| {
        let mut out = BufWriter::with_capacity(1 << 20, input);
        tables::rows(&mut out, options.size << 20)?;
        Ok(out.flush()?)
    })?;
    server.sql("library", tables::INDEXES)?;
    let size = server.sql("library", "SELECT pg_size_pretty(pg_database_size('library'))")?;
    println!("made a database of {}", size.trim());
    fs::write(place.path().join("password"), "a password of some length\n")?;
    let key = place.path().join("key");
    fs::write(&key, [7; 32])?;
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;

    let expected = server.sql("library", tables::FINGERPRINT)?;
    let mut bench =
        Bench { place: place.path(), server: &server, options, expected, chain: "gzip6+aes", level: "6" };
    let wanted = |chain: &str| options.chain.as_ref().is_none_or(|c| chain.starts_with(c));
    let mut pairs = Vec::new();
    if wanted(bench.chain) {
        pairs.extend(bench.run()?);
    }
    (bench.chain, bench.level) = ("zstd3+aes", "zstd:3");
    let zstd = format!("--compress=zstd:3 -s -d {} > /dev/null", quote(server.url("postgres")));
    if pipeline(place.path(), &[server.client("pg_dump", &zstd)]).is_err() {
        println!("this pg_dump cannot compress with zstd");
    } else if wanted(bench.chain) {
        pairs.extend(bench.run()?);
    }
    Ok(pairs)
}

struct Bench<'a> {
    place: &'a Path,
    server: &'a Server,
    options: &'a Options,
    /// What every restored database must show.
    expected: String,
    chain: &'static str,
    /// The rivals' `--compress`.
    level: &'static str,
}

impl Bench<'_> {
    fn run(&self) -> Fallible<Vec<Pair>> {
        let (mut ours, mut custom, mut directory) = (Sides::default(), Sides::default(), Sides::default());
        for _ in 0..self.options.runs {
            let repository = self.place.join("repository");
            ours.backup.push(self.worker("backup", &repository)?);
            ours.size = size_below(&repository)?;
            let archive = self.place.join("archive");
            custom.backup.push(self.pack(&archive)?);
            custom.size = fs::metadata(&archive)?.len();
            let files = self.place.join("files");
            directory.backup.push(self.pack_directory(&files)?);
            directory.size = size_below(&files)?;

            ours.restore.push(self.restored("ours", || self.worker("restore", &repository))?);
            custom.restore.push(self.restored("custom", || self.unpack(&archive))?);
            directory.restore.push(self.restored("directory", || self.unpack_directory(&files))?);
            fs::remove_dir_all(&repository)?;
            fs::remove_dir_all(&files)?;
            fs::remove_file(&archive)?;
        }
        let mut pairs = Vec::new();
        for (name, rival) in [("pg_dump -Fc·openssl", &custom), ("pg_dump -Fd -j2", &directory)] {
            for verb in ["backup", "restore"] {
                let of = |side: &Sides| {
                    median(if verb == "backup" { side.backup.clone() } else { side.restore.clone() })
                };
                let pair = Pair {
                    store: "postgres",
                    verb,
                    ours: self.chain.to_owned(),
                    rival: name.to_owned(),
                    cost: of(&ours).ok_or("no run")?,
                    rival_cost: of(rival).ok_or("no run")?,
                    size: ours.size,
                    rival_size: rival.size,
                };
                pair.print();
                pairs.push(pair);
            }
        }
        Ok(pairs)
    }

    /// Times a restore into a database of that name, compares what it made, and drops it.
    fn restored(&self, name: &str, restore: impl FnOnce() -> Fallible<Cost>) -> Fallible<Cost> {
        self.server.settle(self.place)?;
        let cost = restore()?;
        if self.server.sql(name, tables::FINGERPRINT)? != self.expected {
            return Err(format!("the database {name} is not what was backed up").into());
        }
        self.server.sql("postgres", &format!("DROP DATABASE {name}"))?;
        Ok(cost)
    }

    /// Runs this program again as a process of its own, so that it is measured as the rivals are.
    fn worker(&self, verb: &str, repository: &Path) -> Fallible<Cost> {
        let program = quote(std::env::current_exe()?);
        let database = if verb == "backup" { "library" } else { "postgres" };
        let words = [
            self.place.join("key"),
            repository.into(),
            self.server.url(database).into(),
            self.server.bin.clone(),
        ];
        let words: Vec<_> = words.iter().map(quote).collect();
        self.server.settle(self.place)?;
        pipeline(
            self.place,
            &[format!("{program} --postgres-worker {verb} {} {}", self.chain, words.join(" "))],
        )
    }

    fn password(&self) -> String {
        format!("-aes-256-cbc -pbkdf2 -pass file:{}", quote(self.place.join("password")))
    }

    fn pack(&self, archive: &Path) -> Fallible<Cost> {
        self.server.settle(self.place)?;
        let stages = [
            self.server.client("pg_dump", &format!("-Fc --compress={} library", self.level)),
            format!("openssl enc {}", self.password()),
            format!("dd of={} bs=1M iflag=fullblock conv=fsync status=none", quote(archive)),
        ];
        pipeline(self.place, &stages)
    }

    fn unpack(&self, archive: &Path) -> Fallible<Cost> {
        let stages = [
            format!("openssl enc -d {} < {}", self.password(), quote(archive)),
            self.server.client("pg_restore", "--exit-on-error -d custom"),
        ];
        self.to_new_database("custom", &stages)
    }

    /// `pg_dump` syncs its files itself.
    fn pack_directory(&self, files: &Path) -> Fallible<Cost> {
        self.server.settle(self.place)?;
        let arguments = format!("-Fd -j2 --compress={} -f {} library", self.level, quote(files));
        pipeline(self.place, &[self.server.client("pg_dump", &arguments)])
    }

    fn unpack_directory(&self, files: &Path) -> Fallible<Cost> {
        let arguments = format!("--exit-on-error -j2 -d directory {}", quote(files));
        self.to_new_database("directory", &[self.server.client("pg_restore", &arguments)])
    }

    fn to_new_database(&self, database: &str, stages: &[String]) -> Fallible<Cost> {
        let create = format!("-c 'CREATE DATABASE {database} TEMPLATE template0' -d postgres");
        let created = pipeline(self.place, &[self.server.client("psql", &create)])?;
        let mut cost = pipeline(self.place, stages)?;
        cost.wall += created.wall;
        cost.cpu += created.cpu;
        Ok(cost)
    }
}

#[derive(Default)]
struct Sides {
    backup: Vec<Cost>,
    restore: Vec<Cost>,
    size: u64,
}

/// `--postgres-worker <backup|restore> <chain> <key> <repository> <url> <programs>`, or `--postgres-worker rows <MiB>` to
/// print the script that fills a database, for profiling one side by hand.
pub(crate) fn worker(words: &[String]) -> Fallible<()> {
    if let [verb, size] = words
        && verb == "rows"
    {
        let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout());
        out.write_all(tables::TABLES.as_bytes())?;
        tables::rows(&mut out, size.parse::<u64>()? << 20)?;
        out.write_all(tables::INDEXES.as_bytes())?;
        return Ok(out.flush()?);
    }
    let [verb, chain, key, repository, url, programs] = words else {
        return Err("a worker takes six words".into());
    };
    let sink = if verb == "backup" { LocalSink::init(repository)? } else { LocalSink::open(repository)? };
    let builder = Repository::builder().sink(sink);
    let builder = match chain.as_str() {
        "gzip6+aes" => builder.transform(Gzip::default()),
        _ => builder.transform(Zstd::default()),
    };
    let repository = builder.transform(AesGcm::new(Keyring::from_key_file(PathBuf::from(key))?)).build()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        if verb == "backup" {
            let source = PgDump::connect(url)?.format(DumpFormat::Parallel).pg_dump(programs);
            repository.backup(SET, &source).await?;
        } else {
            repository
                .restore(SET)
                .latest()
                .into(&PgRestore::database(url, "ours")?.pg_restore(programs))
                .await?;
        }
        Ok(())
    })
}
