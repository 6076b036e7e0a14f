//! Codecs and fan-out in memory: how fast each is alone, on this machine.
//!
//! `cargo run --release --bin micro [-- MIB]`
#![expect(clippy::print_stdout, reason = "this program talks to a person")]

use std::time::Instant;

use backup_benches::tree::Random;
use backup_core::{
    AesGcm, Bytes, Chain, CodecContext, Gzip, Keyring, MemorySink, MemorySource, Repository, SetName,
    Workers, Zstd,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Plain bytes pushed into a codec at a time.
const PIECE: usize = 256 * 1024;

fn main() -> Fallible<()> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(256), |word| word.parse())?;
    let keyring = Keyring::builder().key([7; 32]).build()?;
    let chains = || -> Fallible<Vec<(&str, Chain)>> {
        let aes = || std::sync::Arc::new(AesGcm::new(keyring.clone()));
        Ok(vec![
            ("aes", Chain::new(vec![aes()])?),
            ("gzip 1", Chain::new(vec![std::sync::Arc::new(Gzip::level(1)?)])?),
            ("gzip 6", Chain::new(vec![std::sync::Arc::new(Gzip::level(6)?)])?),
            ("zstd 3", Chain::new(vec![std::sync::Arc::new(Zstd::level(3)?)])?),
            ("gzip 6 + aes", Chain::new(vec![std::sync::Arc::new(Gzip::level(6)?), aes()])?),
            ("zstd 3 + aes", Chain::new(vec![std::sync::Arc::new(Zstd::level(3)?), aes()])?),
        ])
    };
    for (content, bytes) in [("text", text(mib << 20)), ("noise", noise(mib << 20))] {
        for (name, chain) in chains()? {
            codec(content, name, &chain, &bytes)?;
        }
    }
    fan_out(mib)
}

/// Encodes and decodes, and prints MiB/s of plain bytes.
fn codec(content: &str, name: &str, chain: &Chain, plain: &Bytes) -> Fallible<()> {
    let (workers, set) = (Workers::shared()?, SetName::parse("micro")?);
    let key = backup_core::BackupKey::generate()?;
    let cx = CodecContext {
        set: &set,
        id: "20261120T020000Z-000000".parse()?,
        artifact: "micro",
        key: Some(&key),
        workers: &workers,
    };
    let start = Instant::now();
    let mut encoded = Vec::with_capacity(plain.len() + plain.len() / 8);
    let mut writer = chain.encoder(&cx)?;
    for at in (0..plain.len()).step_by(PIECE) {
        writer.push(plain.slice(at..(at + PIECE).min(plain.len())), &mut encoded)?;
    }
    writer.finish(&mut encoded)?;
    let encoding = start.elapsed();

    let encoded = Bytes::from(encoded);
    let start = Instant::now();
    let mut decoded = Vec::with_capacity(plain.len());
    let mut reader = chain.decoder(&cx, Some(plain.len() as u64))?;
    for at in (0..encoded.len()).step_by(PIECE) {
        reader.push(encoded.slice(at..(at + PIECE).min(encoded.len())), &mut decoded)?;
    }
    reader.finish(&mut decoded)?;
    let decoding = start.elapsed();
    if decoded != plain.as_ref() {
        return Err(format!("{name} does not give back what it got").into());
    }
    println!(
        "{name:>13} {content:<5} encode {:>6.0} MiB/s, decode {:>6.0} MiB/s, ratio {:.3}",
        rate(plain.len(), encoding),
        rate(plain.len(), decoding),
        ratio(encoded.len(), plain.len())
    );
    Ok(())
}

/// A whole backup, uncompressed, hashed and indexed, into one to four sinks in memory.
fn fan_out(mib: usize) -> Fallible<()> {
    let source = MemorySource::new().artifact("noise", noise(mib << 20)).chunk_size(1 << 20);
    let runtime = tokio::runtime::Runtime::new()?;
    for sinks in [1, 2, 4] {
        let mut builder = Repository::builder();
        for number in 0..sinks {
            builder = builder.sink(MemorySink::named(format!("memory-{number}")));
        }
        let repository = builder.build()?;
        let start = Instant::now();
        runtime.block_on(async { repository.backup("micro", &source).await })?;
        println!("{sinks} sinks: {:>6.0} MiB/s", rate(mib << 20, start.elapsed()));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn rate(bytes: usize, time: std::time::Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(a: usize, b: usize) -> f64 {
    a as f64 / b as f64
}

fn text(bytes: usize) -> Bytes {
    let mut random = Random::new(1);
    let mut text = Vec::with_capacity(bytes + 100);
    while text.len() < bytes {
        let number = random.number();
        text.extend_from_slice(
            format!(
                "2026-11-20T02:{:02}:{:02} chapter {} read by {}\n",
                number % 60,
                number % 59,
                number % 977,
                number % 100_003
            )
            .as_bytes(),
        );
    }
    text.truncate(bytes);
    text.into()
}

fn noise(bytes: usize) -> Bytes {
    let mut random = Random::new(2);
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend_from_slice(&random.number().to_le_bytes());
    }
    noise.truncate(bytes);
    noise.into()
}
