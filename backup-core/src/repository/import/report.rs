//! What an import did.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::name::BackupId;

/// What an import did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImportReport {
    /// New backups, oldest first.
    pub imported: Vec<Imported>,
    /// Files that earlier runs had imported.
    pub already: Vec<Imported>,
    /// Files whose name the pattern does not match, by name.
    pub unmatched: Vec<String>,
    /// Files that were not imported, and those whose backup has too few copies.
    pub failures: Vec<ImportFailure>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A file and its backup.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Name of the file.
    pub file: String,
    /// The backup. Its time is the file's.
    pub id: BackupId,
    /// Bytes of the file.
    pub size: u64,
    /// Plain bytes.
    pub plain_size: u64,
}

/// A file that was not imported.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImportFailure {
    /// Name of the file.
    pub file: String,
    /// Why.
    pub error: Error,
}

impl ImportReport {
    /// The report, or an error that names the first failure.
    pub fn into_result(mut self) -> Result<Self> {
        if self.failures.is_empty() {
            return Ok(self);
        }
        let count = self.failures.len();
        let ImportFailure { file, error: cause } = self.failures.remove(0);
        Err(Error::new(cause.kind(), "import")
            .message("not every file was imported; repair what is named here and import again: nothing is imported twice")
            .with("failures", count)
            .with("imported", self.imported.len())
            .with("file", file)
            .caused_by(cause))
    }
}
