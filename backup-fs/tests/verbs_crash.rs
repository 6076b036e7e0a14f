//! SIGKILL in the middle of every verb that writes, on real directories and local sinks: no partial backup is listed, no
//! finished one is lost, and the next run converges (promise 1).
//!
//! 25 kills; `BACKUP_TORTURE=200` does as many.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use backup_core::{AesGcm, BackupId, Gzip, KeepLast, Keyring, Repository, Result, Sink};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};
use backup_testkit::{Crash, Ended, FaultySink, Kill, noise};
use chrono::{DateTime, TimeDelta, Utc};

const SET: &str = "app/data";
const KEEP: usize = 3;
const SINKS: [&str; 2] = ["one", "two"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Full,
    Incremental,
    Prune,
    Replicate,
    Rotate,
}

const VERBS: [Verb; 5] = [Verb::Full, Verb::Incremental, Verb::Prune, Verb::Replicate, Verb::Rotate];

fn day(n: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::days(40) + TimeDelta::days(n)
}

fn keyring(keys: &[u8]) -> Keyring {
    keys.iter().fold(Keyring::builder(), |ring, key| ring.key([*key; 32])).build().unwrap()
}

fn open(dir: &Path, name: &str) -> LocalSink {
    LocalSink::open(dir.join(name)).unwrap()
}

fn repository<S: Sink + 'static>(sinks: Vec<S>, keys: &[u8]) -> Repository {
    let builder = sinks.into_iter().fold(Repository::builder(), backup_core::RepositoryBuilder::sink);
    builder.transform(Gzip::default()).transform(AesGcm::new(keyring(keys))).build().unwrap()
}

fn both(dir: &Path) -> Repository {
    repository(SINKS.map(|name| open(dir, name)).into(), &[2, 1])
}

impl Verb {
    /// What the child does, and what the next run does again.
    async fn run(self, repo: &Repository, dir: &Path) -> Result<()> {
        let source = DirectorySource::new(dir.join("tree"));
        match self {
            Self::Full => repo.backup(SET, &source).await.map(drop),
            Self::Incremental => repo.backup(SET, &source).incremental().await.map(drop),
            Self::Prune => repo.prune(SET, &KeepLast::new(KEEP)).await?.into_result().map(drop),
            Self::Replicate => repo.replicate_all(SET).verify_existing().await.map(drop),
            Self::Rotate => repo.rotate(SET, &keyring(&[2])).await.map(drop),
        }
    }
}

/// Two fulls, each with two incrementals, of a tree that grows; then a change that no backup has yet.
async fn template(dir: &Path) -> Vec<BackupId> {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    let repo = repository(SINKS.map(|name| LocalSink::init(dir.join(name)).unwrap()).into(), &[1]);
    let mut ids = Vec::new();
    for n in 0..6_u8 {
        std::fs::write(tree.join(format!("sub/file{n}")), noise(30_000, n.into())).unwrap();
        let source = DirectorySource::new(&tree);
        let run = repo.backup(SET, &source).started_at(day(n.into()));
        let run = if n % 3 == 0 { run } else { run.incremental() };
        ids.push(run.await.unwrap().id);
    }
    std::fs::write(tree.join("new"), noise(50_000, 99)).unwrap();
    std::fs::remove_file(tree.join("sub/file0")).unwrap();
    ids
}

fn copy(from: &Path, to: &Path) {
    for name in ["tree", "one", "two"] {
        let status = Command::new("cp").arg("-a").arg(from.join(name)).arg(to).status().unwrap();
        assert!(status.success());
    }
}

/// A copy of the template in which the verb finds something to do.
fn prepared(template: &Path, verb: Verb, ids: &[BackupId]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(template, dir.path());
    if verb == Verb::Replicate {
        // Two copies are missing, and one is damaged.
        let place = |id: BackupId| dir.path().join("two").join(SET).join(id.to_string());
        std::fs::remove_dir_all(place(ids[2])).unwrap();
        std::fs::remove_dir_all(place(ids[5])).unwrap();
        std::fs::write(place(ids[3]).join("RESTORE.txt"), "damaged").unwrap();
    }
    dir
}

/// Everything that is listed on a sink alone is whole there; returns it. `except` is a copy that was damaged before.
async fn whole(dir: &Path, name: &str, except: Option<BackupId>, case: &str) -> BTreeSet<BackupId> {
    let repo = repository(vec![open(dir, name)], &[2, 1]);
    let list = repo.backups(SET).await.unwrap();
    assert!(list.unreadable.is_empty(), "{case}: {:?}", list.unreadable);
    let ids: BTreeSet<BackupId> = list.iter().map(|backup| backup.id).collect();
    for backup in list.iter() {
        for needed in backup.needs() {
            assert!(ids.contains(&needed), "{case}: {} on {name} needs {needed}", backup.id);
        }
        let report = repo.verify(SET, backup.id).await.unwrap();
        let excused = Some(backup.id) == except;
        assert!(report.is_intact() || excused, "{case}: {} on {name}: {:?}", backup.id, report.problems);
    }
    ids
}

/// Directories of backups on a sink that hold anything.
fn traces(dir: &Path, name: &str) -> BTreeSet<BackupId> {
    fn holds_files(dir: &Path) -> bool {
        let mut inside = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        inside.any(|path| !path.is_dir() || holds_files(&path))
    }
    let places = std::fs::read_dir(dir.join(name).join(SET)).unwrap().map(|entry| entry.unwrap().path());
    let filled = places.filter(|path: &PathBuf| holds_files(path));
    filled.filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

async fn judge(dir: &Path, verb: Verb, ids: &[BackupId], case: &str) {
    let damaged = (verb == Verb::Replicate).then(|| ids[3]);
    let must = if verb == Verb::Prune { &ids[ids.len() - 3..] } else { ids };
    for name in SINKS {
        let held = whole(dir, name, damaged.filter(|_| name == "two"), case).await;
        for id in must {
            let was_missing = verb == Verb::Replicate && name == "two" && (*id == ids[2] || *id == ids[5]);
            assert!(held.contains(id) || was_missing, "{case}: {id} is gone from {name}");
        }
    }

    verb.run(&both(dir), dir).await.unwrap_or_else(|e| panic!("the run after {case}: {}", e.chain()));
    // What the killed run left is swept when nobody can be at work on it any more.
    let later = Utc::now() + TimeDelta::days(9);
    drop(both(dir).sweep(SET).now(later).await.unwrap().into_result().unwrap());
    let held = [whole(dir, "one", None, case).await, whole(dir, "two", None, case).await];
    assert_eq!(held[0], held[1], "after {case}");
    for name in SINKS {
        assert_eq!(traces(dir, name), held[0], "after {case}: {name} is not tidy");
    }
    match verb {
        // The killed run may have finished its backup, too.
        Verb::Full | Verb::Incremental => {
            assert!((ids.len() + 1..=ids.len() + 2).contains(&held[0].len()), "{case}: {:?}", held[0]);
            let restored = dir.join("restored");
            both(dir).restore(SET).latest().into(&DirectoryTarget::new(&restored)).await.unwrap();
            let diff = Command::new("diff")
                .args(["-r", "--no-dereference"])
                .arg(dir.join("tree"))
                .arg(&restored)
                .output()
                .unwrap();
            assert!(diff.status.success(), "{case}: {}", String::from_utf8_lossy(&diff.stdout));
        }
        Verb::Prune | Verb::Replicate => {}
        Verb::Rotate => {
            for name in SINKS {
                let new = repository(vec![open(dir, name)], &[2]).backups(SET).await.unwrap();
                assert_eq!((new.len(), new.unreadable.len()), (ids.len(), 0), "{case}");
                let old = repository(vec![open(dir, name)], &[1]).backups(SET).await.unwrap();
                assert_eq!(old.len(), 0, "{case}: the old key still opens");
            }
        }
    }
}

#[test]
fn a_verb_killed_anywhere_leaves_whole_backups_and_the_next_run_converges() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(child) = Crash::child() {
        let dir = PathBuf::from(child.var("dir"));
        let number: usize = child.var("verb").to_str().unwrap().parse().unwrap();
        let keys: &[u8] = if VERBS[number] == Verb::Rotate { &[1] } else { &[2, 1] };
        let repo = repository(SINKS.map(|name| child.sink(open(&dir, name))).into(), keys);
        runtime.block_on(VERBS[number].run(&repo, &dir)).unwrap();
        return;
    }
    let original = tempfile::tempdir().unwrap();
    let ids = runtime.block_on(template(original.path()));
    let kills = Crash::kills(25).div_ceil(VERBS.len() as u64);
    let begun = Instant::now();
    let mut killed = 0;
    for (number, verb) in VERBS.into_iter().enumerate() {
        let crash = |dir: &Path| {
            Crash::of("a_verb_killed_anywhere_leaves_whole_backups_and_the_next_run_converges")
                .var("dir", dir)
                .var("verb", number.to_string())
        };
        // In how many calls, and how long, a run takes that nobody disturbs.
        let calm = prepared(original.path(), verb, &ids);
        let counting = SINKS.map(|name| FaultySink::new(open(calm.path(), name)));
        runtime.block_on(verb.run(&repository(counting.to_vec(), &[2, 1]), calm.path())).unwrap();
        let calls = counting.iter().map(FaultySink::total).max().unwrap();
        let timed = prepared(original.path(), verb, &ids);
        let started = Instant::now();
        assert_eq!(crash(timed.path()).run(Kill::Never), Ended::Completed);
        let usual = started.elapsed();
        runtime.block_on(judge(timed.path(), verb, &ids, &format!("{verb:?}, not killed")));

        let mut of_this = 0;
        for n in 0..kills {
            let dir = prepared(original.path(), verb, &ids);
            // Two thirds at chosen calls, spread over all of them, the rest at moments between and within calls.
            let kill = if n % 3 < 2 {
                Kill::AtCall(1 + n * calls / kills)
            } else {
                Kill::After(usual * u32::try_from(n * 37 % 101).unwrap() / 101)
            };
            of_this += u64::from(crash(dir.path()).run(kill) == Ended::Killed);
            runtime.block_on(judge(dir.path(), verb, &ids, &format!("{verb:?}, {kill:?}")));
        }
        assert!(of_this * 2 > kills, "only {of_this} of {kills} of {verb:?} were killed");
        killed += of_this;
    }
    println!("{killed} of {} killed in {:?}", kills * VERBS.len() as u64, begun.elapsed());
}
