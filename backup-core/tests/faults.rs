//! A fault at every call of a sink in turn, in every verb: a correct success or a loud failure, nothing partial, and
//! a clean run afterwards.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backup_core::{
    AesGcm, BackupId, BackupReport, Bytes, Error, ErrorKind, Key, Keyring, MemorySink, MemorySource,
    MemoryTarget, Repository, Result, Sink,
};
use backup_testkit::{Fault, FaultySink, Operation, Rule, noise};
use futures::{FutureExt as _, StreamExt as _};

const SET: &str = "app";
const STALL: Duration = Duration::from_millis(250);
/// Far above what the slowest case needs; reached only by a run that hangs.
const HUNG: Duration = Duration::from_secs(40);
/// Cases at once. Most of their time is spent waiting for stalls.
const AT_ONCE: usize = 48;

const OPERATIONS: [Operation; 9] = [
    Operation::Create,
    Operation::Write,
    Operation::Finish,
    Operation::Abort,
    Operation::Open,
    Operation::Read,
    Operation::Head,
    Operation::List,
    Operation::Delete,
];

/// What goes wrong, where, and whether the sink ever recovers.
#[derive(Clone, Copy, Debug)]
struct Case {
    fault: Fault,
    operation: Option<Operation>,
    nth: u64,
    for_ever: bool,
}

impl Case {
    fn rule(self) -> Rule {
        let rule = Rule::nth(self.nth).fault(self.fault).times(if self.for_ever { u64::MAX } else { 1 });
        self.operation.map_or(rule, |operation| rule.on(operation))
    }

    /// Whether the engine can simply do it again. The end of a streamed object cannot be repeated.
    fn passes(self) -> bool {
        let again =
            matches!(self.fault, Fault::Fail { retryable: true, .. } | Fault::LostReply { retryable: true });
        again
            && !self.for_ever
            && !matches!(self.operation, Some(Operation::Finish | Operation::Abort) | None)
    }

    /// A list that ends early without an error is a lie no reader can see through.
    fn hides_backups(self) -> bool {
        self.fault == Fault::Cut && matches!(self.operation, Some(Operation::List) | None)
    }
}

/// Every kind of fault at every call that a clean run made.
fn sweep(clean: &FaultySink) -> Vec<Case> {
    let once = [
        Fault::permanent(),
        Fault::retryable(),
        Fault::LostReply { retryable: false },
        Fault::LostReply { retryable: true },
        Fault::Hang,
        Fault::Cut,
        Fault::short_write(),
    ];
    let mut cases = Vec::new();
    for operation in OPERATIONS {
        for nth in 1..=clean.count(operation) {
            cases.extend(once.map(|fault| Case { fault, operation: Some(operation), nth, for_ever: false }));
        }
    }
    assert_eq!(cases.len() as u64, clean.total() * once.len() as u64, "an operation is not swept");
    for fault in [Fault::retryable(), Fault::Hang] {
        cases.extend((1..=clean.total()).map(|nth| Case { fault, operation: None, nth, for_ever: true }));
    }
    cases
}

/// Runs `check` for every case, several at once; none may take for ever.
async fn each<F: Future<Output = ()> + Send + 'static>(cases: Vec<Case>, check: impl Fn(Case) -> F) {
    assert!(cases.len() > 20, "a run made hardly any calls");
    let running = cases.into_iter().map(|case| {
        let work = tokio::spawn(tokio::time::timeout(HUNG, check(case)));
        async move { work.await.unwrap().unwrap_or_else(|_| panic!("{case:?} hangs")) }.boxed()
    });
    // Tasks start when they are made: the stream makes only so many at a time.
    let mut running = futures::stream::iter(running).buffer_unordered(AT_ONCE);
    while running.next().await.is_some() {}
}

fn repository(sinks: Vec<Box<dyn Sink>>, copies: usize) -> Repository {
    let mut builder = Repository::builder()
        .transform(AesGcm::new(Keyring::builder().key([7; 32]).build().unwrap()))
        .require_copies(copies)
        .stall_timeout(STALL)
        .retries(2, Duration::from_millis(1));
    for sink in sinks {
        builder = builder.sink(Arc::<dyn Sink>::from(sink));
    }
    builder.build().unwrap()
}

/// Just large enough to have an index.
fn big() -> Bytes {
    static BIG: OnceLock<Bytes> = OnceLock::new();
    BIG.get_or_init(|| noise(4_300_000, 2)).clone()
}

fn source() -> MemorySource {
    MemorySource::new().artifact("none", "").artifact("small", noise(100, 1)).artifact("big", big())
}

/// One sink that holds a backup already, and perhaps a second that never fails.
#[derive(Clone)]
struct World {
    first: MemorySink,
    second: Option<MemorySink>,
    old: BackupId,
}

impl World {
    async fn new(two: bool) -> Self {
        let first = MemorySink::named("first");
        let second = two.then(|| MemorySink::named("second"));
        let mut world = Self { first, second, old: "20200101T000000Z-000000".parse().unwrap() };
        world.old = world.repository(1).backup(SET, &source()).started_at(hours_ago(2)).await.unwrap().id;
        world
    }

    fn fork(&self) -> Self {
        Self { first: self.first.fork(), second: self.second.as_ref().map(MemorySink::fork), old: self.old }
    }

    /// The repository without faults.
    fn repository(&self, copies: usize) -> Repository {
        self.over(Box::new(self.first.clone()), copies)
    }

    /// The repository whose first sink has the faults of `case`.
    fn faulty(&self, copies: usize) -> (Repository, FaultySink) {
        let faulty = FaultySink::new(self.first.clone());
        (self.over(Box::new(faulty.clone()), copies), faulty)
    }

    fn over(&self, first: Box<dyn Sink>, copies: usize) -> Repository {
        let mut sinks = vec![first];
        if let Some(second) = &self.second {
            sinks.push(Box::new(second.clone()));
        }
        repository(sinks, copies)
    }

    /// Objects of the first sink in directories without a manifest.
    fn debris(&self) -> Vec<Key> {
        let keys = self.first.keys();
        let directory = |key: &Key| key.segments().take(2).collect::<Vec<_>>().join("/");
        let whole: Vec<String> =
            keys.iter().filter(|k| k.file_name() == "manifest.json").map(directory).collect();
        keys.into_iter().filter(|key| !whole.contains(&directory(key))).collect()
    }
}

fn hours_ago(hours: i64) -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now() - chrono::TimeDelta::hours(hours)
}

/// Everything listed is whole, wherever it is said to be; returns the ids beside the old one.
async fn whole_or_absent(world: &World, case: Case) -> Vec<BackupId> {
    let repo = world.repository(1);
    let list = repo.backups(SET).await.unwrap();
    assert!(list.unreadable.is_empty(), "{case:?}: {:?}", list.unreadable);
    assert!(list.iter().any(|b| b.id == world.old), "{case:?}: the old backup is gone");
    // Nothing touches what an earlier run made: being listed is enough.
    for backup in list.iter().filter(|b| b.id != world.old) {
        for copy in &backup.copies {
            let report = repo.verify(SET, backup.id).on(copy).await.unwrap();
            assert!(report.is_intact(), "{case:?}: {:?}", report.problems);
        }
    }
    list.iter().map(|b| b.id).filter(|id| *id != world.old).collect()
}

/// What any verb may say about a fault of a sink.
fn is_honest(error: &Error, case: Case) {
    assert_ne!(error.kind(), ErrorKind::Internal, "{case:?}: {}", error.chain());
    assert!(!error.chain().is_empty());
}

async fn judge_backup(world: World, case: Case, copies: usize, result: Result<BackupReport>) {
    let two = world.second.is_some();
    let new = whole_or_absent(&world, case).await;
    match &result {
        Ok(done) => {
            assert_eq!(new, [done.id], "{case:?}");
            assert!(done.copies.len() >= copies, "{case:?}");
        }
        Err(error) if error.kind() == ErrorKind::TooFewCopies && two => {
            is_honest(error, case);
            assert_eq!(copies, 2, "{case:?}: {}", error.chain());
            let id = error.context_value("id").unwrap().parse::<BackupId>().unwrap();
            assert_eq!(new, [id], "{case:?}");
        }
        Err(error) => {
            is_honest(error, case);
            assert!(!two, "{case:?}: one of two sinks failed: {}", error.chain());
            assert_eq!(new, [], "{case:?}: listed although {}", error.chain());
        }
    }
    if case.passes() {
        let copies = result.unwrap_or_else(|e| panic!("{case:?} passes, but: {}", e.chain())).copies.len();
        assert_eq!(copies, 1 + usize::from(two), "{case:?}");
    }
    // Where the cleaning itself was not hit, it is complete.
    let cleaning =
        matches!(case.operation, None | Some(Operation::List | Operation::Delete | Operation::Head));
    assert!(cleaning || world.debris().is_empty(), "{case:?}: {:?}", world.debris());

    let rerun = MemorySource::new().artifact("small", noise(100, 3));
    let again = world.repository(1 + usize::from(two)).backup(SET, &rerun).await;
    let again = again.unwrap_or_else(|e| panic!("after {case:?}: {}", e.chain()));
    let repo = world.repository(1);
    assert!(repo.verify(SET, again.id).await.unwrap().is_intact(), "after {case:?}");
    assert_eq!(repo.backups(SET).await.unwrap().len(), new.len() + 2, "after {case:?}");
}

async fn sweep_backup(two: bool, copies: usize) {
    let world = World::new(two).await;
    let trial = world.fork();
    let (repo, faulty) = trial.faulty(copies);
    repo.backup(SET, &source()).started_at(hours_ago(1)).await.unwrap();
    each(sweep(&faulty), |case| {
        let world = world.fork();
        async move {
            let (repo, faulty) = world.faulty(copies);
            faulty.arm(case.rule());
            let result = repo.backup(SET, &source()).started_at(hours_ago(1)).await;
            judge_backup(world, case, copies, result).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_one_faulty_sink_is_whole_or_absent() {
    sweep_backup(false, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_two_sinks_survives_the_fault_of_one() {
    sweep_backup(true, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_needs_two_copies_is_degraded_by_the_fault_of_one() {
    sweep_backup(true, 2).await;
}

async fn sweep_list(two: bool) {
    let world = World::new(two).await;
    let (repo, faulty) = world.faulty(1);
    repo.backups(SET).await.unwrap();
    each(sweep(&faulty), |case| {
        let world = world.clone();
        async move {
            let (repo, faulty) = world.faulty(1);
            faulty.arm(case.rule());
            match repo.backups(SET).await {
                Ok(list) => {
                    let found = list.iter().any(|b| b.id == world.old);
                    assert!(found || !two, "{case:?}: the other sink was not asked");
                    assert!(found || !case.passes(), "{case:?}");
                    let said = !(list.unreadable.is_empty() && list.unreachable.is_empty());
                    assert!(found || said || case.hides_backups(), "{case:?}: silently missing");
                }
                Err(error) => {
                    is_honest(&error, case);
                    assert!(!two && !case.passes(), "{case:?}: {}", error.chain());
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_complete_or_says_what_is_missing() {
    sweep_list(false).await;
    sweep_list(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_never_hangs_and_never_blames_the_wrong_copy() {
    for two in [false, true] {
        let world = World::new(two).await;
        let (repo, faulty) = world.faulty(1);
        assert!(repo.verify(SET, world.old).await.unwrap().is_intact());
        each(sweep(&faulty), |case| {
            let world = world.clone();
            async move {
                let (repo, faulty) = world.faulty(1);
                faulty.arm(case.rule());
                match repo.verify(SET, world.old).await {
                    Ok(report) => {
                        assert!(report.is_intact() || !case.passes(), "{case:?}: {:?}", report.problems);
                        assert!(report.problems.iter().all(|p| p.sink.as_str() == "first"), "{case:?}");
                        assert!(
                            !two || report.intact.iter().any(|s| s.as_str() == "second"),
                            "{case:?}: {:?}",
                            report.problems
                        );
                    }
                    Err(error) => {
                        is_honest(&error, case);
                        assert!(!two && !case.passes(), "{case:?}: {}", error.chain());
                    }
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_exact_or_leaves_the_target_alone() {
    for two in [false, true] {
        let world = World::new(two).await;
        let (repo, faulty) = world.faulty(1);
        repo.restore(SET).into(&MemoryTarget::new()).await.unwrap();
        each(sweep(&faulty), |case| {
            let world = world.clone();
            async move {
                let (repo, faulty) = world.faulty(1);
                faulty.arm(case.rule());
                let target = MemoryTarget::new();
                match repo.restore(SET).into(&target).await {
                    Ok(done) => {
                        assert_eq!(done.id, world.old);
                        assert_eq!(target.names(), ["big", "none", "small"], "{case:?}");
                        assert_eq!(target.get("none").unwrap(), "", "{case:?}");
                        assert_eq!(target.get("small").unwrap(), noise(100, 1), "{case:?}");
                        assert!(target.get("big").unwrap() == big(), "{case:?}");
                    }
                    Err(error) => {
                        is_honest(&error, case);
                        assert!(target.is_empty(), "{case:?}: {}", error.chain());
                        assert!(!two && !case.passes(), "{case:?}: {}", error.chain());
                    }
                }
            }
        })
        .await;
    }
}
