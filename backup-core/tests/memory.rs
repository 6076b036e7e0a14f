//! The in-memory implementations keep the contracts of their traits.

use std::sync::Arc;

use backup_core::MemorySink;
use backup_testkit::SinkSuite;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_sink_keeps_the_contract_of_sinks() {
    SinkSuite::new().run(async || Arc::new(MemorySink::new())).await;
}
