//! Behaviour of the crate against real servers.

mod backup;
mod data;
mod restore;
mod support;
