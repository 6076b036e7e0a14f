//! [`LogTarget`]: restores a state and replays the log on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use backup_core::{
    ArtifactFormat, ArtifactReader, Atomicity, Error, ErrorKind, LogPosition, Proof, Proofs, Restore,
    RestorePlan, RestoreReport, RestoreTarget, Result, SliceReader, Undo, Until,
};

use super::{ENTRIES, LINES, Place, STATE, lines, prove, time_of};

/// A place in memory that a [`LogState`](super::LogState) is restored to. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct LogTarget(Arc<Mutex<Option<Vec<u8>>>>);

impl LogTarget {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// The lines that were restored; `None` while nothing was.
    pub fn text(&self) -> Option<String> {
        lock(&self.0).as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl RestoreTarget for LogTarget {
    fn accepts(&self, format: &ArtifactFormat) -> bool {
        [STATE, LINES].contains(format)
    }

    fn atomicity(&self) -> Atomicity {
        Atomicity::Swap
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        if !plan.replace && lock(&self.0).is_some() {
            return Err(Error::new(ErrorKind::TargetNotEmpty, "restore log"));
        }
        let reached = plan.log_position.as_ref().map(Place::parse).transpose()?;
        Ok(Box::new(Replaying {
            place: Arc::clone(&self.0),
            until: plan.until.clone(),
            staged: Mutex::new(Staged { bytes: Vec::new(), reached, done: false }),
        }))
    }
}

struct Replaying {
    place: Arc<Mutex<Option<Vec<u8>>>>,
    until: Option<Until>,
    staged: Mutex<Staged>,
}

struct Staged {
    bytes: Vec<u8>,
    /// The end of the last line in `bytes`.
    reached: Option<Place>,
    /// A line was met that is not wanted.
    done: bool,
}

impl Replaying {
    fn wants(&self, line: &[u8], end: Place) -> Result<bool> {
        Ok(match &self.until {
            Some(Until::Time(time)) => time_of(line)? <= *time,
            Some(Until::Position(position)) => end <= Place::parse(position)?,
            _ => true,
        })
    }

    /// Applies the lines of one file that were not applied before.
    fn apply(&self, mut at: Place, bytes: &[u8]) -> Result<()> {
        let mut staged = lock(&self.staged);
        for line in lines(bytes) {
            let end = Place { offset: at.offset + line.len() as u64, ..at };
            let known = staged.reached.is_some_and(|reached| end <= reached);
            if !known && !staged.done {
                if self.wants(line, end)? {
                    staged.bytes.extend_from_slice(line);
                    staged.reached = Some(end);
                } else {
                    staged.done = true;
                }
            }
            at = end;
        }
        Ok(())
    }
}

#[async_trait]
impl Restore for Replaying {
    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let bytes = crate::collect(reader.stream().await?).await?;
        lock(&self.staged).bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn prove(&self) -> Result<Proofs> {
        Ok([(ENTRIES.to_owned(), prove(&lock(&self.staged).bytes))].into())
    }

    async fn replay(&self, slice: SliceReader) -> Result<()> {
        let from = Place::parse(&slice.slice.from)?;
        if lock(&self.staged).reached.is_none_or(|reached| from > reached) {
            return Err(Error::new(ErrorKind::LogGap, "replay log").with("slice", slice.slice.id));
        }
        let mut proof = Proof::empty();
        for reader in &slice.artifacts {
            let start = reader.meta().name.strip_prefix("lines-").map(|place| place.replace('-', "."));
            let start = Place::parse(&LogPosition::parse(start.unwrap_or_default())?)?;
            let bytes = crate::collect(reader.stream().await?).await?;
            proof.merge(&prove(&bytes));
            self.apply(start, &bytes)?;
        }
        if slice.proofs.get(ENTRIES) != Some(&proof) {
            return Err(Error::new(ErrorKind::ProofMismatch, "replay log").with("slice", slice.slice.id));
        }
        let to = Place::parse(&slice.slice.to)?;
        let mut staged = lock(&self.staged);
        if !staged.done {
            staged.reached = staged.reached.max(Some(to));
        }
        Ok(())
    }

    async fn replayed(&self) -> Result<LogPosition> {
        let reached = lock(&self.staged).reached;
        reached.map(Place::position).ok_or_else(|| Error::new(ErrorKind::Internal, "replay log"))
    }

    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let bytes = std::mem::take(&mut lock(&self.staged).bytes);
        let report = RestoreReport { bytes: bytes.len() as u64, ..RestoreReport::default() };
        *lock(&self.place) = Some(bytes);
        Ok((report, None))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
