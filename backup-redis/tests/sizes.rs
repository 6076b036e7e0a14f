//! One very long value and very many short ones, through the whole engine, in bounded memory. Alone in its process:
//! it measures the process.
//!
//! With `BACKUP_TORTURE`: 512 MiB, the longest value a server takes in one argument, and 5 million keys.
#![expect(clippy::unwrap_used, reason = "in a helper of a test, too, it fails the test")]

#[path = "redis/support.rs"]
#[expect(dead_code, reason = "shared with the other tests, which use more of it")]
mod support;

use std::io::Write as _;

use backup_core::{AesGcm, Keyring, Repository, Zstd};
use backup_fs::LocalSink;
use backup_redis::{RedisRdb, RedisRestore};
use support::{Client, REDIS, Server};

const MIB: usize = 1024 * 1024;
/// What the process may grow by: the run's budget of 64 MiB, and what the allocator keeps.
const GROWTH: u64 = 96 * 1024;

/// A line of /proc/self/status, in KiB.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes that do not compress, another MiB for each `n`.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (n as u64 + 1);
    let mut bytes = Vec::with_capacity(MIB);
    while bytes.len() < MIB {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn digest(client: &mut Client) -> (i64, String, String) {
    let keys = client.ok(&["DBSIZE"]).int();
    let all = client.ok(&["DEBUG", "DIGEST"]).text();
    (keys, all, client.ok(&["DEBUG", "DIGEST-VALUE", "long"]).array()[0].text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_value_and_millions_of_keys_pass_in_bounded_memory() {
    let Some(program) = REDIS.find() else { return };
    let full = std::env::var_os("BACKUP_TORTURE").is_some();
    let (mib, keys) = if full { (512, 5_000_000u64) } else { (48, 200_000) };
    let options = ["--enable-debug-command", "yes"];
    let source = Server::start(&program, &options);
    let mut client = source.client();
    client.ok(&["DEBUG", "POPULATE", &keys.to_string(), "small", "24"]);
    for n in 0..mib {
        client.ok(&[&b"APPEND"[..], b"long", &noise(n)]);
    }
    let content = digest(&mut client);
    assert_eq!(content.0, i64::try_from(keys).unwrap() + 1);

    let place = tempfile::tempdir().unwrap();
    let repository = Repository::builder()
        .sink(LocalSink::init(place.path().join("sink")).unwrap())
        .transform(Zstd::default())
        .transform(AesGcm::new(Keyring::builder().key([7; 32]).build().unwrap()))
        .build()
        .unwrap();
    let before = status("VmHWM");
    let started = std::time::Instant::now();
    let done = repository.backup("sizes", &RedisRdb::connect(&source.url()).unwrap()).await.unwrap();
    let (backed_up, grown_backup) = (started.elapsed(), status("VmHWM") - before);
    assert!(repository.verify("sizes", done.id).await.unwrap().is_intact());
    drop(source);

    let target = Server::start(&program, &options);
    let started = std::time::Instant::now();
    let restore = RedisRestore::connect(&target.url()).unwrap();
    repository.restore("sizes").latest().into(&restore).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let (restored, grown) = (started.elapsed(), status("VmHWM") - before);
    let _ = writeln!(
        std::io::stderr(),
        "{mib} MiB in one value and {keys} keys: backup {backed_up:.1?}, growth {grown_backup} KiB; \
         restore {restored:.1?}, growth {grown} KiB"
    );
    assert_eq!(digest(&mut target.client()), content);
    assert!(grown < GROWTH, "{grown} KiB");
}
