//! Amazon S3 and what speaks its protocol.

mod api;
mod bucket;
mod builder;
mod copy;
mod credentials;
mod list;
mod native;
mod profile;
mod settings;
mod sign;
mod xml;

pub use builder::{S3, S3Sink};
pub use settings::{Checksum, Encryption, ObjectLock};
pub(crate) use sign::{Signer, add_headers};
