//! Redis and Valkey for the backup library: [`RedisRdb`] backs up, [`RedisRestore`] and [`RdbFileTarget`] restore.
//!
//! A backup asks the server for a snapshot as a replica does, so it needs neither the server's files nor its programs.
//! While the RDB passes it is parsed, its checksum is compared, and every key is counted and hashed; a restore reads
//! every key back before it takes effect.
//!
//! ```no_run
//! # async fn example(repository: backup_core::Repository) -> backup_core::Result<()> {
//! use backup_redis::{OnConflict, RedisRdb, RedisRestore};
//!
//! let cache = RedisRdb::connect("rediss://backup:s3cret@db.example:6380")?;
//! repository.backup("shop/cache", &cache).await?;
//!
//! // Everything, in one step, instead of what is there; `undo` brings that back.
//! let server = RedisRestore::connect("redis://restorer:s3cret@127.0.0.1")?;
//! let done = repository.restore("shop/cache").latest().into(&server).replace().await?;
//! if let Some(undo) = done.undo { undo.drop_old().await? }
//!
//! // Some keys, beside what is there.
//! let sessions = server.merge(OnConflict::Keep).only_keys(["session:*"]);
//! repository.restore("shop/cache").latest().into(&sessions).await?;
//! # Ok(()) }
//! ```
//!
//! [`rdb`] reads snapshots without a server. What the users need is in [`RedisRdb::PERMISSIONS`] and
//! [`RedisRestore::PERMISSIONS`]. Redis 6.2 to 8 and Valkey 8 are tested.

mod config;
mod connect;
mod discover;
mod error;
mod feed;
mod file_target;
#[doc(hidden)]
pub mod fuzz;
pub mod rdb;
mod recipe;
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
