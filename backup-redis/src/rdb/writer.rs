//! Writes an RDB: for what is read key by key instead of received as one.

use super::crc64::Crc64;
use super::length::{write_length, write_string};

/// Makes an RDB piece by piece; the pieces are the caller's to take from [`RdbWriter::take`].
#[derive(Debug)]
pub(crate) struct RdbWriter {
    out: Vec<u8>,
    crc: Crc64,
    db: Option<u64>,
}

impl RdbWriter {
    /// Begins an RDB of `version`.
    pub(crate) fn new(version: u32) -> Self {
        Self { out: format!("REDIS{version:04}").into_bytes(), crc: Crc64::new(), db: None }
    }

    /// Writes an auxiliary field.
    pub(crate) fn aux(&mut self, name: &str, value: &str) {
        self.out.push(250);
        write_string(&mut self.out, name.as_bytes());
        write_string(&mut self.out, value.as_bytes());
    }

    /// Writes the source of a library.
    pub(crate) fn function(&mut self, library: &[u8]) {
        self.out.push(245);
        write_string(&mut self.out, library);
    }

    /// Writes what precedes a key's value. The value's raw bytes come next, by [`RdbWriter::raw`].
    pub(crate) fn key(&mut self, db: u64, expires_at: Option<i64>, code: u8, key: &[u8]) {
        if self.db != Some(db) {
            self.db = Some(db);
            self.out.push(254);
            write_length(&mut self.out, db);
        }
        if let Some(at) = expires_at {
            self.out.push(252);
            self.out.extend_from_slice(&at.to_le_bytes());
        }
        self.out.push(code);
        write_string(&mut self.out, key);
    }

    /// Writes raw bytes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Bytes written and not taken yet.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// The bytes written since the last call.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.crc.update(&self.out);
        std::mem::take(&mut self.out)
    }

    /// Ends the RDB; its last bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.out.push(255);
        let mut last = self.take();
        last.extend_from_slice(&self.crc.value().to_le_bytes());
        last
    }
}
