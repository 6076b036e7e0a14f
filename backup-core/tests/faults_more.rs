//! A fault at every sink call in turn in the verbs that `faults.rs`, `replicate.rs` and `prune/` do not cover: incremental
//! backups, export, contents and rotation. A right result or a loud failure, and a clean run afterwards.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]
#![allow(dead_code, reason = "the shared file serves several test programs")]

#[path = "prune/support.rs"]
mod support;

use std::time::Duration;

use backup_core::{
    AesGcm, BackupId, BackupKind, Error, ErrorKind, Keyring, MemorySink, MemorySource, Repository, Sink,
};
use backup_testkit::{Fault, FaultySink, Rule, collect, noise};
use futures::{StreamExt as _, TryStreamExt as _};

use support::{Chained, SET, at};

const STALL: Duration = Duration::from_millis(250);
/// Far above what the slowest case needs; reached only by a run that hangs.
const HUNG: Duration = Duration::from_secs(60);
/// Cases at once. Most of their time is spent waiting for stalls.
const AT_ONCE: usize = 32;

const FAULTS: [Fault; 5] = [
    Fault::Fail { kind: ErrorKind::Io, retryable: false },
    Fault::LostReply { retryable: false },
    Fault::Hang,
    Fault::Cut,
    Fault::Short { kind: ErrorKind::StorageFull },
];

fn ring(keys: &[u8]) -> Keyring {
    keys.iter().fold(Keyring::builder(), |ring, key| ring.key([*key; 32])).build().unwrap()
}

/// A repository without faults.
fn over(sink: impl Sink + 'static, keys: &[u8]) -> Repository {
    patient(sink, keys, HUNG)
}

fn patient(sink: impl Sink + 'static, keys: &[u8], stall: Duration) -> Repository {
    Repository::builder()
        .sink(sink)
        .transform(AesGcm::new(ring(keys)))
        .stall_timeout(stall)
        .retries(0, Duration::from_millis(1))
        .build()
        .unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Incremental,
    Export,
    Contents,
    Rotate,
}

/// Does the verb; a result that is given must be right.
async fn run(verb: Verb, repo: &Repository, id: BackupId, day: i64) -> Result<(), Error> {
    match verb {
        Verb::Incremental => {
            repo.backup(SET, &Chained::new("third")).incremental().started_at(at(day)).await?;
        }
        Verb::Export => {
            let export = repo.export(SET, id).await?;
            let bytes = collect(export.artifact("big")?.stream().await?).await?;
            assert!(bytes == noise(4_300_000, 1), "other bytes were given as good");
        }
        Verb::Contents => {
            let contents = repo.contents(SET, id).await?;
            let items: Vec<_> = contents.items().try_collect().await?;
            assert_eq!(items.len(), 2);
        }
        Verb::Rotate => {
            repo.rotate(SET, &ring(&[2])).await?;
        }
    }
    Ok(())
}

/// A full, an incremental on it, and one of another source whose artifact has an index.
async fn template() -> (MemorySink, BackupId) {
    let sink = MemorySink::new();
    let repo = over(sink.clone(), &[1]);
    for (n, name) in ["first", "second"].into_iter().enumerate() {
        let day = i64::try_from(n).unwrap();
        repo.backup(SET, &Chained::new(name)).incremental().started_at(at(day)).await.unwrap();
    }
    let big = MemorySource::new().artifact("big", noise(4_300_000, 1)).artifact("small", "x");
    let id = repo.backup(SET, &big).started_at(at(2)).await.unwrap().id;
    (sink, id)
}

/// Everything listed is whole; returns how many backups that are.
async fn whole(sink: &MemorySink, case: &str) -> usize {
    let repo = over(sink.clone(), &[2, 1]);
    let list = repo.backups(SET).await.unwrap();
    assert!(list.unreadable.is_empty(), "{case}: {:?}", list.unreadable);
    for backup in list.iter() {
        assert!(repo.verify(SET, backup.id).await.unwrap().is_intact(), "{case}: {}", backup.id);
        assert!(backup.needs().all(|needed| list.iter().any(|b| b.id == needed)), "{case}");
    }
    list.len()
}

async fn judge(verb: Verb, sink: MemorySink, id: BackupId, fault: Fault, nth: u64) -> bool {
    let case = format!("{verb:?}, {fault:?} at call {nth}");
    let faulty = FaultySink::new(sink.clone());
    faulty.arm(Rule::nth(nth).fault(fault));
    let result = run(verb, &patient(faulty.clone(), &[1], STALL), id, 3).await;
    if let Err(error) = &result {
        assert_ne!(error.kind(), ErrorKind::Internal, "{case}: {}", error.chain());
        assert!(faulty.faults() > 0, "{case}: {}", error.chain());
    }
    let listed = whole(&sink, &case).await;
    match verb {
        // With the reply to the manifest lost, the backup exists and its verb cannot say so.
        Verb::Incremental if result.is_err() => assert!((3..=4).contains(&listed), "{case}"),
        Verb::Incremental => assert_eq!(listed, 4, "{case}"),
        _ => assert_eq!(listed, 3, "{case}"),
    }
    let again = run(verb, &over(sink.clone(), &[1]), id, 4).await;
    // A rotation that was finished can only be finished again with the new key.
    let again = if again.is_err() { run(verb, &over(sink.clone(), &[2, 1]), id, 4).await } else { again };
    again.unwrap_or_else(|e| panic!("after {case}: {}", e.chain()));
    whole(&sink, &case).await;
    match verb {
        Verb::Rotate => {
            let (new, old) = (over(sink.clone(), &[2]), over(sink, &[1]));
            assert_eq!(new.backups(SET).await.unwrap().len(), 3, "after {case}");
            assert_eq!(old.backups(SET).await.unwrap().len(), 0, "after {case}: the old key still opens");
        }
        Verb::Incremental => {
            let list = over(sink, &[1]).backups(SET).await.unwrap();
            assert!(matches!(list[0].kind, BackupKind::Incremental { .. }), "after {case}");
        }
        _ => {}
    }
    result.is_err()
}

async fn sweep(verb: Verb) {
    let (template, id) = template().await;
    let counting = FaultySink::new(template.fork());
    run(verb, &over(counting.clone(), &[1]), id, 3).await.unwrap();
    let calls = counting.total();
    let cases = (1..=calls).flat_map(|nth| FAULTS.map(|fault| (fault, nth)));
    let running = cases.map(|(fault, nth)| {
        let sink = template.fork();
        async move {
            let work = tokio::spawn(tokio::time::timeout(HUNG, judge(verb, sink, id, fault, nth)));
            work.await.unwrap().unwrap_or_else(|_| panic!("{verb:?}, {fault:?} at call {nth} hangs"))
        }
    });
    let failed: Vec<bool> = futures::stream::iter(running).buffer_unordered(AT_ONCE).collect().await;
    let loud = failed.iter().filter(|failed| **failed).count();
    assert!(failed.len() >= 20 && loud * 3 > failed.len(), "{loud} of {} failed", failed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_to_a_faulty_sink_is_whole_or_absent() {
    sweep(Verb::Incremental).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_gives_the_right_bytes_or_fails() {
    sweep(Verb::Export).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_are_complete_or_an_error() {
    sweep(Verb::Contents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_stopped_by_any_fault_leaves_every_backup_openable() {
    sweep(Verb::Rotate).await;
}
