//! Files and directories for `backup-core`.
//!
//! [`DirectorySource`] archives trees and files as tar streams; [`LocalSink`] keeps backups in a directory.

mod acl;
mod canonical;
mod config;
mod local;
mod source;
mod tar;

pub use config::DirectorySourceBuilder;
pub use local::LocalSink;
pub use source::DirectorySource;
