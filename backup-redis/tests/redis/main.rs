//! Behaviour of the crate against real servers.

mod backup;
mod data;
mod failures;
mod file;
mod restore;
mod support;
mod topology;
