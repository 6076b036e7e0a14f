//! The local sink keeps the contract of sinks, and more.

use std::sync::Arc;

use backup_fs::LocalSink;
use backup_testkit::SinkSuite;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_sink_keeps_the_contract_of_sinks() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    SinkSuite::new()
        .run(async || {
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Arc::new(LocalSink::init(dir.path().join(n.to_string())).unwrap())
        })
        .await;
}
