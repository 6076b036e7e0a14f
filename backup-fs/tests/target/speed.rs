//! How fast it is. Run by hand, in release mode:
//! `cargo test --release -p backup-fs --test target -- --ignored --nocapture speed`.

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
    let mib = archive.len() as f64 / 1048576.0;
    std::fs::write(dir.join("archive.tar"), &archive).unwrap();
    let archive = bytes::Bytes::from(archive);
    let (mut extract, mut whole, mut rival) = (Vec::new(), Vec::new(), Vec::new());
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
        restore.prove().await.unwrap();
        restore.commit().await.unwrap();
        whole.push(start.elapsed());
        sh("rm -rf to; mkdir rival; sync -f .", dir);
        let start = Instant::now();
        sh("cat archive.tar | tar --numeric-owner --xattrs --acls -xpf - -C rival; sync -f rival", dir);
        rival.push(start.elapsed());
        sh("rm -rf rival", dir);
    }
    let (extract, whole, rival) = (median(extract), median(whole), median(rival));
    println!(
        "{name}: {files} files, {mib:.0} MiB: extract {extract:.2} s ({:.0} files/s, {:.0} MiB/s); with proof, sync and swap \
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be run by hand"]
async fn speed_of_restores() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("small");
    std::fs::create_dir(&tree).unwrap();
    sh(
        "for d in $(seq 200); do mkdir d$d; for f in $(seq 100); do head -c $((f * 160)) /dev/urandom > d$d/f$f; done; done",
        &tree,
    );
    measure("small", &tree, 20_000).await;
    let tree = dir.path().join("large");
    std::fs::create_dir(&tree).unwrap();
    sh("for f in $(seq 50); do head -c 10000000 /dev/urandom > f$f; done", &tree);
    measure("large", &tree, 50).await;
}
