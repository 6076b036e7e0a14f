//! The operations of the model, each with a repository of its own, as a process of its own would have.

use std::sync::Arc;
use std::time::Duration;

use backup_core::{
    AesGcm, BackupId, Error, ErrorKind, KeepLast, Keyring, MemoryTarget, Repository, Result, Sink, SinkId,
};
use chrono::TimeDelta;

use super::content::{Content, Files};
use super::gate::GateSink;
use super::world::{Verb, World};
use crate::SimulatedClock;

/// How long a call may take, in the simulated time of time-outs.
const STALL: Duration = Duration::from_secs(1);

/// What all operations share.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) set: String,
    pub(super) world: Arc<World>,
    pub(super) sinks: Vec<Arc<dyn Sink>>,
    pub(super) clock: SimulatedClock,
    pub(super) keep: usize,
    pub(super) required: usize,
    /// The number of the newest key; the others open what they wrapped.
    pub(super) key: u8,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Backup { content: Content, incremental: bool },
    Prune { mass: bool },
    Replicate { only: Option<BackupId>, verify: bool },
    Rotate,
    Sweep,
    Verify(BackupId),
    Restore(BackupId),
    List,
    Pin(BackupId),
    Unpin(BackupId),
}

impl Task {
    pub(super) fn verb(&self) -> Verb {
        match self {
            Self::Backup { .. } => Verb::Backup,
            Self::Prune { .. } => Verb::Prune,
            Self::Replicate { .. } => Verb::Replicate,
            Self::Rotate => Verb::Rotate,
            Self::Sweep => Verb::Sweep,
            Self::Verify(_) => Verb::Verify,
            Self::Restore(_) => Verb::Restore,
            Self::List => Verb::List,
            Self::Pin(_) => Verb::Pin,
            Self::Unpin(_) => Verb::Unpin,
        }
    }

    pub(super) fn content(&self) -> Option<Content> {
        match self {
            Self::Backup { content, .. } => Some(content.clone()),
            _ => None,
        }
    }
}

/// A keyring that wraps with the `newest`-th key and opens with all before it.
fn keyring(newest: u8, oldest: u8) -> Keyring {
    let keys = (oldest..=newest).rev().fold(Keyring::builder(), |ring, n| ring.key([n; 32]));
    keys.build().expect("raw keys make a keyring")
}

impl Site {
    /// The repository of operation `op` over the sinks of these numbers.
    fn repository(&self, op: u64, skew: TimeDelta, sinks: &[usize], keyring: Keyring) -> Repository {
        let builder = sinks.iter().fold(Repository::builder(), |builder, number| {
            let (inner, world) = (Arc::clone(&self.sinks[*number]), Arc::clone(&self.world));
            builder.sink(GateSink { inner, number: *number, op, world })
        });
        builder
            .require_copies(self.required.min(sinks.len()))
            .transform(AesGcm::new(keyring))
            .clock(self.clock.reading(skew))
            .stall_timeout(STALL)
            .retries(2, Duration::ZERO)
            .build()
            .expect("the model's repository can be built")
    }

    pub(super) fn all(&self, op: u64, skew: TimeDelta) -> Repository {
        let sinks: Vec<usize> = (0..self.sinks.len()).collect();
        self.repository(op, skew, &sinks, keyring(self.key, 1))
    }

    /// A repository of one sink alone.
    pub(super) fn one(&self, op: u64, sink: usize) -> Repository {
        self.repository(op, TimeDelta::zero(), &[sink], keyring(self.key, 1))
    }

    /// A repository of one sink alone, with only the newest key.
    pub(super) fn alone(&self, op: u64, sink: usize) -> Repository {
        self.repository(op, TimeDelta::zero(), &[sink], keyring(self.key, self.key))
    }

    fn number(&self, id: &SinkId) -> usize {
        self.sinks.iter().position(|sink| sink.id() == id).unwrap_or(usize::MAX)
    }

    /// Does a task, and checks what it says about itself.
    pub(super) async fn run(self, op: u64, skew: TimeDelta, task: Task) -> Result<()> {
        let repo = self.all(op, skew);
        let result = self.task(&repo, op, task).await;
        let words = match &result {
            Ok(()) => "done".to_owned(),
            Err(error) => error.chain(),
        };
        self.world.say(format!("#{op} ends: {words}"));
        if result.is_ok() {
            self.world.succeeded(op);
        }
        if let Err(error) = &result
            && error.kind() == ErrorKind::Internal
        {
            self.world.fail(format!("#{op} failed in a way that is a defect: {words}"));
        }
        result
    }

    async fn task(&self, repo: &Repository, op: u64, task: Task) -> Result<()> {
        let (set, world) = (self.set.as_str(), &self.world);
        match task {
            Task::Backup { content, incremental } => {
                let source = Files(content);
                let run = repo.backup(set, &source);
                let result = if incremental { run.incremental().await } else { run.await };
                self.backed_up(op, result)
            }
            Task::Prune { mass } => {
                let policy = KeepLast::new(self.keep);
                let prune = repo.prune(set, &policy);
                let prune = if mass { prune.allow_mass_delete() } else { prune };
                prune.plan().await?.execute().await?.into_result().map(drop)
            }
            Task::Replicate { only, verify } => {
                let run = match only {
                    Some(id) => repo.replicate(set, id),
                    None => repo.replicate_all(set),
                };
                if verify { run.verify_existing().await } else { run.await }.map(drop)
            }
            Task::Rotate => repo.rotate(set, &keyring(self.key, self.key)).await.map(drop),
            Task::Sweep => repo.sweep(set).await?.into_result().map(drop),
            Task::Verify(id) => repo.verify(set, id).await?.into_result().map(drop),
            Task::Restore(id) => self.restore(repo, op, id).await,
            Task::List => repo.backups(set).await.map(drop),
            Task::Pin(id) => {
                repo.pin(set, id).await?;
                world.pinned(id);
                Ok(())
            }
            Task::Unpin(id) => {
                world.unpinned(id);
                repo.unpin(set, id).await
            }
        }
    }

    fn backed_up(&self, op: u64, result: Result<backup_core::BackupReport>) -> Result<()> {
        match result {
            Ok(done) => {
                let copies: Vec<usize> = done.copies.iter().map(|sink| self.number(sink)).collect();
                self.world.say(format!("#{op} made {}", done.id));
                self.world.backed_up(op, done.id, &copies, true);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::TooFewCopies && error.context_value("id").is_some() => {
                let id = error.context_value("id").and_then(|id| id.parse::<BackupId>().ok());
                if let Some(id) = id {
                    self.world.backed_up(op, id, &[], false);
                }
                Err(error)
            }
            Err(error) => {
                self.world.not_backed_up(op, &error.chain());
                Err(error)
            }
        }
    }

    /// Restores a backup, and insists that it is what was backed up.
    pub(super) async fn restore(&self, repo: &Repository, op: u64, id: BackupId) -> Result<()> {
        let target = MemoryTarget::new();
        if let Err(error) = repo.restore(&self.set).id(id).into(&target).await {
            if !target.is_empty() {
                self.world.fail(format!("#{op}: the restore of {id} failed and left something"));
            }
            return Err(error);
        }
        let restored: Content =
            target.names().into_iter().filter_map(|name| Some((name.clone(), target.get(&name)?))).collect();
        if self.world.content(id) != Some(restored) {
            self.world.fail(format!("#{op}: the restore of {id} gave other bytes"));
            return Err(Error::new(ErrorKind::Corrupt, "restore"));
        }
        Ok(())
    }
}
