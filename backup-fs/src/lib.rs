//! Files and directories for `backup-core`.

mod acl;
mod canonical;
mod tar;
