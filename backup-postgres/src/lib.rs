//! PostgreSQL for the backup library.
#![warn(clippy::indexing_slicing)]
mod config;
mod error;
mod ident;
mod logical;
mod session;
pub use config::{PgConfig, TlsMode};
