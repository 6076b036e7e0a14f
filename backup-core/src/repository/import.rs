//! The import verb: backups that other tools made become backups of a set, with the times they were made at.

mod file;
mod gpg;
mod layers;
mod openssl;
mod pattern;
mod report;
mod sniff;

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use self::file::{Limits, OldBackup, Secrets, Seen};
use self::openssl::Password;
use self::pattern::Pattern;
use super::Repository;
use super::shutdown::{Shutdown, or_wind_down};
use crate::error::{Error, ErrorKind, Result};
use crate::name::BackupId;
use crate::observer::Observer;
use crate::retention::CLOCK_TOLERANCE;

pub use report::{ImportFailure, ImportReport, Imported};

/// Rounds of PBKDF2 unless told otherwise: those of `openssl enc -pbkdf2` without `-iter`.
const OPENSSL_ROUNDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(9_999);
/// Most rounds.
const MAX_ROUNDS: u32 = 10_000_000;
/// Plain bytes that may come out of one file unless told otherwise: 1 TiB.
const MAX_SIZE: u64 = 1 << 40;
/// Plain bytes for each byte of a file unless told otherwise.
const MAX_RATIO: u64 = 200;
/// Most files of a folder.
const MAX_FILES: usize = 1_000_000;

/// Label with the name of the file that was imported.
const FILE_LABEL: &str = "imported";
/// Label with the size of that file in bytes.
const SIZE_LABEL: &str = "imported-bytes";

/// An import to be made: set options, then await.
///
/// Awaiting it fails when any file could not be imported; [`report`](Self::report) gives the report even then. Running it
/// again is always safe: a file is imported once, recognised by its name, its size and the time of its backup, which labels
/// of the backup record (`imported`, `imported-bytes`), readable by anyone who may read the sinks.
#[must_use = "an import runs when it is awaited"]
pub struct Import<'a> {
    work: Work<'a>,
    rounds: Option<u32>,
    shutdown: Option<Shutdown<'a>>,
}

impl<'a> Import<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str, folder: PathBuf) -> Self {
        let work = Work {
            repository,
            set: set.to_owned(),
            folder,
            pattern: "*".to_owned(),
            zone: Tz::UTC,
            secrets: Secrets::default(),
            limits: Limits { size: MAX_SIZE, ratio: MAX_RATIO },
            labels: BTreeMap::new(),
            observers: Vec::new(),
        };
        Self { work, rounds: None, shutdown: None }
    }

    /// Which files, and the time in their names: `*` and `?`, and `%Y %m %d %j %H %M %S %s` as in `date(1)`; `%%` is a
    /// `%`. A date alone is its midnight. Where the pattern has no time, the modification time of the file is taken.
    /// Default: every file.
    pub fn pattern(mut self, pattern: impl Into<String>) -> Self {
        self.work.pattern = pattern.into();
        self
    }

    /// The time zone of the clock that named the files. Default UTC.
    pub fn time_zone(mut self, zone: Tz) -> Self {
        self.work.zone = zone;
        self
    }

    /// The password of files that end with `.enc`: `openssl enc -aes-256-cbc -pbkdf2`, with SHA-256.
    pub fn openssl(mut self, password: impl Into<String>) -> Self {
        let text = Zeroizing::new(password.into());
        self.work.secrets.openssl = Some(Password { text, rounds: OPENSSL_ROUNDS });
        self
    }

    /// The number that `openssl enc` was given as `-iter`. Default 10,000, as OpenSSL has it; at most 10,000,000.
    pub fn openssl_iterations(mut self, rounds: u32) -> Self {
        self.rounds = Some(rounds);
        self
    }

    /// The passphrase of files that end with `.gpg`. It reaches the `gpg` command through a pipe. Without it, gpg asks the
    /// agent of the user, as it does for files encrypted to a key.
    pub fn gpg_passphrase(mut self, passphrase: impl Into<String>) -> Self {
        self.work.secrets.gpg.passphrase = Some(Zeroizing::new(passphrase.into()));
        self
    }

    /// The home directory of gpg, where it is not the user's.
    pub fn gpg_home(mut self, path: impl Into<PathBuf>) -> Self {
        self.work.secrets.gpg.home = Some(path.into());
        self
    }

    /// Most plain bytes that may come out of one file. Default 1 TiB.
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.work.limits.size = bytes;
        self
    }

    /// Most plain bytes for each byte of a file; 16 MiB may come out of any. Default 200.
    pub fn max_ratio(mut self, ratio: u64) -> Self {
        self.work.limits.ratio = ratio;
        self
    }

    /// Adds a label to each of the new backups.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.work.labels.insert(name.into(), value.into());
        self
    }

    /// Watches the backups being made, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.work.observers.push(Arc::new(observer));
        self
    }

    /// Stops the run, cleanly and with [`ErrorKind::Cancelled`], when `shutdown` completes. What was imported stays.
    pub fn run_until(mut self, shutdown: impl Future<Output = ()> + Send + 'a) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    /// Runs, and reports what failed beside what did not.
    ///
    /// # Errors
    ///
    /// Only what keeps the run from beginning: [`ErrorKind::InvalidInput`] for a wrong name or pattern,
    /// [`ErrorKind::NotFound`] when no file matches, a folder or a sink that cannot be listed.
    pub async fn report(self) -> Result<ImportReport> {
        let begun = Instant::now();
        let Self { mut work, rounds, shutdown } = self;
        if let Some(rounds) = rounds {
            work.set_rounds(rounds)?;
        }
        let pattern = Pattern::parse(&work.pattern)?;
        let mut report = ImportReport::default();
        let files = work.files(&pattern, &mut report).await?;
        let there = work.there().await?;
        let stop = CancellationToken::new();
        or_wind_down(shutdown, &stop, work.all(files, &there, &stop, &mut report)).await;
        report.elapsed = begun.elapsed();
        Ok(report)
    }
}

impl<'a> IntoFuture for Import<'a> {
    type Output = Result<ImportReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        async { self.report().await?.into_result() }.boxed()
    }
}

impl fmt::Debug for Import<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import")
            .field("set", &self.work.set)
            .field("folder", &self.work.folder)
            .field("pattern", &self.work.pattern)
            .finish_non_exhaustive()
    }
}

/// A described import.
struct Work<'a> {
    repository: &'a Repository,
    set: String,
    folder: PathBuf,
    pattern: String,
    zone: Tz,
    secrets: Secrets,
    limits: Limits,
    labels: BTreeMap<String, String>,
    observers: Vec<Arc<dyn Observer>>,
}

impl Work<'_> {
    fn set_rounds(&mut self, rounds: u32) -> Result<()> {
        let checked = NonZeroU32::new(rounds).filter(|rounds| rounds.get() <= MAX_ROUNDS);
        match (checked, &mut self.secrets.openssl) {
            (Some(rounds), Some(password)) => password.rounds = rounds,
            (None, _) => return Err(Error::invalid("import", "the iterations are between 1 and 10,000,000")),
            (_, None) => return Err(Error::invalid("import", "iterations need a password: `openssl`")),
        }
        Ok(())
    }

    /// The files that match, oldest first.
    async fn files(&self, pattern: &Pattern, report: &mut ImportReport) -> Result<Vec<Candidate>> {
        let folder = self.folder.clone();
        let listed = tokio::task::spawn_blocking(move || list(&folder)).await;
        let listed = listed.map_err(|e| Error::new(ErrorKind::Internal, "import").caused_by(e))??;
        let mut files = Vec::new();
        let latest = self.repository.0.clock.now() + CLOCK_TOLERANCE;
        for (name, seen) in listed {
            let Some(found) = pattern.matches(&name) else {
                report.unmatched.push(name);
                continue;
            };
            let modified = || {
                seen.modified.map(DateTime::<Utc>::from).ok_or_else(|| {
                    Error::invalid(
                        "import",
                        "neither the name nor the file system says when the file was made",
                    )
                })
            };
            let time =
                found.time(self.zone).and_then(|said| said.map_or_else(modified, Ok)).and_then(|time| {
                    if time <= latest {
                        return Ok(time);
                    }
                    Err(Error::invalid(
                        "import",
                        "the file is from the future; correct its name or the time zone",
                    ))
                });
            match time {
                Ok(time) => files.push(Candidate { name, seen, time }),
                Err(error) => report.failures.push(ImportFailure { file: name, error }),
            }
        }
        if files.is_empty() && report.failures.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "import")
                .message("no file of the folder matches the pattern")
                .with("folder", self.folder.display())
                .with("pattern", &self.pattern)
                .with("files", report.unmatched.len()));
        }
        files.sort_by(|a, b| (a.time, &a.name).cmp(&(b.time, &b.name)));
        Ok(files)
    }

    /// What was imported before.
    async fn there(&self) -> Result<There> {
        let list = self.repository.backups(&self.set).await?;
        let mut there = There::default();
        for backup in list.iter() {
            let labels = (backup.labels.get(FILE_LABEL), backup.labels.get(SIZE_LABEL));
            if let (Some(file), Some(size)) = labels {
                let key = (file.clone(), size.clone(), backup.id.time());
                there.files.insert(key, (backup.id, backup.plain_size));
            }
        }
        there.unreadable = list.unreadable.iter().map(|u| u.id).collect();
        match list.unreachable.into_iter().next() {
            None => Ok(there),
            Some((sink, error)) => Err(Error::new(error.kind(), "import")
                .message("a sink cannot be listed, so what was imported before is not known; repair it and import again")
                .with("sink", sink)
                .caused_by(error)),
        }
    }

    async fn all(
        &self,
        files: Vec<Candidate>,
        there: &There,
        stop: &CancellationToken,
        report: &mut ImportReport,
    ) {
        for candidate in files {
            let second = BackupId::new(candidate.time, 0).time();
            let key = (candidate.name.clone(), candidate.seen.size.to_string(), second);
            if let Some((id, plain_size)) = there.files.get(&key) {
                report.already.push(candidate.imported(*id, *plain_size));
                continue;
            }
            let result = match there.unreadable.iter().find(|id| id.time() == second) {
                _ if stop.is_cancelled() => Err(Error::cancelled("import")),
                Some(id) => Err(Error::new(ErrorKind::AlreadyExists, "import")
                    .message("a backup of the same second cannot be opened: it may be this file; repair or remove it")
                    .with("id", id)),
                None => self.one(&candidate, stop).await,
            };
            match result {
                Ok(imported) => report.imported.push(imported),
                Err(error) => report.failures.push(ImportFailure { file: candidate.name, error }),
            }
        }
    }

    async fn one(&self, candidate: &Candidate, stop: &CancellationToken) -> Result<Imported> {
        let source = OldBackup {
            path: self.folder.join(&candidate.name),
            name: candidate.name.clone(),
            seen: candidate.seen.clone(),
            secrets: self.secrets.clone(),
            limits: self.limits,
            workers: self.repository.0.workers.clone(),
        };
        let mut backup = self.repository.backup(&self.set, &source).started_at(candidate.time);
        for (name, value) in &self.labels {
            backup = backup.label(name, value);
        }
        for observer in &self.observers {
            backup = backup.shared_observer(Arc::clone(observer));
        }
        let backup = backup
            .label(FILE_LABEL, &candidate.name)
            .label(SIZE_LABEL, candidate.seen.size.to_string())
            .run_until(stop.clone().cancelled_owned());
        let done = backup.await?;
        Ok(candidate.imported(done.id, done.plain_size))
    }
}

/// A file to import.
struct Candidate {
    name: String,
    seen: Seen,
    time: DateTime<Utc>,
}

impl Candidate {
    fn imported(&self, id: BackupId, plain_size: u64) -> Imported {
        Imported { file: self.name.clone(), id, size: self.seen.size, plain_size }
    }
}

/// What is in the set already.
#[derive(Default)]
struct There {
    /// By file name, size and time, to the second.
    files: BTreeMap<(String, String, DateTime<Utc>), (BackupId, u64)>,
    unreadable: Vec<BackupId>,
}

/// The plain files of a folder. Links, directories and names that are not UTF-8 are no backups that a pattern could name.
fn list(folder: &Path) -> Result<Vec<(String, Seen)>> {
    let io = |e| Error::io("list folder", e).with("folder", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let metadata = entry.metadata().map_err(io)?;
        let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) else { continue };
        if files.len() == MAX_FILES {
            return Err(Error::new(ErrorKind::LimitExceeded, "list folder")
                .message("the folder has more than a million files")
                .with("folder", folder.display()));
        }
        files.push((name, Seen::from(&metadata)));
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}
