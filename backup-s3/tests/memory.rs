//! How much memory a large upload takes. Alone in its process: it measures the process.

use backup_core::{Bytes, Digest, Hasher, Key, ObjectKind, PutOptions, Sink as _};
use backup_s3::{DEFAULT_PART_SIZE, PartPlan, PartSizes, S3Sink};
use backup_testkit::{S3Stub, noise};

const MIB: u64 = 1024 * 1024;
/// Bytes streamed in one run; `BACKUP_TORTURE_S3_STREAM` sets the full size.
const STREAM: u64 = 512 * MIB;
const PIECE: usize = 1024 * 1024;
/// What the process may grow by: the writer's 24 MiB, buffers of the network on both sides, and the allocator's slack.
const GROWTH: u64 = 128 * MIB;

/// A line of /proc/self/status in bytes: `VmRSS`, or `VmHWM` for the peak.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = text.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") * 1024
}

/// The digests of the parts the stream must arrive in.
struct Parts {
    plan: PartPlan,
    hasher: Hasher,
    in_part: u64,
    digests: Vec<(u64, Digest)>,
}

impl Parts {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let size = self.plan.size(self.digests.len() as u64).expect("a part");
            let n = usize::try_from(size - self.in_part).expect("a size").min(bytes.len());
            let (now, later) = bytes.split_at(n);
            self.hasher.update(now);
            self.in_part += n as u64;
            bytes = later;
            if self.in_part == size {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if self.in_part > 0 {
            let digest = std::mem::take(&mut self.hasher).finish();
            self.digests.push((std::mem::take(&mut self.in_part), digest));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_any_length_takes_the_memory_it_was_given() {
    let total = std::env::var("BACKUP_TORTURE_S3_STREAM").ok().and_then(|t| t.parse().ok()).unwrap_or(STREAM);
    let stub = S3Stub::start().await;
    let sink = S3Sink::builder()
        .without_environment()
        .endpoint(format!("http://{}", stub.address()))
        .bucket("tests")
        .credentials("id", "secret")
        .build()
        .expect("a sink");
    assert_eq!(sink.writer_memory() as u64, 24 * MIB);
    let pieces: Vec<Bytes> = (0..7).map(|seed| noise(PIECE, seed)).collect();
    let plan = PartPlan::new(PartSizes::Growing, DEFAULT_PART_SIZE, sink.writer_memory() as u64, None);
    let mut parts =
        Parts { plan: plan.expect("a plan"), hasher: Hasher::new(), in_part: 0, digests: Vec::new() };

    let before = status("VmRSS");
    let begin = std::time::Instant::now();
    let key = Key::parse("stream").expect("a key");
    let mut writer = sink.create(&key, PutOptions::overwrite(ObjectKind::Data)).await.expect("create");
    for n in 0..total / PIECE as u64 {
        let piece = pieces[usize::try_from(n % 7).expect("small")].clone();
        parts.add(&piece);
        writer.write(piece).await.expect("write");
    }
    assert_eq!(writer.finish().await.expect("finish").size, total);
    let (peak, took) = (status("VmHWM"), begin.elapsed());
    parts.end();
    let seen = stub.object("/tests/stream").expect("the object");
    let seen: Vec<(u64, Digest)> = seen.iter().map(|part| (part.size, part.digest)).collect();
    assert!(seen == parts.digests, "the parts arrived changed, or cut otherwise");
    let growth = peak.saturating_sub(before);
    eprintln!("{} MiB in {took:.1?}, {} parts, memory grew by {} MiB", total / MIB, seen.len(), growth / MIB);
    assert!(growth < GROWTH, "memory grew by {} MiB", growth / MIB);
}
