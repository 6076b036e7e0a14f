//! Logical backup: SQL and rows, in `pg_dump`'s formats and in parallel COPY.

pub(crate) mod archive;
pub(crate) mod check;
pub(crate) mod collected;
pub(crate) mod dump;
pub(crate) mod flow;
pub(crate) mod inspect;
pub(crate) mod meter;
pub(crate) mod options;
pub(crate) mod restore;
pub(crate) mod rows;
pub(crate) mod sql;
pub(crate) mod tools;
