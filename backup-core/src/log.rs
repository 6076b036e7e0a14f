//! Continuous logs: [`LogSource`].

use std::fmt::Debug;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::retention::LogPosition;
use crate::source::Snapshot;

/// A datastore's log of changes (an oplog, write-ahead log, append-only file) that is stored slice by slice.
///
/// [`Repository::follow`](crate::Repository::follow) owns the loop: it asks where a slice [may be cut](LogSource::cut),
/// takes [exactly that range](LogSource::slice) through the same engine as a backup, and tells the source what it
/// [need not keep](LogSource::release) any more.
///
/// # Positions
///
/// A [`LogPosition`] is opaque but for its order: the source writes positions so that the order of their text is the order of
/// the log. A log that can begin again (a datastore made anew, a timeline after a restore) puts what tells its lives
/// apart, and grows, before the rest: `00000002.0000000003000148`.
///
/// # Contract
///
/// * Both ends of a slice are places between two entries; the slice holds every entry from `from` to `to`, and
///   no other. The same range gives the same entries whenever it is asked for, as long as the source has it.
/// * Entries that are not final (that could be rolled back) lie behind every cut.
/// * Where the source no longer has the entries after a position, it fails with
///   [`ErrorKind::LogGap`](crate::ErrorKind::LogGap), and never begins later instead. [`log_gap`](crate::log_gap) makes this error.
/// * Proofs of joining slices add up to that of the whole range.
/// * Dropping a future, a snapshot or one of its streams leaves nothing behind on the server.
/// * `Debug` shows no secret.
///
/// `backup_testkit::LogSourceSuite` checks an implementation.
#[async_trait]
pub trait LogSource: Debug + Send + Sync {
    /// What this is: the [`Source::kind`](crate::Source::kind) of the backups its log continues, or a name of its own.
    fn kind(&self) -> &'static str;

    /// Where a slice that begins at `request.from` can end by now; `None` while there is nothing new. Polled often: cheap.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LogGap`](crate::ErrorKind::LogGap) where the source no longer has what follows `request.from`.
    async fn cut(&self, request: CutRequest<'_>) -> Result<Option<Cut>>;

    /// Opens the entries of `slice`. The snapshot's [`finish`](Snapshot::finish) says in
    /// [`log_position`](crate::SourceReport::log_position) where the last entry it gave ends, which must be the slice's
    /// `to`. [`close`](Snapshot::close) frees what the snapshot holds and moves no position.
    async fn slice(&self, slice: &Cut, cancelled: CancellationToken) -> Result<Box<dyn Snapshot>>;

    /// Everything before `position` is on as many sinks as required: the source need not keep it any longer. A
    /// replication slot advances here, and only here.
    async fn release(&self, position: &LogPosition) -> Result<()> {
        let _ = position;
        Ok(())
    }
}

/// What the loop asks of a source.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CutRequest<'a> {
    /// Where the slice begins.
    pub from: &'a LogPosition,
    /// How many plain bytes a slice should have at most. A goal: a single entry, or segment, may be larger.
    pub bytes: u64,
    /// Whether the slice's time is up: what there is will be taken. A source whose log comes in segments may close the
    /// present one now (`pg_switch_wal`).
    pub due: bool,
}

impl<'a> CutRequest<'a> {
    /// A request for what there is after `from`, at most about `bytes` of it.
    pub fn new(from: &'a LogPosition, bytes: u64, due: bool) -> Self {
        Self { from, bytes, due }
    }
}

/// A range of the log that may be stored as a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where it begins: what was asked for.
    pub from: LogPosition,
    /// Where it ends; after `from`.
    pub to: LogPosition,
    /// The moment of its first entry, by the datastore's clock.
    pub from_time: DateTime<Utc>,
    /// The moment up to which it is complete, by the datastore's clock: no later slice has an earlier entry.
    pub to_time: DateTime<Utc>,
    /// Whether it has the bytes that were asked for, so that waiting for more is of no use.
    pub full: bool,
}

/// The error of a log that does not go on where it should.
pub fn gap(operation: &'static str, position: &LogPosition) -> crate::Error {
    crate::Error::new(crate::ErrorKind::LogGap, operation)
        .message("the log no longer has what follows this position; make a new full backup, from which a new range begins")
        .with("position", position)
}
