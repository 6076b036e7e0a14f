//! Small complete programs built from `backup-core` and its adapters: see `src/bin`.
//!
//! * `quickstart`: a tree, two encrypted copies, one of them damaged, and everything back.
//! * `embedded`: a web service that backs up its own data on a timer and shows its backups.

/// The code in `README.md`, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
