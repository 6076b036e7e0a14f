//! Conformance suites, faulty and recording sinks, and a frame for test servers.
//!
//! For authors of sources, sinks and targets: run the suite of the trait you implement. A check that fails panics and
//! says which promise was broken. Only ever a dev-dependency.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use std::sync::Arc;
//! use backup_core::MemorySink;
//! use backup_testkit::SinkSuite;
//!
//! SinkSuite::new().large(1024 * 1024).run(async || Arc::new(MemorySink::new())).await;
//! # }
//! ```
#![expect(
    clippy::missing_panics_doc,
    reason = "checks panic: that is how a test fails, and each says so in its name"
)]

mod bytes;
mod capture;
mod crash;
mod faulty;
pub mod http;
pub mod log;
mod model;
mod moto;
mod operation;
mod proxy;
mod recording;
pub mod retention;
mod s3_stub;
mod servers;
mod simulated_clock;
pub mod sink;
mod source;
mod target;
pub mod tools;
pub mod transform;

pub use bytes::{collect, noise};
pub use capture::{Captured, capture};
pub use crash::{Crash, CrashChild, Ended, Kill};
pub use faulty::{Fault, FaultySink, Rule};
pub use log::{LogFile, LogSourceSuite, LogTarget, LogWorld};
pub use model::{ModelChecker, ModelReport};
pub use moto::{Moto, dead_address};
pub use operation::Operation;
pub use proxy::{FaultProxy, FaultSchedule, NetworkFault};
pub use recording::{Record, RecordingSink};
pub use s3_stub::{S3Stub, SeenPart};
pub use servers::{Found, Server, ServerCommand, find_server, free_port, skip};
pub use simulated_clock::SimulatedClock;
pub use sink::SinkSuite;
pub use source::SourceSuite;
pub use target::TargetSuite;
