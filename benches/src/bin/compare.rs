//! Side by side with what people run today.
//!
//! `cargo run --release --bin compare -- fs|s3|postgres|redis [--size MIB] [--files N] [--runs N]
//! [--chain WORD] [--json FILE]` prints a line per pair:
//! `<store> <backup|restore> <our chain> vs <rival>: wall 1.83x cpu 1.10x rss 0.4x size 0.97x`. Each number is the
//! rival's divided by ours: above 1 is in our favour.
//!
//! The terms: same algorithm and level on both sides; both end durable on disk; ours hashes, indexes, encrypts,
//! proves and syncs; memory is the sum of the peaks of all processes; runs alternate and the median counts; every
//! output is restored and compared after timing.
#![expect(clippy::print_stdout, reason = "this program talks to a person")]

#[path = "../compare/fs.rs"]
mod fs;
#[path = "../compare/postgres.rs"]
mod postgres;
#[path = "../compare/rdb.rs"]
mod rdb;
#[path = "../compare/redis.rs"]
mod redis;
#[path = "../compare/s3.rs"]
mod s3;

use backup_benches::measure::Cost;

/// What the command line asks for.
pub(crate) struct Options {
    size: u64,
    files: u64,
    runs: usize,
    /// What our chain begins with, where only the pairs of one are wanted: `gzip6`, `zstd3`.
    chain: Option<String>,
    json: Option<String>,
}

/// One pair of runs.
pub(crate) struct Pair {
    store: &'static str,
    verb: &'static str,
    ours: String,
    rival: String,
    cost: Cost,
    rival_cost: Cost,
    size: u64,
    rival_size: u64,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let mut words = std::env::args().skip(1);
    let store = words.next().unwrap_or_default();
    if store == "--worker" {
        return fs::worker(&words.collect::<Vec<_>>());
    }
    if store == "--s3-worker" {
        return s3::worker(&words.collect::<Vec<_>>());
    }
    if store == "--postgres-worker" {
        return postgres::worker(&words.collect::<Vec<_>>());
    }
    if store == "--redis-worker" {
        return redis::worker(&words.collect::<Vec<_>>());
    }
    let mut options = Options { size: 1024, files: 20_000, runs: 3, chain: None, json: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--size" => options.size = value()?.parse()?,
            "--files" => options.files = value()?.parse()?,
            "--runs" => options.runs = value()?.parse::<usize>()?.max(1),
            "--chain" => options.chain = Some(value()?),
            "--json" => options.json = Some(value()?),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let pairs = match store.as_str() {
        "fs" => fs::run(&options)?,
        "s3" => s3::run(&options)?,
        "postgres" => postgres::run_all(&options)?,
        "redis" => redis::run(&options)?,
        other => return Err(format!("compare what? `fs`, `s3`, `postgres` or `redis`; not `{other}`").into()),
    };
    if let Some(file) = &options.json {
        let all: Vec<_> = pairs.iter().map(Pair::json).collect();
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)?;
    }
    Ok(())
}

impl Pair {
    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    fn ratios(&self) -> [f64; 4] {
        [
            self.rival_cost.wall / self.cost.wall,
            self.rival_cost.cpu / self.cost.cpu,
            self.rival_cost.rss as f64 / self.cost.rss as f64,
            self.rival_size as f64 / self.size as f64,
        ]
    }

    pub(crate) fn print(&self) {
        let [wall, cpu, rss, size] = self.ratios();
        println!(
            "{} {} {} vs {}: wall {wall:.2}x cpu {cpu:.2}x rss {rss:.2}x size {size:.2}x  \
             (ours {:.2} s, {:.2} s cpu, {} MiB; rival {:.2} s, {:.2} s cpu, {} MiB)",
            self.store,
            self.verb,
            self.ours,
            self.rival,
            self.cost.wall,
            self.cost.cpu,
            self.cost.rss >> 20,
            self.rival_cost.wall,
            self.rival_cost.cpu,
            self.rival_cost.rss >> 20,
        );
    }

    fn json(&self) -> serde_json::Value {
        let [wall, cpu, rss, size] = self.ratios();
        serde_json::json!({
            "store": self.store, "verb": self.verb, "ours": self.ours, "rival": self.rival,
            "wall": wall, "cpu": cpu, "rss": rss, "size": size,
            "ours_seconds": self.cost.wall, "ours_rss_bytes": self.cost.rss, "ours_size_bytes": self.size,
            "rival_seconds": self.rival_cost.wall, "rival_rss_bytes": self.rival_cost.rss,
            "rival_size_bytes": self.rival_size,
        })
    }
}
