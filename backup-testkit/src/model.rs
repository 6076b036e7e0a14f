//! [`ModelChecker`]: two writers, a pruner, a replicator and a keeper at once, checked against a model.

mod content;
mod gate;
mod run;
mod verbs;
mod world;

use std::fmt;
use std::sync::Arc;

use backup_core::{Digest, MemorySink, SetName, Sink};
use chrono::{DateTime, Utc};

use crate::SimulatedClock;
use crate::retention::Random;
use run::Scheduler;
use verbs::Site;
use world::World;

/// The set that the model's operations share.
const SET: &str = "model/data";
/// Backups that every prune of the model keeps.
const KEEP: usize = 3;

/// Runs random operations of several processes on shared sinks, in a random order of their single sink calls, and
/// checks after every call that nothing happened that must not.
///
/// **Who**: two writers (fulls and incrementals, each building on the other's), a pruner, a replicator, and a keeper who
/// rotates keys, sweeps, verifies, restores, pins and prunes. Each has a repository and a clock of its own, wrong by up to a
/// day, and may be killed or dropped at any call. Sinks fail, hang, cut reads short and lose replies, and list page by
/// page, each page at another moment.
///
/// **What must hold, at every call**: what is listed is whole, its key wrap and everything it refers to included; only
/// a prune deletes a finished backup, never one that another needs, that is pinned, or of the newest that the policy
/// keeps; nothing of a finished backup is deleted or overwritten with other bytes; what a verb says happened did.
/// **Every fifty operations**: everything listed on any sink restores from it alone to the bytes that were backed up.
/// **In the end**, and in between: when everybody ended and the longest that a marker counts has passed, sweep, prune,
/// replicate and rotate alone make all sinks equal and tidy, and new backups succeed. Nobody ever has to unlock anything.
///
/// Everything follows from the seed. Sinks must answer without waiting for other threads' time, since time is simulated:
/// objects in memory, or files through tokio's blocking threads.
///
/// ```
/// use backup_testkit::ModelChecker;
///
/// let report = ModelChecker::new(7).operations(30).run();
/// assert_eq!(report.operations, 30);
/// ```
pub struct ModelChecker {
    seed: u64,
    operations: u64,
    sinks: Vec<Arc<dyn Sink>>,
}

/// What a run of the model did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelReport {
    /// Operations begun.
    pub operations: u64,
    /// Sink calls let through, failed or not.
    pub calls: u64,
    /// Calls that failed, hung, were cut or whose reply was lost.
    pub faults: u64,
    /// Operations that were killed or dropped.
    pub killed: u64,
    /// Backups that ever were listed.
    pub backups: u64,
    /// A digest of the order in which everything happened: equal for equal seeds.
    pub order: Digest,
}

impl fmt::Debug for ModelChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelChecker").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl ModelChecker {
    /// A run of 200 operations on sinks in memory, decided by `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, operations: 200, sinks: Vec::new() }
    }

    /// How many operations to begin.
    pub fn operations(mut self, operations: u64) -> Self {
        self.operations = operations;
        self
    }

    /// Adds an empty sink. Without any, the run makes two or three in memory.
    pub fn sink(mut self, sink: impl Sink + 'static) -> Self {
        self.sinks.push(Arc::new(sink));
        self
    }

    /// Runs. Blocks, on a runtime of its own.
    ///
    /// # Panics
    ///
    /// When something happened that must not, with the seed, what it was, and the calls before.
    pub fn run(mut self) -> ModelReport {
        let mut random = Random::new(self.seed ^ 0x6d6f_6465_6c00_0000);
        if self.sinks.is_empty() {
            let count = if random.below(4) == 0 { 3 } else { 2 };
            self.sinks =
                (0..count).map(|n| Arc::new(MemorySink::named(format!("s{n}"))) as Arc<dyn Sink>).collect();
        }
        let set = SetName::parse(SET).expect("the model's set has a good name");
        let required = if random.below(2) == 0 { 1 } else { self.sinks.len() };
        let site = Site {
            set: SET.to_owned(),
            world: Arc::new(World::new(&set, self.sinks.len(), KEEP)),
            sinks: std::mem::take(&mut self.sinks),
            clock: SimulatedClock::at(DateTime::<Utc>::from_timestamp(1_790_000_000, 0).unwrap_or_default()),
            keep: KEEP,
            required,
            key: 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let (seed, operations) = (self.seed, self.operations);
        match runtime.block_on(Scheduler::new(site, seed).run(operations)) {
            Ok(report) => report,
            Err(broken) => panic!(
                "{broken}\n\nseed {seed}, {operations} operations: `ModelChecker::new({seed}).operations({operations}).run()` repeats it"
            ),
        }
    }
}
