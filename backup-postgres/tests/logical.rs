//! Logical backups of real servers: out, back, replaced, broken.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod logical {
    pub mod drive;
    pub mod server;

    mod failures;
    mod replace;
    mod round_trip;
}
