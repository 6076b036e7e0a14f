//! [`Repository`]: sinks, a transform chain and keys together, and the verbs on them.

mod backup;
mod builder;
mod catalog;
mod commit;
mod contents;
mod export;
mod notes;
mod restore;
mod verify;
mod wrap;

use std::fmt;
use std::sync::Arc;

pub use backup::{Backup, BackupReport};
pub use builder::RepositoryBuilder;
pub use catalog::{BackupList, Unreadable};
pub use contents::Contents;
pub use export::Export;
pub use restore::{RestoreBuilder, RestoreOutcome, RestoreTo};
pub use verify::{CopyProblem, Verify, VerifyReport};

use crate::engine::retry::Patience;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::Keyring;
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Observer;
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::{Chain, Transform};
use crate::workers::Workers;

/// Where backups are kept and how: one or more sinks that hold copies, a chain of transforms, and keys.
///
/// Cheap to clone. Each verb returns a small builder: set its options, then await it.
///
/// ```
/// # async fn example() -> backup_core::Result<()> {
/// use backup_core::{MemorySink, MemorySource, MemoryTarget, Repository};
///
/// let repo = Repository::builder().sink(MemorySink::named("first")).sink(MemorySink::named("second")).build()?;
/// let source = MemorySource::new().artifact("greeting", "hello");
/// let done = repo.backup("app/data", &source).await?;
/// assert!(repo.verify("app/data", done.id).await?.is_intact());
///
/// let target = MemoryTarget::new();
/// repo.restore("app/data").latest().into(&target).await?;
/// # Ok(()) }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct Repository(Arc<Inner>);

struct Inner {
    sinks: Vec<Arc<dyn Sink>>,
    required_copies: usize,
    require_encryption: bool,
    chain: Arc<Chain>,
    known: Vec<Arc<dyn Transform>>,
    keyring: Option<Keyring>,
    workers: Workers,
    patience: Patience,
    /// Bytes the pipelines of one run may hold.
    budget: usize,
    observers: Vec<Arc<dyn Observer>>,
}

impl Repository {
    /// Begins to describe a repository.
    pub fn builder() -> RepositoryBuilder {
        RepositoryBuilder::new()
    }

    /// The ids of its sinks, in the order they were given.
    pub fn sinks(&self) -> impl Iterator<Item = &SinkId> {
        self.0.sinks.iter().map(|s| s.id())
    }

    /// Backs `source` up as a new backup of `set`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooFewCopies`] when the backup exists on fewer sinks than required; the error's context has
    /// its `id`. After any other error there is no backup, and what was written for it is removed.
    pub fn backup<'a>(&'a self, set: &str, source: &'a dyn Source) -> Backup<'a> {
        Backup::new(self, set, source)
    }

    /// The backups of `set`, newest first, and those whose manifest cannot be read.
    pub async fn backups(&self, set: &str) -> Result<BackupList> {
        self.0.catalog(SetName::parse(set)?).list().await
    }

    /// What a backup contains.
    pub async fn contents(&self, set: &str, id: BackupId) -> Result<Contents> {
        Contents::open(&self.0, SetName::parse(set)?, id).await
    }

    /// Reads, decrypts and hashes everything of a backup, on every sink that holds it.
    pub fn verify<'a>(&'a self, set: &str, id: BackupId) -> Verify<'a> {
        Verify::new(self, set, id)
    }

    /// Restores a backup of `set`: choose which, then into what.
    pub fn restore<'a>(&'a self, set: &str) -> RestoreBuilder<'a> {
        RestoreBuilder::new(self, set)
    }

    /// Reads artifacts of a backup as plain bytes, verified: to hand them to another tool.
    pub async fn export(&self, set: &str, id: BackupId) -> Result<Export> {
        Export::open(&self.0, SetName::parse(set)?, id).await
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("sinks", &self.0.sinks.iter().map(|s| s.id()).collect::<Vec<_>>())
            .field("chain", &self.0.chain)
            .field("required_copies", &self.0.required_copies)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// The position of a sink by id.
    fn sink_number(&self, id: &SinkId) -> Result<usize> {
        self.sinks.iter().position(|s| s.id() == id).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "find sink")
                .message("the repository has no sink of this id")
                .with("sink", id)
        })
    }
}
