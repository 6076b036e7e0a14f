//! How fast it is. Run by hand, in release mode:
//! `cargo test --release -p backup-fs --test target -- --ignored --test-threads=1 --nocapture speed`.

use std::path::Path;
use std::time::{Duration, Instant};

use backup_core::{ArtifactReader, RestoreTarget as _};
use backup_fs::DirectoryTarget;

use crate::support::*;

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64()
}

async fn measure(name: &str, tree: &Path, files: u32) {
    let dir = tree.parent().unwrap();
    let archive = tar(tree, &[]);
    let mib = f64::from(u32::try_from(archive.len() >> 10).unwrap()) / 1024.0;
    std::fs::write(dir.join("archive.tar"), &archive).unwrap();
    let archive = bytes::Bytes::from(archive);
    let (mut extract, mut prove, mut whole, mut rival) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        sh("sync -f .", dir);
        let start = Instant::now();
        let restore = DirectoryTarget::new(dir.join("to")).begin(&plan(&archive)).await.unwrap();
        restore
            .artifact(ArtifactReader::new(
                meta(),
                archive.len() as u64,
                None,
                std::sync::Arc::new(Chunked(archive.clone())),
            ))
            .await
            .unwrap();
        extract.push(start.elapsed());
        let proving = Instant::now();
        restore.prove().await.unwrap();
        prove.push(proving.elapsed());
        restore.commit().await.unwrap();
        whole.push(start.elapsed());
        sh("rm -rf to; mkdir rival; sync -f .", dir);
        let start = Instant::now();
        sh("cat archive.tar | tar --numeric-owner --xattrs --acls -xpf - -C rival; sync -f rival", dir);
        rival.push(start.elapsed());
        sh("rm -rf rival", dir);
    }
    let (extract, prove, whole, rival) = (median(extract), median(prove), median(whole), median(rival));
    println!(
        "{name}: {files} files, {mib:.0} MiB: extract {extract:.2} s ({:.0} files/s, {:.0} MiB/s); proof {prove:.2} s; with proof, sync and swap \
         {whole:.2} s ({:.0} files/s, {:.0} MiB/s); tar x and sync -f {rival:.2} s: {:.2}x",
        f64::from(files) / extract,
        mib / extract,
        f64::from(files) / whole,
        mib / whole,
        rival / whole,
    );
}

/// Chunks of the size decoders give.
#[derive(Debug)]
struct Chunked(bytes::Bytes);

impl backup_core::ArtifactBytes for Chunked {
    fn open(
        &self,
        _: Option<std::ops::Range<u64>>,
    ) -> futures::future::BoxFuture<'static, backup_core::Result<backup_core::ByteStream>> {
        let mut rest = self.0.clone();
        let pieces = std::iter::from_fn(move || {
            let piece = rest.split_to(rest.len().min(1 << 20));
            // Copied, as a decoder's output would be fresh memory.
            (!piece.is_empty()).then(|| Ok(bytes::Bytes::copy_from_slice(&piece)))
        });
        Box::pin(async move { Ok(Box::pin(futures::stream::iter(pieces)) as backup_core::ByteStream) })
    }
}

/// Bytes that do not compress and cost little to make.
fn noise(length: usize, seed: &mut u64) -> Vec<u8> {
    let mut all = Vec::with_capacity(length + 8);
    while all.len() < length {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.extend_from_slice(&seed.rotate_left(17).to_le_bytes());
    }
    all.truncate(length);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be run by hand"]
async fn speed_of_small_files() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, mut seed) = (dir.path().join("small"), 1);
    for d in 0..200 {
        std::fs::create_dir_all(tree.join(format!("d{d}"))).unwrap();
        for f in 1..=100 {
            std::fs::write(tree.join(format!("d{d}/f{f}")), noise(f * 160, &mut seed)).unwrap();
        }
    }
    measure("small", &tree, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be run by hand"]
async fn speed_of_large_files() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, mut seed) = (dir.path().join("large"), 1);
    std::fs::create_dir(&tree).unwrap();
    for f in 0..50 {
        std::fs::write(tree.join(format!("f{f}")), noise(10_000_000, &mut seed)).unwrap();
    }
    measure("large", &tree, 50).await;
}
