//! `DirectoryTarget`, judged by other tools: GNU tar makes the archives, rsync compares the trees.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and says what it skipped or measured"
)]

mod crash;
mod engine;
mod hostile;
mod mounted;
#[path = "../common/mounts.rs"]
mod mounts;
mod replace;
mod round_trip;
mod stopped;
mod support;
mod times;
mod unprivileged;
