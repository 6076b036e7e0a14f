//! PostgreSQL for the backup library: [`PgDump`] backs up, [`PgRestore`] restores.
//!
//! Logical backups, in the formats PostgreSQL's own programs read: custom archives, SQL text, and a parallel format of
//! archive and COPY files. While a dump passes, every row is counted and hashed; a restore reads every row back
//! before it takes effect.
//!
//! ```no_run
//! # async fn example() -> backup_core::Result<()> {
//! use backup_core::Source as _;
//! use backup_postgres::{PgDump, PgRestore};
//!
//! let books = PgDump::connect("postgres://backup@db.example/books?sslmode=verify-full")?;
//! for finding in books.check().await?.findings {
//!     println!("{}: {}", finding.code, finding.message);
//! }
//! let copy = PgRestore::database("postgres://admin@db.example/postgres", "books_copy")?;
//! # let _ = copy;
//! # Ok(()) }
//! ```
//!
//! `pg_dump`, `pg_dumpall` and `pg_restore` must be installed, of the server's major version or later: the newest on the
//! machine is used. Connections use rustls with ring.

// Parsers must not panic on what they read.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

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
