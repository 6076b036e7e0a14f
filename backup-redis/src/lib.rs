//! Redis and Valkey for `backup-core`.

mod config;
mod connect;
mod discover;
mod error;
mod feed;
mod file_target;
pub mod rdb;
mod replication;
mod resp;
mod scan;
mod source;
mod tally;
mod target;
mod transfer;

pub use config::RedisConfig;
pub use file_target::RdbFileTarget;
pub use source::{RDB, RedisRdb};
pub use target::{OnConflict, RedisRestore};
