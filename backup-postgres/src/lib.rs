//! PostgreSQL for the backup library.
#![warn(clippy::indexing_slicing)]
mod config;
mod error;
mod ident;
mod logical;
mod session;
mod source;
mod target;
pub use config::{PgConfig, TlsMode};
pub use source::{DumpFormat, PgDump};
pub use target::PgRestore;
