//! A restore in progress.

mod archive;
mod database;
mod globals;
mod gunzip;
mod parallel;
mod prove;
mod script;
mod stage;
mod statement;
mod tables;
mod tar;
mod traffic;

use std::collections::BTreeMap;

use backup_core::Warning;

use super::tools::Tools;

pub(crate) use database::{DatabasesRestore, Into};
pub(crate) use tables::TablesRestore;

/// Everything [`PgRestore`](crate::PgRestore) can be told.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a builder")]
pub(crate) struct RestoreOptions {
    pub(crate) jobs: usize,
    pub(crate) owners: bool,
    pub(crate) privileges: bool,
    pub(crate) roles: BTreeMap<String, String>,
    pub(crate) schema: bool,
    pub(crate) data: bool,
    pub(crate) stop_at_errors: bool,
    pub(crate) disconnect_others: bool,
    pub(crate) from_database: Option<String>,
    /// Rows that are missing are inserted into the tables in use, and nothing else.
    pub(crate) insert_missing: bool,
    /// The schema selected tables are restored into.
    pub(crate) side_schema: Option<String>,
    pub(crate) tools: Tools,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            jobs: std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16),
            owners: true,
            privileges: true,
            roles: BTreeMap::new(),
            schema: true,
            data: true,
            stop_at_errors: true,
            disconnect_others: false,
            from_database: None,
            insert_missing: false,
            side_schema: None,
            tools: Tools::default(),
        }
    }
}

/// Warnings gathered while restoring.
pub(crate) type Warnings = std::sync::Arc<std::sync::Mutex<Vec<Warning>>>;

/// Adds a warning.
pub(crate) fn warn(warnings: &Warnings, warning: Warning) {
    warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(warning);
}
