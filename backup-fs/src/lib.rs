//! Files and directories for `backup-core`.
//!
//! [`DirectorySource`] archives trees and files as tar streams, [`DirectoryTarget`] restores them, and
//! [`LocalSink`] keeps backups in a directory.

mod acl;
mod canonical;
mod config;
mod local;
mod source;
mod tar;
mod target;

pub use config::DirectorySourceBuilder;
pub use local::LocalSink;
pub use source::DirectorySource;
pub use target::{DirectoryTarget, OwnerMap, Owners};
