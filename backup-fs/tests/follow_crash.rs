//! Following a log, killed anywhere: what is listed is whole, no entry is lost, and the next run goes on where it must.
//!
//! 20 kills, or as many as `BACKUP_TORTURE` says.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use backup_core::{FollowReport, Repository, Result, Sink, Until};
use backup_fs::LocalSink;
use backup_testkit::log::LogFileSource;
use backup_testkit::{Crash, Ended, Fault, FaultySink, Kill, LogFile, LogTarget, Operation, Rule};

const SET: &str = "app/data";
const OPERATIONS: [Operation; 4] =
    [Operation::Create, Operation::Write, Operation::Finish, Operation::Delete];

fn open(dir: &Path, name: &str) -> LocalSink {
    LocalSink::open(dir.join(name)).unwrap()
}

fn repository(a: impl Sink + 'static, b: impl Sink + 'static) -> Repository {
    Repository::builder().sink(a).sink(b).build().unwrap()
}

async fn follow(repo: &Repository, dir: &Path) -> Result<FollowReport> {
    let source = LogFileSource::open(dir.join("log"));
    repo.follow(SET, &source).slice(Duration::from_secs(60), 4_000).once().await
}

async fn restored(repo: &Repository) -> String {
    let target = LogTarget::new();
    repo.restore(SET).until(Until::End).into(&target).await.unwrap();
    target.text().unwrap()
}

#[test]
fn following_that_is_killed_anywhere_loses_no_entry_and_goes_on() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(child) = Crash::child() {
        let dir = child.var("dir");
        let dir = Path::new(&dir);
        let number = |name: &str| child.var(name).to_str().unwrap().parse::<usize>().unwrap();
        let operation = OPERATIONS[number("operation") % OPERATIONS.len()];
        let sink = FaultySink::new(open(dir, "a"));
        sink.arm(Rule::nth(number("nth") as u64).on(operation).fault(Fault::Kill));
        let repo = repository(sink, open(dir, "b"));
        runtime.block_on(follow(&repo, dir)).unwrap();
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    std::fs::create_dir(dir.join("log")).unwrap();
    let log = LogFile::create(dir.join("log"));
    let write = |lines: usize| {
        for n in 0..lines {
            log.append(&format!("line {n} of a log that is followed by somebody who is killed"));
        }
    };
    let repo = repository(LocalSink::init(dir.join("a")).unwrap(), LocalSink::init(dir.join("b")).unwrap());
    write(10);
    runtime.block_on(async { repo.backup(SET, &log.state()).await }).unwrap();

    let crash = Crash::of("following_that_is_killed_anywhere_loses_no_entry_and_goes_on").var("dir", dir);
    let kills = Crash::kills(20);
    let mut killed = 0;
    for round in 0..kills {
        write(60);
        if round % 5 == 4 {
            log.rotate();
        }
        // Each call of the first slice that writes or deletes, and of the second.
        let operation = round % OPERATIONS.len() as u64;
        let step = round / OPERATIONS.len() as u64;
        let nth = if operation == 3 { 1 + step % 2 } else { 1 + (step * 5) % 12 };
        let call = format!("{operation}:{nth}");
        let child = crash.clone().var("operation", operation.to_string()).var("nth", nth.to_string());
        killed += u64::from(child.run(Kill::Never) == Ended::Killed);
        runtime.block_on(async {
            let list = repo.backups(SET).await.unwrap();
            assert!(list.unreadable.is_empty(), "call {call}: {:?}", list.unreadable);
            let report = repo.pitr_ranges(SET).await.unwrap();
            assert!(report.gaps.is_empty() && report.len() <= 1, "call {call}: {report}");
            let text = restored(&repo).await;
            assert!(log.text_of(log.len()).starts_with(&text), "call {call}: an entry is missing");
        });
    }
    assert!(killed * 4 > kills * 3, "only {killed} of {kills} were killed");
    runtime.block_on(async {
        follow(&repo, dir).await.unwrap();
        let all = log.text_of(log.len());
        assert_eq!(restored(&repo).await, all);
        repo.replicate_all(SET).take_over().await.unwrap();
        for name in ["a", "b"] {
            let alone = Repository::builder().sink(open(dir, name)).build().unwrap();
            assert_eq!(restored(&alone).await, all, "sink {name}");
            for backup in alone.backups(SET).await.unwrap().iter() {
                assert!(alone.verify(SET, backup.id).await.unwrap().is_intact());
            }
        }
    });
}
