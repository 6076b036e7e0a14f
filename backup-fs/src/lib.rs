//! Files and directories for `backup-core`.

mod acl;
mod canonical;
mod tar;
mod target;

pub use target::{DirectoryTarget, OwnerMap, Owners};
