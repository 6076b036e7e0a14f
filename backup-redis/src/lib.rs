//! Redis and Valkey for `backup-core`.

pub mod rdb;
