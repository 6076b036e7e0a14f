//! What a reader reports: [`Visitor`].

use backup_core::Result;

use super::encoding::{Dialect, Encoding};
use super::string::StoredString;

/// A key and what is known of it before its value.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The database it is in.
    pub db: u64,
    /// Its name.
    pub key: StoredString<'a>,
    /// How its value is stored.
    pub encoding: Encoding,
    /// When it expires, in milliseconds since 1970-01-01 UTC.
    pub expires_at: Option<i64>,
    /// Seconds since its last use, where the server evicts by that (LRU policies).
    pub idle: Option<u64>,
    /// Its access counter, where the server evicts by that (LFU policies).
    pub frequency: Option<u8>,
    /// Where its type byte is, from the start of the stream.
    pub offset: u64,
    /// Where its value begins, from the start of the stream.
    pub value_offset: u64,
}

/// Receives what [`RdbReader`](super::RdbReader) meets, in the order of the stream. Every method does nothing
/// unless overridden. An error ends the reading.
pub trait Visitor {
    /// The stream begins.
    fn header(&mut self, dialect: Dialect, version: u32) -> Result<()> {
        let _ = (dialect, version);
        Ok(())
    }

    /// An auxiliary field: `redis-ver`, `ctime`, `repl-id`.
    fn aux(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let _ = (name, value);
        Ok(())
    }

    /// The server's own count of a database: keys, and how many of them expire. A hint.
    fn resize(&mut self, db: u64, keys: u64, expires: u64) -> Result<()> {
        let _ = (db, keys, expires);
        Ok(())
    }

    /// The source of a library of functions.
    fn function(&mut self, library: &[u8]) -> Result<()> {
        let _ = library;
        Ok(())
    }

    /// Data that a module keeps beside the keys. It cannot be restored over the wire.
    fn module_aux(&mut self, module_id: u64) -> Result<()> {
        let _ = module_id;
        Ok(())
    }

    /// A key with its value: exactly the bytes that `RESTORE` wants after the type byte.
    fn value(&mut self, record: &Record<'_>, value: &[u8]) -> Result<()> {
        let _ = (record, value);
        Ok(())
    }

    /// A key whose value is larger than the reader's window; the value comes in pieces. A piece never ends inside
    /// the header of a string or inside a number.
    fn large(&mut self, record: &Record<'_>) -> Result<()> {
        let _ = record;
        Ok(())
    }

    /// The next piece of a large value.
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// The large value is complete.
    fn large_end(&mut self) -> Result<()> {
        Ok(())
    }

    /// The stream is complete and its checksum right, or absent (`checked` is false).
    fn end(&mut self, checked: bool) -> Result<()> {
        let _ = checked;
        Ok(())
    }
}

/// Wants nothing: reading with it checks structure and checksum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore;
impl Visitor for Ignore {}
