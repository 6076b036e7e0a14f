//! Logical backups of real servers: out, back, replaced, broken.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod logical {
    pub(crate) mod drive;
    pub(crate) mod server;

    mod check;
    mod cluster;
    mod engine;
    mod failures;
    mod many;
    mod partial;
    mod reach;
    mod replace;
    mod round_trip;
}
