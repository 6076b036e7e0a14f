//! The custom archive of `pg_dump -Fc`: its table of contents, its data blocks, and where they are.
//!
//! Written from the layout in PostgreSQL's `src/bin/pg_dump/pg_backup_archiver.c` (`WriteHead`, `WriteToc`) and
//! `pg_backup_custom.c`, versions 1.14 (PostgreSQL 14, 15), 1.15 (16) and 1.16 (17, 18):
//!
//! ```text
//! head    "PGDMP" major minor revision int-size offset-size format compression 7×int(time) 3×string int(entries)
//! entry   int id, int has-data, strings catalog oid tag desc, int section, strings defn drop copy namespace
//!         tablespace access-method, 1.16: int relkind, strings owner with-oids, strings dependencies… NULL,
//!         byte state, offset (little-endian)
//! block   01 int id, (int length, bytes)…, int 0                            table data
//!         03 int id, (int oid, (int length, bytes)…, int 0)…, int 0         large objects
//! int     sign byte, then int-size bytes little-endian        string   int length (-1: NULL), bytes
//! ```
//!
//! State is 1 where `pg_dump` wrote to a pipe and could not come back to fill in the offset, 2 where the offset is
//! set, 3 for an entry without data.

mod blocks;
mod toc;

pub(crate) use blocks::{BlockEvent, BlockKind, Blocks};
pub(crate) use toc::{Entry, Head, HeadReader, Progress};
