//! The RDB reader alone, on small keys in memory: how fast it is without a server, a disk and an engine around it.

use std::time::{Duration, Instant};

use backup_redis::rdb::{Ignore, Prover, RdbReader, Visitor};

use super::Fallible;

/// Bytes of records that are read again and again.
const RECORDS: usize = 64 << 20;
/// Bytes pushed at a time, as the engine does.
const PIECE: usize = 256 * 1024;
/// Bytes of a value; its key has 16.
const VALUE: usize = 64;

/// Reads `size` bytes of records: once for structure and checksum, once with the proof of their content.
pub(crate) fn run(size: u64) -> Fallible<()> {
    let records = records();
    let rounds = size.div_ceil(records.len() as u64).max(1);
    let plain = read(&records, rounds, Ignore)?;
    let proved = read(&records, rounds, Prover::new())?;
    let bytes = rounds * records.len() as u64;
    println!(
        "redis parser alone, keys of 16 and values of {VALUE} bytes: {:.0} MiB/s with checksum, {:.0} MiB/s proved",
        rate(bytes, plain),
        rate(bytes, proved)
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / f64::from(1 << 20)
}

fn read<V: Visitor>(records: &[u8], rounds: u64, mut visitor: V) -> Fallible<Duration> {
    let mut reader = RdbReader::new();
    reader.push(b"REDIS0010", &mut visitor)?;
    let start = Instant::now();
    for _ in 0..rounds {
        for piece in records.chunks(PIECE) {
            reader.push(piece, &mut visitor)?;
        }
    }
    let time = start.elapsed();
    // The end, with the checksum left out as `rdbchecksum no` does.
    reader.push(&[0xff, 0, 0, 0, 0, 0, 0, 0, 0], &mut visitor)?;
    reader.finish()?;
    Ok(time)
}

/// Strings as an RDB holds them: type, length and key, length and value.
fn records() -> Vec<u8> {
    let mut records = Vec::with_capacity(RECORDS + 128);
    let mut n = 0u64;
    while records.len() < RECORDS {
        n += 1;
        records.extend_from_slice(&[0, 16]);
        records.extend_from_slice(format!("key:{n:012}").as_bytes());
        // Lengths from 64 on take two bytes.
        records.extend_from_slice(&[0x40, 64]);
        records.extend_from_slice(format!("{:064x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_bytes());
    }
    records
}
