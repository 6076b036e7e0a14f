//! Files and directories for `backup-core`: a directory of objects as a sink.

mod local;

pub use local::LocalSink;
//! Files and directories for `backup-core`.
//!
//! [`DirectorySource`] archives trees and files as tar streams.

mod acl;
mod canonical;
mod config;
mod source;
mod tar;

pub use config::DirectorySourceBuilder;
pub use source::DirectorySource;
