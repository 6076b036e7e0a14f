//! Reads an RDB file: checks it, counts what is in it, and says how fast that went.
//!
//! ```sh
//! cargo run --release -p backup-redis --example rdb_stats -- dump.rdb [skip|stats|proof]
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::io::Read as _;
use std::time::{Duration, Instant};

use backup_redis::rdb::{Ignore, Prover, RdbReader, Statistics, Visitor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which RDB file?")?;
    match arguments.next().as_deref() {
        Some("skip") => read(&path, &mut Ignore),
        Some("proof") => {
            let mut prover = Prover::new();
            read(&path, &mut prover)?;
            for (name, proof) in prover.proofs() {
                println!("{name}: {proof:?}");
            }
            Ok(())
        }
        _ => {
            let mut statistics = Statistics::new(chrono::Utc::now());
            read(&path, &mut statistics)?;
            for ((db, kind), count) in statistics.counts() {
                println!(
                    "db {db}, {}: {} keys ({} expire), {} bytes",
                    kind.name(),
                    count.keys,
                    count.expires,
                    count.bytes
                );
            }
            for big in statistics.biggest().iter().take(5) {
                println!("{} bytes: {}", big.bytes, String::from_utf8_lossy(&big.key));
            }
            println!("{:?}", statistics.expiry());
            Ok(())
        }
    }
}

/// Reads the file; the time of the reading system calls is not counted.
fn read(path: &str, visitor: &mut impl Visitor) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = std::fs::File::open(path)?;
    let mut reader = RdbReader::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut parsing = Duration::ZERO;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        let start = Instant::now();
        reader.push(&buffer[..n], visitor)?;
        parsing += start.elapsed();
    }
    reader.finish()?;
    let mib = f64::from(u32::try_from(reader.offset() / 1024)?) / 1024.0;
    println!("{mib:.0} MiB in {parsing:.2?}: {:.0} MiB/s", mib / parsing.as_secs_f64());
    Ok(())
}
