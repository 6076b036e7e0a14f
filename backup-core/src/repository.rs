//! [`Repository`]: sinks, a transform chain and keys together, and the verbs on them.

mod access;
mod backup;
mod builder;
mod catalog;
mod check;
mod check_keys;
mod clear;
mod commit;
mod contents;
mod export;
mod follow;
mod guard;
mod ids;
#[cfg(feature = "import")]
mod import;
mod notes;
mod origin;
mod parent;
mod pin;
mod pitr;
mod prune;
mod ranges;
mod recovery_sheet;
mod replicate;
mod restore;
mod rotate;
mod sets;
mod shutdown;
mod state;
mod sweep;
mod verify;
mod wrap;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use backup::{Backup, BackupReport};
pub use builder::RepositoryBuilder;
pub use catalog::{BackupList, Unreadable};
pub use check::{Checkup, SinkCheck};
pub use check_keys::{KeyCheck, KeyReport};
pub use contents::Contents;
pub use export::Export;
pub use follow::{Follow, FollowReport};
#[cfg(feature = "import")]
pub use import::{Import, ImportFailure, ImportReport, Imported};
pub use pitr::{PitrReport, SinkPitr};
pub use prune::{
    Archived, DeletedBackup, NotArchived, NotDeleted, PlannedPrune, Prune, PruneReport, SinkPlan, Spared,
};
pub use recovery_sheet::{RecoverySheet, RecoverySheetBuilder};
pub use replicate::{Replica, Replicate, ReplicateFailure, ReplicateReport};
pub use restore::{Loss, Replayed, RestoreBuilder, RestoreOutcome, RestoreTo};
pub use rotate::{KeptWrap, Rotate, RotateFailure, RotateReport, Rotated};
pub use sets::SetList;
pub use sweep::{Sweep, SweepReport, Swept};
pub use verify::{CopyProblem, Verify, VerifyReport};

use crate::clock::Clock;
use crate::engine::progress::Watch;
use crate::engine::retry::Patience;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Keyring, Signatures};
use crate::log::LogSource;
use crate::name::{BackupId, SetName, SinkId};
use crate::observer::Observer;
use crate::placement::{CopyRule, Placement, Shortfall};
use crate::retention::RetentionPolicy;
use crate::sink::Sink;
use crate::source::{Source, Warning};
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

#[derive(Clone)]
struct Inner {
    sinks: Vec<Arc<dyn Sink>>,
    /// Where each of `sinks` is.
    placements: Vec<Placement>,
    production: Placement,
    rule: Option<CopyRule>,
    /// What is unwise about the sinks.
    warnings: Vec<Warning>,
    required_copies: usize,
    require_encryption: bool,
    chain: Arc<Chain>,
    known: Vec<Arc<dyn Transform>>,
    keyring: Option<Keyring>,
    /// Who may seal manifests by signature.
    signatures: Option<Signatures>,
    /// Where a host that cannot read its own backups keeps what it needs for the next incremental.
    state: Option<PathBuf>,
    workers: Workers,
    clock: Clock,
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
        self.0.sinks.iter().map(super::sink::Sink::id)
    }

    /// What is unwise about the sinks together: two on one file system. Every backup's report repeats it.
    pub fn warnings(&self) -> &[Warning] {
        &self.0.warnings
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

    /// Tries the source and every sink out without backing anything up: what they deny, what is unwise, how much space there
    /// is. For the start of a service and for the first evening with a new server.
    pub async fn check(&self, source: &dyn Source) -> Checkup {
        self.0.check(source, &self.0.watch(Vec::new())).await
    }

    /// Stores the continuous log of `source`, slice by slice, beside the backups of `set` that it continues, until it is
    /// stopped.
    ///
    /// Where it goes on after a restart, and what it does about gaps and sinks that were away, is said in
    /// `docs/architecture.md`.
    ///
    /// ```
    /// # async fn example() -> backup_core::Result<()> {
    /// use std::time::Duration;
    /// use backup_core::{MemorySink, Repository, Until};
    /// use backup_testkit::{LogFile, LogTarget};
    ///
    /// let repo = Repository::builder().sink(MemorySink::new()).build()?;
    /// # let dir = tempfile::tempdir().unwrap();
    /// let store = LogFile::create(dir.path());
    /// repo.backup("shop/orders", &store.state()).await?; // the base
    /// store.append("an order");
    ///
    /// let log = store.source();
    /// let stop = tokio::time::sleep(Duration::from_millis(50));
    /// let report =
    ///     repo.follow("shop/orders", &log).slice(Duration::from_millis(10), 16 << 20).run_until(stop).await?;
    /// assert_eq!(report.slices, 1);
    ///
    /// let target = LogTarget::new();
    /// repo.restore("shop/orders").until(Until::End).into(&target).await?;
    /// assert!(target.text().unwrap().ends_with("an order\n"));
    /// # Ok(()) }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LogGap`] when the source no longer has what follows the last slice: make a new base, and follow again.
    /// [`ErrorKind::NotFound`] when the set has no base yet. Other errors after an hour without a stored slice
    /// ([`Follow::give_up_after`]).
    pub fn follow<'a>(&'a self, set: &str, source: &'a dyn LogSource) -> Follow<'a> {
        Follow::new(self, set, source)
    }

    /// The backups of `set`, newest first, and those whose manifest cannot be read.
    pub async fn backups(&self, set: &str) -> Result<BackupList> {
        self.0.catalog(SetName::parse(set)?).list().await
    }

    /// The sets that have a backup. Lists every sink whole.
    pub async fn sets(&self) -> Result<SetList> {
        self.0.sets(&self.0.watch(Vec::new())).await
    }

    /// Lets the backups of `set` be opened by `keyring`, and no longer by the keys of this repository that do not wrap
    /// in it: writes new wraps, proves that they open, and deletes the old ones. Give new backups the new keyring first,
    /// else they are wrapped with the old keys. A new passphrase must be permitted by
    /// [`allow_new_passphrase`](crate::KeyringBuilder::allow_new_passphrase).
    pub fn rotate<'a>(&'a self, set: &str, keyring: &Keyring) -> Rotate<'a> {
        Rotate::new(self, Some(set), keyring)
    }

    /// Like [`rotate`](Self::rotate), for every set.
    pub fn rotate_all<'a>(&'a self, keyring: &Keyring) -> Rotate<'a> {
        Rotate::new(self, None, keyring)
    }

    /// Opens the newest backup of every set with each key of the keyring alone.
    pub async fn check_keys(&self) -> Result<KeyReport> {
        self.0.check_keys().await
    }

    /// A text to be printed and kept: where the backups are, which keys open them, and how to restore them by hand.
    pub fn recovery_sheet(&self) -> RecoverySheetBuilder<'_> {
        RecoverySheetBuilder::new(self)
    }

    /// What a backup contains.
    pub async fn contents(&self, set: &str, id: BackupId) -> Result<Contents> {
        Contents::open(&self.0, SetName::parse(set)?, id).await
    }

    /// Reads, decrypts and hashes everything of a backup, on every sink that holds it.
    pub fn verify<'a>(&'a self, set: &str, id: BackupId) -> Verify<'a> {
        Verify::new(self, set, id)
    }

    /// Copies a backup, and those it refers to, to the sinks that lack it, and heals damaged objects from intact copies.
    pub fn replicate<'a>(&'a self, set: &str, id: BackupId) -> Replicate<'a> {
        Replicate::new(self, set, Some(id))
    }

    /// Like [`replicate`](Self::replicate), for every backup of `set`.
    pub fn replicate_all<'a>(&'a self, set: &str) -> Replicate<'a> {
        Replicate::new(self, set, None)
    }

    /// Restores a backup of `set`: choose which, then into what.
    pub fn restore<'a>(&'a self, set: &str) -> RestoreBuilder<'a> {
        RestoreBuilder::new(self, set)
    }

    /// Imports the old backups in a folder as backups of `set`, with the times they were made at: plain files, and those
    /// of `gzip`, `tar -z`, `openssl enc -aes-256-cbc -pbkdf2` and `gpg`, told apart by the extensions of their names.
    /// What they hold is stored decoded and decrypted, through the chain of this repository. A file that is cut off,
    /// damaged or opened with a wrong password becomes no backup; of plain files and of those that only `openssl`
    /// protects, no more than their beginning tells.
    ///
    /// ```
    /// # async fn example() -> backup_core::Result<()> {
    /// # let folder = std::env::temp_dir().join(format!("import-example-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder).map_err(|e| backup_core::Error::io("example", e))?;
    /// # std::fs::write(folder.join("app_20241224_0200.sql"), "SELECT 1;").map_err(|e| backup_core::Error::io("example", e))?;
    /// use backup_core::{MemorySink, Repository, Tz};
    ///
    /// let repo = Repository::builder().sink(MemorySink::new()).build()?;
    /// let old = || repo.import("app/postgres", &folder).pattern("app_%Y%m%d_%H%M.sql*").time_zone(Tz::Europe__Berlin);
    /// let report = old().openssl("the password of the .enc files").await?;
    /// assert!(report.imported[0].id.to_string().starts_with("20241224T010000Z"));
    /// assert!(old().await?.imported.is_empty()); // nothing twice
    /// # std::fs::remove_dir_all(&folder).map_err(|e| backup_core::Error::io("example", e))?;
    /// # Ok(()) }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    #[cfg(feature = "import")]
    pub fn import<'a>(&'a self, set: &str, folder: impl Into<PathBuf>) -> Import<'a> {
        Import::new(self, set, folder.into())
    }

    /// Plans which backups of `set` go by `policy`, and then deletes them.
    ///
    /// ```
    /// # async fn example() -> backup_core::Result<()> {
    /// use backup_core::{Gfs, MemorySink, MemorySource, Repository};
    ///
    /// let repo = Repository::builder().sink(MemorySink::new()).build()?;
    /// repo.backup("app/data", &MemorySource::new().artifact("greeting", "hello")).await?;
    ///
    /// let plan = repo.prune("app/data", &Gfs::new().daily(30).monthly(12)).plan().await?;
    /// println!("{plan}"); // what goes and what stays on each sink, and why
    /// let report = plan.execute().await?.into_result()?;
    /// assert!(report.deleted.is_empty()); // never the last one
    /// # Ok(()) }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn prune<'a>(&'a self, set: &str, policy: &'a dyn RetentionPolicy) -> Prune<'a> {
        Prune::new(self, set, policy)
    }

    /// Removes what runs of `set` that died left behind, and unfinished uploads.
    pub fn sweep<'a>(&'a self, set: &str) -> Sweep<'a> {
        Sweep::new(self, set)
    }

    /// The intervals in which every moment can be restored from the backups and log slices of `set`, from all sinks
    /// together and from each alone, and the gaps between slices. [`RestoreBuilder::until`] restores to such a moment.
    pub async fn pitr_ranges(&self, set: &str) -> Result<PitrReport> {
        Ok(PitrReport::new(self.backups(set).await?, self.sinks()))
    }

    /// Reads artifacts of a backup as plain bytes, verified: to hand them to another tool.
    pub async fn export(&self, set: &str, id: BackupId) -> Result<Export> {
        Export::open(&self.0, SetName::parse(set)?, id).await
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("sinks", &self.0.sinks.iter().map(super::sink::Sink::id).collect::<Vec<_>>())
            .field("chain", &self.0.chain)
            .field("required_copies", &self.0.required_copies)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// The watch of a run that `more` observe beside the repository's observers.
    fn watch(&self, more: Vec<Arc<dyn Observer>>) -> Watch {
        Watch::new(self.observers.iter().cloned().chain(more).collect())
    }

    /// Which parts of the copy rule are not kept when these sinks hold a copy.
    fn shortfalls<'a>(&self, copies: impl Iterator<Item = &'a SinkId>) -> Vec<Shortfall> {
        let Some(rule) = &self.rule else { return Vec::new() };
        let held: Vec<_> = copies.filter_map(|id| self.sinks.iter().position(|s| s.id() == id)).collect();
        rule.shortfalls(&self.production, held.iter().filter_map(|n| self.placements.get(*n)))
    }

    /// The position of a sink by id.
    fn sink_number(&self, id: &SinkId) -> Result<usize> {
        self.sinks.iter().position(|s| s.id() == id).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "find sink")
                .message("the repository has no sink of this id")
                .with("sink", id)
        })
    }
}
