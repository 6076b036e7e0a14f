//! Micro benchmarks, and comparisons with what people run today.
//!
//! * `micro`: codecs and fan-out in memory.
//! * `compare`: whole backups and restores beside the shell pipelines they replace, measured in the same run.

pub mod measure;
pub mod tables;
pub mod tree;
