//! Logical backup: SQL and rows, in `pg_dump`'s formats and in parallel COPY.

pub(crate) mod archive;
pub(crate) mod inspect;
pub(crate) mod rows;
pub(crate) mod sql;
pub(crate) mod tools;
