//! Object storage as a sink of `backup-core`: Amazon S3 and compatibles, Google Cloud Storage, Azure Blob Storage.
//!
//! [`S3Sink`], `GcsSink` (feature `gcs`) and `AzureSink` (feature `azure`) read the usual configuration of their
//! ecosystems and build an [`ObjectStoreSink`]; [`ObjectStoreSink::builder`] takes any other
//! [`object_store::ObjectStore`]. [`ObjectStoreSink::open_url`] opens `s3://bucket/prefix`.
//!
//! # Two regions
//!
//! A second sink is a second copy, made from the same read of the source. A region that was away gets its copy later:
//!
//! ```no_run
//! use backup_core::{ErrorKind, MemorySource, Repository, Result};
//! use backup_s3::S3Sink;
//!
//! # async fn nightly(source: MemorySource) -> Result<()> {
//! let repo = Repository::builder()
//!     .sink(S3Sink::builder().bucket("books-frankfurt").region("eu-central-1").build()?)
//!     .sink(S3Sink::builder().bucket("books-stockholm").region("eu-north-1").build()?)
//!     .memory_budget(128 * 1024 * 1024) // each writer holds 24 MiB
//!     .require_copies(2)
//!     .build()?;
//! match repo.backup("books", &source).await {
//!     Ok(_) => {}
//!     // One region has it: the backup is listed as degraded.
//!     Err(error) if error.kind() == ErrorKind::TooFewCopies => {
//!         let newest = repo.backups("books").await?[0].id;
//!         repo.replicate("books", newest).await?;
//!     }
//!     Err(error) => return Err(error),
//! }
//! # Ok(()) }
//! ```
//!
//! Policies per role, lifecycle rules, and what was tested against which store: `docs/object-storage.md`.

#[cfg(feature = "azure")]
mod azure;
mod builder;
mod class;
mod clock;
mod copy;
mod error;
#[cfg(feature = "gcs")]
mod gcs;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod http_client;
mod native;
mod options;
mod parts;
mod place;
mod probe;
mod read;
#[cfg(feature = "s3")]
mod s3;
mod shared;
mod sink;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod tls;
mod url;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod wire;
mod writer;

#[cfg(feature = "azure")]
pub use azure::{Azure, AzureSink};
pub use builder::{AnyStore, SinkBuilder};
pub use class::StorageClasses;
#[cfg(feature = "gcs")]
pub use gcs::{Gcs, GcsSink};
pub use object_store;
pub use parts::{DEFAULT_PART_SIZE, MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE, PartPlan, PartSizes};
#[cfg(feature = "s3")]
pub use s3::{Checksum, Encryption, ObjectLock, S3, S3Sink};
pub use sink::ObjectStoreSink;
