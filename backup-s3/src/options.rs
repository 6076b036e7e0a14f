//! Settings every object store sink has.

use std::time::Duration;

use backup_core::{CREATE_NEW_LIMIT, Error, Result};

use crate::class::{StorageClasses, Tags};
use crate::parts::{DEFAULT_PART_SIZE, MIN_PART_SIZE, PartSizes};

/// Bytes an open writer holds unless told otherwise: three parts of 8 MiB.
pub(crate) const DEFAULT_UPLOAD_MEMORY: usize = 24 * 1024 * 1024;
/// Pieces a reader fetches ahead unless told otherwise: 16 MiB.
const DEFAULT_READ_AHEAD: usize = 8;
/// The slowest link a single part must get through, in bytes per second.
const SLOWEST: u64 = 32 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) id: Option<String>,
    pub(crate) prefix: String,
    pub(crate) part_size: u64,
    pub(crate) part_sizes: Option<PartSizes>,
    pub(crate) upload_memory: usize,
    pub(crate) read_ahead: usize,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) classes: StorageClasses,
    pub(crate) tags: Tags,
    pub(crate) attributes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            id: None,
            prefix: String::new(),
            part_size: DEFAULT_PART_SIZE,
            part_sizes: None,
            upload_memory: DEFAULT_UPLOAD_MEMORY,
            read_ahead: DEFAULT_READ_AHEAD,
            request_timeout: None,
            classes: StorageClasses::default(),
            tags: Tags::new(),
            attributes: true,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: &'static str| Err(Error::invalid("open object store", why));
        if self.part_size < MIN_PART_SIZE {
            return refuse("`part_size` must be at least 5 MiB: stores refuse smaller parts");
        }
        // A create-new is decided only beyond 16 MiB, with a further part to fill.
        if (self.upload_memory as u64) < CREATE_NEW_LIMIT + self.part_size {
            return refuse("`upload_memory` must be at least 16 MiB and one part");
        }
        if self.classes.refused() {
            return refuse("manifests cannot lie in a class that must be thawed: every listing reads them");
        }
        if self.tags.len() > 10 {
            return refuse("an object has at most 10 tags");
        }
        if !self.attributes && (self.classes != StorageClasses::default() || !self.tags.is_empty()) {
            return refuse("a store without attributes has no storage classes and no tags");
        }
        Ok(())
    }

    /// Time for one request: enough for the largest part over a slow link.
    #[cfg_attr(
        not(any(feature = "s3", feature = "gcs", feature = "azure")),
        expect(dead_code, reason = "no HTTP store")
    )]
    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout.unwrap_or_else(|| Duration::from_secs(60 + self.upload_memory as u64 / SLOWEST))
    }
}
