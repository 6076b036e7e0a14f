//! A Redis server, beside `redis-cli --rdb` and `redis-cli --pipe`.
//!
//! Servers and `redis-cli` are found through `BACKUP_TEST_REDIS_BIN` and `BACKUP_TEST_REDIS_CLI`, or in `PATH`. The
//! rival's backup is redis-cli's RDB, synced; ours is parsed, checked, hashed and proved besides. The rival's restore
//! is the commands that make the same data; ours stages, proves by reading all of it back, and swaps in. The line
//! "load alone" is the part of that same run before the proof, which is what the rival does.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_benches::measure::{Cost, median, pipeline, quote};
use backup_core::{Event, Repository};
use backup_fs::LocalSink;
use backup_redis::{RedisRdb, RedisRestore};

use super::{Fallible, Options, Pair};

const SET: &str = "compare/redis";

pub(crate) fn run(options: &Options) -> Fallible<Vec<Pair>> {
    super::rdb::run(options.size << 20)?;
    let place = tempfile::tempdir()?;
    let cli = program("BACKUP_TEST_REDIS_CLI", "redis-cli");
    let commands = place.path().join("commands");
    println!("making commands for some {} MiB", options.size);
    make(&commands, options.size << 20)?;
    let source = Server::start(place.path())?;
    pipeline(place.path(), &[load(&cli, source.port, &commands)])?;
    let content = source.digest(&cli)?;

    let (mut ours, mut theirs, mut ours_back, mut theirs_back) = (vec![], vec![], vec![], vec![]);
    let mut loads = vec![];
    let (mut size, mut rival_size) = (0, 0);
    for _ in 0..options.runs {
        let repository = place.path().join("repository");
        ours.push(work(place.path(), "backup", source.port, &repository)?);
        let dump = place.path().join("dump.rdb");
        let taking = format!("{} -p {} --rdb {}", quote(&cli), source.port, quote(&dump));
        let mut cost = pipeline(place.path(), &[taking])?;
        cost.wall += pipeline(place.path(), &[format!("sync {}", quote(&dump))])?.wall;
        theirs.push(cost);
        (size, rival_size) = (size_below(&repository)?, fs::metadata(&dump)?.len());

        let target = Server::start(place.path())?;
        let cost = work(place.path(), "restore", target.port, &repository)?;
        loads.push((cost.wall, fs::read_to_string(load_time(&repository))?.parse::<f64>()?));
        ours_back.push(cost);
        let restored = target.digest(&cli)?;
        drop(target);
        let target = Server::start(place.path())?;
        theirs_back.push(pipeline(place.path(), &[load(&cli, target.port, &commands)])?);
        if restored != content || target.digest(&cli)? != content {
            return Err("what was restored is not what was backed up".into());
        }
        fs::remove_dir_all(&repository)?;
        pipeline(place.path(), &["sync".to_owned()])?;
    }
    let pair = |verb, rival, ours, theirs| -> Fallible<Pair> {
        let pair = Pair {
            store: "redis",
            verb,
            ours: "rdb".to_owned(),
            rival,
            cost: median(ours).ok_or("no run")?,
            rival_cost: median(theirs).ok_or("no run")?,
            size,
            rival_size,
        };
        pair.print();
        Ok(pair)
    };
    let pairs = vec![
        pair("backup", "redis-cli --rdb".to_owned(), ours, theirs)?,
        pair("restore", "redis-cli --pipe".to_owned(), ours_back, theirs_back)?,
    ];
    loads.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let (Some((whole, load)), Some(restore)) = (loads.get(loads.len() / 2), pairs.get(1)) {
        println!(
            "  of that restore, load alone {load:.2} s: {:.2}x of redis-cli --pipe; read back and proved {:.2} s",
            restore.rival_cost.wall / load,
            whole - load
        );
    }
    Ok(pairs)
}

fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(name), PathBuf::from)
}

fn load(cli: &Path, port: u16, commands: &Path) -> String {
    format!(
        "{} -p {port} --pipe < {} > {}",
        quote(cli),
        quote(commands),
        quote(commands.with_extension("log"))
    )
}

/// Runs this program again as a process of its own, so that it is measured as the rival is.
fn work(place: &Path, verb: &str, port: u16, repository: &Path) -> Fallible<Cost> {
    let program = quote(std::env::current_exe()?);
    pipeline(place, &[format!("{program} --redis-worker {verb} {port} {}", quote(repository))])
}

/// Where a restoring worker leaves the seconds that passed until everything was loaded and not yet proved.
fn load_time(repository: &Path) -> PathBuf {
    repository.with_extension("load")
}

/// A server that keeps nothing on its disk.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(place: &Path) -> Fallible<Self> {
        let dir = tempfile::tempdir_in(place)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(program("BACKUP_TEST_REDIS_BIN", "redis-server"))
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--repl-diskless-sync-delay", "0", "--enable-debug-command", "local", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()?;
        let server = Self { child, port, _dir: dir };
        let give_up = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > give_up {
                return Err("a server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// The server's own digest of all it holds.
    fn digest(&self, cli: &Path) -> Fallible<String> {
        let output = Command::new(cli).args(["-p", &self.port.to_string(), "debug", "digest"]).output()?;
        let digest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if digest.len() == 40 && digest.bytes().any(|b| b != b'0') {
            Ok(digest)
        } else {
            Err(format!("the server tells no digest of its content: {digest}").into())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is lost when it cannot be ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers that are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Text that hardly compresses, as base64.
    fn text(&mut self, length: usize) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::with_capacity(length + 10);
        while text.len() < length {
            let mut bits = self.next();
            for _ in 0..10 {
                text.push(char::from(LETTERS[usize::try_from(bits & 63).unwrap_or(0)]));
                bits >>= 6;
            }
        }
        text.truncate(length);
        text
    }
}

/// Writes commands whose data are `size` bytes: sessions, documents, counters, hashes, lists, sets, leader boards.
fn make(path: &Path, size: u64) -> Fallible<()> {
    let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let (mut written, mut n) = (0, 0u64);
    while written < size {
        n += 1;
        let (command, name, elements) = match n % 20 {
            0..8 => ("SET", "session", 0),
            8..12 => ("SET", "document", 0),
            12..15 => ("SET", "counter", 0),
            15 | 16 => ("HSET", "user", 12),
            17 => ("RPUSH", "queue", 40),
            18 => ("SADD", "tags", 30),
            _ => ("ZADD", "board", 50),
        };
        let mut words = vec![command.to_owned(), format!("{name}:{n}")];
        match name {
            "session" => words.push(numbers.text(120)),
            "document" => words.push(numbers.text(2000)),
            "counter" => words.push((numbers.next() % 100_000).to_string()),
            _ => {}
        }
        for field in 0..elements {
            match command {
                "HSET" => words.extend([format!("field{field}"), numbers.text(20)]),
                "ZADD" => words.extend([(numbers.next() % 1_000_000).to_string(), numbers.text(16)]),
                _ => words.push(numbers.text(24)),
            }
        }
        write!(out, "*{}\r\n", words.len())?;
        for word in &words {
            write!(out, "${}\r\n{word}\r\n", word.len())?;
        }
        written += words.iter().map(|w| w.len() as u64).sum::<u64>();
    }
    out.flush()?;
    Ok(())
}

fn size_below(root: &Path) -> Fallible<u64> {
    let mut size = 0;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += if metadata.is_dir() { size_below(&entry.path())? } else { metadata.len() };
    }
    Ok(size)
}

/// `--redis-worker <backup|restore> <port> <repository>`, or `--redis-worker commands <file> <MiB>` to make only the
/// commands, for profiling one side by hand.
pub(crate) fn worker(words: &[String]) -> Fallible<()> {
    if let [verb, file, size] = words
        && verb == "commands"
    {
        return make(Path::new(file), size.parse::<u64>()? << 20);
    }
    let start = Instant::now();
    let [verb, port, repository] = words else { return Err("a worker takes three words".into()) };
    let loaded = load_time(Path::new(repository));
    let url = format!("redis://127.0.0.1:{port}");
    let sink = if verb == "backup" { LocalSink::init(repository)? } else { LocalSink::open(repository)? };
    let repository = Repository::builder().sink(sink).build()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        if verb == "backup" {
            repository.backup(SET, &RedisRdb::connect(&url)?).await?;
        } else {
            let seconds = Arc::new(Mutex::new(0.0));
            let seen = Arc::clone(&seconds);
            let watch = move |event: &Event<'_>| {
                if let (Event::ArtifactFinished { .. }, Ok(mut seconds)) = (event, seen.lock()) {
                    *seconds = start.elapsed().as_secs_f64();
                }
            };
            let target = RedisRestore::connect(&url)?;
            repository.restore(SET).latest().into(&target).observer(watch).await?;
            let seconds = seconds.lock().map_or(0.0, |seconds| *seconds);
            fs::write(loaded, seconds.to_string())?;
        }
        Ok(())
    })
}
