//! Behaviour of the crate against real servers.
#![expect(clippy::unwrap_used, reason = "in a helper of a test, too, it fails the test")]

mod backup;
mod data;
mod failures;
mod file;
mod readback;
mod repository;
mod restore;
mod support;
mod topology;
