//! Describing a repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Inner, Repository};
use crate::clock::Clock;
use crate::engine::retry::Patience;
use crate::engine::{encode, fanout, feed, index};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Keyring, Signatures};
use crate::observer::Observer;
use crate::placement::{CopyRule, Placement};
use crate::sink::Sink;
use crate::source::Warning;
use crate::transform::{AesGcm, Chain, Stage, Transform};
use crate::workers::Workers;

/// Bytes a run may hold in its pipelines unless told otherwise.
const DEFAULT_BUDGET: usize = 64 * 1024 * 1024;

/// Collects what a [`Repository`] is made of. Mistakes are reported once, by [`build`](Self::build).
#[derive(Debug)]
pub struct RepositoryBuilder {
    sinks: Vec<Arc<dyn Sink>>,
    placements: Vec<Placement>,
    production: Placement,
    rule: Option<CopyRule>,
    required_copies: Option<usize>,
    require_encryption: bool,
    transforms: Vec<Arc<dyn Transform>>,
    readers: Vec<Arc<dyn Transform>>,
    keyring: Option<Keyring>,
    state: Option<PathBuf>,
    patience: Patience,
    budget: usize,
    observers: Observers,
    clock: Clock,
}

#[derive(Default)]
struct Observers(Vec<Arc<dyn Observer>>);

impl std::fmt::Debug for Observers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} observers", self.0.len())
    }
}

impl RepositoryBuilder {
    pub(super) fn new() -> Self {
        Self {
            sinks: Vec::new(),
            placements: Vec::new(),
            production: Placement::new(),
            rule: None,
            required_copies: None,
            require_encryption: false,
            transforms: Vec::new(),
            readers: Vec::new(),
            keyring: None,
            state: None,
            patience: Patience::default(),
            budget: DEFAULT_BUDGET,
            observers: Observers::default(),
            clock: Clock::default(),
        }
    }

    /// Adds a sink. Every sink gets a whole copy of every backup.
    pub fn sink(self, sink: impl Sink + 'static) -> Self {
        self.sink_at(sink, Placement::new())
    }

    /// Adds a sink and says where it is, for [`require`](Self::require).
    pub fn sink_at(mut self, sink: impl Sink + 'static, placement: Placement) -> Self {
        self.sinks.push(Arc::new(sink));
        self.placements.push(placement);
        self
    }

    /// Says where the data that is backed up is itself.
    pub fn production(mut self, placement: Placement) -> Self {
        self.production = placement;
        self
    }

    /// Requires copies to be spread: `require(copies(3).media(2).off_site(1))`. A backup whose good copies do not keep
    /// the rule is degraded and its verb fails with [`ErrorKind::TooFewCopies`]. Sets
    /// [`require_copies`](Self::require_copies) to as many as the rule needs, unless that is given.
    pub fn require(mut self, rule: CopyRule) -> Self {
        self.rule = Some(rule);
        self
    }

    /// How many good copies a backup needs to count as complete. Default: one per sink.
    pub fn require_copies(mut self, copies: usize) -> Self {
        self.required_copies = Some(copies);
        self
    }

    /// Adds a transform at the end of the chain: compression first, then encryption.
    pub fn transform(mut self, transform: impl Transform + 'static) -> Self {
        self.transforms.push(Arc::new(transform));
        self
    }

    /// Adds a transform that reads backups and writes none: that of another repository, or of an earlier time. Whom it
    /// trusts to sign manifests is trusted.
    pub fn reads(mut self, transform: impl Transform + 'static) -> Self {
        self.readers.push(Arc::new(transform));
        self
    }

    /// Where a host that cannot read its own backups (one with public keys alone) keeps the list of items of the newest
    /// one of each set, for the next incremental. The directory is created when it is needed, readable by its owner alone:
    /// the names in it are not encrypted. Without it such a host makes full backups only.
    pub fn state_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.state = Some(path.into());
        self
    }

    /// Keys to open encrypted backups with, where no transform of the chain brings a keyring: to read a repository
    /// without writing to it.
    pub fn keyring(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// Refuses to write, and reports when verifying, anything that is readable without a key.
    pub fn require_encryption(mut self) -> Self {
        self.require_encryption = true;
        self
    }

    /// The bytes that the pipelines of one run may hold together. Default 64 MiB.
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// How long a sink may take for one operation or one chunk before it is given up. Default two minutes.
    pub fn stall_timeout(mut self, limit: Duration) -> Self {
        self.patience.stall = limit;
        self
    }

    /// How long a source may deliver nothing before it is given up. Default half an hour.
    pub fn source_stall_timeout(mut self, limit: Duration) -> Self {
        self.patience.source_stall = limit;
        self
    }

    /// How often a sink operation that failed for a passing reason is repeated, and the wait before the first
    /// repetition; it doubles each time. Default four times, 200 ms.
    pub fn retries(mut self, times: usize, first_wait: Duration) -> Self {
        self.patience.retries = times;
        self.patience.first_wait = first_wait;
        self
    }

    /// Watches every verb of this repository.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.0.push(Arc::new(observer));
        self
    }

    /// Takes the time of day from `clock` instead of the system: for tests and simulations. It dates ids and markers and
    /// tells how old those of others are; time-outs and retries are not measured by it.
    pub fn clock(mut self, clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(clock);
        self
    }

    /// Checks everything and builds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for no sink, sinks of one name, more copies than sinks, a chain whose order
    /// cannot work, or a budget too small for one artifact; [`ErrorKind::Unencrypted`] when encryption is required
    /// and the chain has none.
    pub fn build(mut self) -> Result<Repository> {
        let refuse = |why: &'static str| Err(Error::invalid("build repository", why));
        if self.sinks.is_empty() {
            return refuse("a repository needs at least one sink");
        }
        let ids: BTreeSet<_> = self.sinks.iter().map(super::super::sink::Sink::id).collect();
        if ids.len() != self.sinks.len() {
            return refuse("two sinks have the same id; give each its own");
        }
        if let Some(rule) = &self.rule {
            let short = rule.shortfalls(&self.production, &self.placements);
            if !short.is_empty() {
                let short: Vec<_> = short.iter().map(ToString::to_string).collect();
                return refuse(
                    "even all sinks together do not keep the copy rule; add sinks, or say where they and production are",
                )
                .map_err(|e: Error| e.with("short_of", short.join("; ")));
            }
        }
        let by_rule = self.rule.map(|rule| rule.sinks().clamp(1, self.sinks.len()));
        let required_copies = self.required_copies.or(by_rule).unwrap_or(self.sinks.len());
        if required_copies == 0 || required_copies > self.sinks.len() {
            return refuse("the required copies must be between one and the number of sinks");
        }
        let encrypts = self.transforms.iter().any(|t| t.stage() == Stage::Encrypt);
        if self.require_encryption && !encrypts {
            return Err(Error::new(ErrorKind::Unencrypted, "build repository")
                .message("encryption is required and no transform encrypts; add `AesGcm`"));
        }
        let workers = Workers::shared()?;
        let mut known = self.transforms.clone();
        known.append(&mut self.readers);
        let keyring = known.iter().find_map(|t| t.keyring().cloned()).or(self.keyring);
        if let Some(keyring) = keyring.as_ref().filter(|_| known.iter().all(|t| t.keyring().is_none())) {
            known.push(Arc::new(AesGcm::new(keyring.clone())));
        }
        let signatures = known
            .iter()
            .filter_map(|t| t.signatures())
            .fold(None, |all, more| Some(all.unwrap_or_else(Signatures::new).and_trust(more)));
        let chain = Arc::new(Chain::new(self.transforms)?);
        let shared = shared_domains(&self.sinks);
        let repository = Inner {
            sinks: self.sinks,
            placements: self.placements,
            production: self.production,
            rule: self.rule,
            warnings: shared,
            required_copies,
            require_encryption: self.require_encryption,
            chain,
            known,
            keyring,
            signatures,
            state: self.state,
            workers,
            clock: self.clock,
            patience: self.patience,
            budget: self.budget,
            observers: self.observers.0,
        };
        let needed = repository.pipeline_memory();
        if needed > repository.budget {
            return Err(Error::invalid(
                "build repository",
                "the memory budget is too small for one artifact",
            )
            .with("budget", repository.budget)
            .with("needed", needed));
        }
        Ok(Repository(Arc::new(repository)))
    }
}

/// Warns of sinks that one loss would take together.
fn shared_domains(sinks: &[Arc<dyn Sink>]) -> Vec<Warning> {
    let mut domains: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for sink in sinks {
        if let Some(domain) = sink.failure_domain() {
            domains.entry(domain).or_default().push(sink.id().as_str());
        }
    }
    let shared = domains.into_iter().filter(|(_, sinks)| sinks.len() > 1);
    shared
        .map(|(domain, sinks)| {
            let message = format!(
                "{} share one {domain}: when it fails, all of them are lost; move one elsewhere",
                sinks.join(" and ")
            );
            Warning::new("sinks-share-a-failure-domain", message)
        })
        .collect()
}

impl Inner {
    /// Most bytes the pipeline of one open artifact holds.
    pub(super) fn pipeline_memory(&self) -> usize {
        let block = usize::try_from(index::BLOCK).unwrap_or(usize::MAX);
        // Pieces waiting for the codec and in its hands; blocks being gathered, hashed, waiting, and in the lanes.
        let pieces = (feed::QUEUE + 2) * feed::PIECE;
        let blocks = (2 + encode::QUEUE + fanout::QUEUE + self.workers.threads()) * block;
        let writers: usize = self.sinks.iter().map(super::super::sink::Sink::writer_memory).sum();
        pieces + blocks + writers + self.chain.memory(&self.workers)
    }

    /// How many artifacts may be open at once within the budget.
    pub(super) fn artifacts_in_budget(&self) -> usize {
        (self.budget / self.pipeline_memory().max(1)).max(1)
    }
}
