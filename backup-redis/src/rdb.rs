//! Reading RDB, the format of Redis and Valkey snapshots, without a server.
//!
//! * [`RdbReader`] finds keys and the raw bytes of their values in a stream pushed to it: what `RESTORE` needs.
//! * [`Value::decode`] decodes one.
//! * [`Prover`] computes the proof of the content, equal for all servers that hold the same.
//! * [`Statistics`] counts: keys, bytes, the biggest keys, when keys expire.
//!
//! ```no_run
//! use std::io::Read as _;
//! use backup_redis::rdb::{RdbReader, Statistics};
//!
//! let mut file = std::fs::File::open("dump.rdb")?;
//! let mut reader = RdbReader::new();
//! let mut statistics = Statistics::new(chrono::Utc::now());
//! let mut buffer = vec![0; 256 * 1024];
//! loop {
//!     let n = file.read(&mut buffer)?;
//!     if n == 0 { break }
//!     reader.push(&buffer[..n], &mut statistics)?;
//! }
//! reader.finish()?; // whole, and its checksum is right
//! println!("{} keys", statistics.total().keys);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Versions 1 to 13 of Redis and the `VALKEY080` family are known. Anything else is refused by name.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub(crate) mod canonical;
pub(crate) mod crc64;
pub(crate) mod decode;
mod encoding;
mod error;
pub(crate) mod length;
mod lzf;
mod packed;
pub(crate) mod proof;
mod reader;
mod stats;
mod stream;
mod string;
pub(crate) mod transcode;
mod value;
mod visit;
mod walk;
pub(crate) mod writer;

pub use encoding::{Dialect, Encoding, Kind};
pub use error::RdbError;
pub use proof::{Class, EXPIRING, FUNCTIONS, KEYS, OPAQUE, Prover};
pub use reader::{DEFAULT_NAME_LIMIT, DEFAULT_WINDOW, NEWEST_VERSION, RdbReader};
pub use stats::{BigKey, Count, Expiry, Statistics};
pub use stream::StreamId;
pub use string::StoredString;
pub use value::{Consumer, Group, HashField, PendingEntry, Stream, StreamEntry, Value};
pub use visit::{Ignore, Record, Visitor};
