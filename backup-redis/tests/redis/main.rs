//! Behaviour of the crate against real servers.

mod backup;
mod data;
mod support;
