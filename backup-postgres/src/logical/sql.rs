//! SQL text as `pg_dump`, `pg_dumpall` and `pg_restore -f -` write it: statements, COPY data, psql's own lines.

mod rewrite;
mod split;

pub(crate) use rewrite::{Token, TokenKind, render, tokens};
pub(crate) use split::{Splitter, SqlEvent, Statement};
