//! Prunes of a directory on disk, killed in the middle.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use backup_core::{BackupId, ErrorKind, KeepLast, MemorySource, Repository};
use backup_fs::{DirectorySource, LocalSink};
use backup_testkit::{Crash, Ended, FaultySink, Kill, noise};
use chrono::{DateTime, TimeDelta, Utc};

const SET: &str = "app/data";
const KEEP: usize = 4;

fn day(n: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::days(40) + TimeDelta::days(n)
}

fn open(dir: &Path) -> LocalSink {
    LocalSink::open(dir.join("sink")).unwrap()
}

fn repository(sink: impl backup_core::Sink + 'static) -> Repository {
    Repository::builder().sink(sink).build().unwrap()
}

/// A full of a directory, two incrementals on it, and fulls of something else; the chain and one full go.
async fn template(dir: &Path) -> Vec<BackupId> {
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let repo = repository(LocalSink::init(dir.join("sink")).unwrap());
    let mut ids = Vec::new();
    for n in 0..3_u8 {
        std::fs::write(tree.join(format!("file{n}")), noise(20_000, n.into())).unwrap();
        let source = DirectorySource::new(&tree);
        ids.push(repo.backup(SET, &source).incremental().started_at(day(n.into())).await.unwrap().id);
    }
    for n in 3..8 {
        let source = MemorySource::new().artifact("a", noise(100_000, 9)).artifact("b", "small");
        ids.push(repo.backup(SET, &source).started_at(day(n)).await.unwrap().id);
    }
    ids
}

async fn prune(repo: &Repository) -> backup_core::Result<backup_core::PruneReport> {
    repo.prune(SET, &KeepLast::new(KEEP)).await?.into_result()
}

/// Every file of the sink but its marker and what lies in staging.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![dir.join("sink")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with('@') {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from.join("sink")).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_prune_killed_anywhere_loses_nothing_and_is_finished_by_the_next() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(child) = Crash::child() {
        let sink = child.sink(open(Path::new(&child.var("dir"))));
        let result = runtime.block_on(prune(&repository(sink)));
        drop(result.unwrap());
        return;
    }
    let original = tempfile::tempdir().unwrap();
    let ids = runtime.block_on(template(original.path()));
    let kept = &ids[ids.len() - KEEP..];

    // What a prune that nobody disturbs does, in how many calls, and how long a child takes.
    let calm = tempfile::tempdir().unwrap();
    copy(original.path(), calm.path());
    let counting = FaultySink::new(open(calm.path()));
    drop(runtime.block_on(prune(&repository(counting.clone()))).unwrap());
    let (calls, expected) = (counting.total(), files(calm.path()));
    let timed = tempfile::tempdir().unwrap();
    copy(original.path(), timed.path());
    let begun = Instant::now();
    assert_eq!(child(timed.path()).run(Kill::Never), Ended::Completed);
    let whole = begun.elapsed();
    assert_eq!(files(timed.path()), expected);

    let (kills, mut half_deleted, mut killed) = (Crash::kills(24), 0, 0);
    for n in 0..kills {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        // Two thirds at chosen calls, spread over all of them, the rest at moments between and within calls.
        let kill = if n % 3 < 2 {
            Kill::AtCall(1 + n * calls / kills)
        } else {
            Kill::After(whole * u32::try_from(n * 37 % 101).unwrap() / 101)
        };
        killed += u64::from(child(dir.path()).run(kill) == Ended::Killed);
        half_deleted += u64::from(runtime.block_on(check(dir.path(), &ids, kept)));

        // Nothing has to be unlocked or waited for.
        let again = runtime.block_on(prune(&repository(open(dir.path()))));
        drop(again.unwrap_or_else(|e| panic!("after {kill:?}: {}", e.chain())));
        assert_eq!(files(dir.path()), expected, "after {kill:?}");
    }
    assert!(killed > kills / 2, "only {killed} of {kills} were killed");
    assert!(half_deleted > 0, "no kill hit a deletion: the test tests nothing");
}

fn child(dir: &Path) -> Crash {
    Crash::of("a_prune_killed_anywhere_loses_nothing_and_is_finished_by_the_next").var("dir", dir)
}

/// Checks what a killed prune left; says whether it left a half-deleted backup.
async fn check(dir: &Path, ids: &[BackupId], kept: &[BackupId]) -> bool {
    let repo = repository(open(dir));
    let list = repo.backups(SET).await.unwrap();
    assert!(list.unreadable.is_empty(), "{:?}", list.unreadable);
    let listed: BTreeSet<_> = list.iter().map(|b| b.id).collect();
    assert!(kept.iter().all(|id| listed.contains(id)), "a kept backup is gone");
    for backup in list.iter() {
        assert!(backup.needs().all(|needed| listed.contains(&needed)), "{} lost what it needs", backup.id);
        let report = repo.verify(SET, backup.id).await.unwrap();
        assert!(report.is_intact(), "{} is listed and not whole: {:?}", backup.id, report.problems);
    }
    // What is not listed is not there for anybody.
    let unlisted: Vec<_> = ids.iter().filter(|id| !listed.contains(id)).collect();
    for id in &unlisted {
        assert_eq!(repo.contents(SET, **id).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let traces = files(dir);
    unlisted.iter().any(|id| traces.iter().any(|path| path.to_string_lossy().contains(&id.to_string())))
}
