//! Promises 3, 4 and 12: what a restore reads from where, what it says, and what `RESTORE.txt` does without a chain.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::{
    ErrorKind, Event, Key, MemorySink, MemorySource, MemoryTarget, Repository, RepositoryBuilder,
};
use backup_testkit::{Fault, FaultySink, Operation, Rule, noise};

fn source() -> MemorySource {
    MemorySource::new().artifact("big", noise(6_300_000, 7))
}

fn builder() -> RepositoryBuilder {
    Repository::builder().retries(4, Duration::from_millis(1))
}

/// The one object whose name ends so.
fn object(sink: &MemorySink, end: &str) -> Key {
    let mut keys = sink.keys().into_iter().filter(|key| key.as_str().ends_with(end));
    let key = keys.next().unwrap();
    assert!(keys.next().is_none());
    key
}

fn flip(sink: &MemorySink, end: &str) {
    sink.damage(&object(sink, end), |bytes| bytes[10] ^= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_failure_of_one_copy_does_not_meet_the_damage_of_the_other() {
    let (first, second) = (MemorySink::named("first"), MemorySink::named("second"));
    let faulty = FaultySink::new(first.clone());
    let repo = builder().sink(faulty.clone()).sink(second.clone()).build().unwrap();
    repo.backup("app", &source()).await.unwrap();
    flip(&second, "big.bin");
    // Whichever time an object is opened, the data and its index among them.
    for nth in 1..=10 {
        faulty.disarm();
        faulty.arm(Rule::nth(nth).on(Operation::Open).fault(Fault::retryable()));
        let restored = repo.restore("app").into(&MemoryTarget::new()).await;
        restored.unwrap_or_else(|e| panic!("open number {nth}: {}", e.chain()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_a_good_manifest_still_lends_its_blocks() {
    for gone in [false, true] {
        let (first, second) = (MemorySink::named("first"), MemorySink::named("second"));
        let repo = builder().sink(first.clone()).sink(second.clone()).build().unwrap();
        repo.backup("app", &source()).await.unwrap();
        if gone {
            first.remove(&object(&first, "manifest.json"));
        } else {
            flip(&first, "manifest.json");
        }
        flip(&second, "big.bin");
        let target = MemoryTarget::new();
        repo.restore("app").into(&target).await.unwrap();
        assert_eq!(target.get("big").unwrap(), noise(6_300_000, 7));
        // The damage is known all the same.
        let id = repo.backups("app").await.unwrap()[0].id;
        let report = repo.verify("app", id).await.unwrap();
        assert_eq!(report.intact, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_backup_that_cannot_be_opened_is_not_passed_over_in_silence() {
    let sink = MemorySink::named("only");
    let repo = builder().sink(sink.clone()).build().unwrap();
    let day = |n| {
        "2026-11-01T02:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap() + chrono::TimeDelta::days(n)
    };
    let older = repo.backup("app", &source()).started_at(day(0)).await.unwrap().id;
    let newer = repo.backup("app", &source()).started_at(day(1)).await.unwrap().id;
    let of_newer = sink.keys().into_iter().find(|k| k.as_str().ends_with(&format!("{newer}/manifest.json")));
    sink.damage(&of_newer.unwrap(), |bytes| bytes[10] ^= 1);

    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = Arc::clone(&seen);
    let observer = move |event: &Event<'_>| {
        if let Event::Warning(warning) = event {
            seeing.lock().unwrap().push(warning.code.to_string());
        }
    };
    let target = MemoryTarget::new();
    let done = repo.restore("app").latest().into(&target).observer(observer).await.unwrap();
    assert_eq!(done.id, older);
    let warned = done.report.warnings.iter().find(|w| w.code == "newer-backup-unreadable").unwrap();
    assert!(warned.message.contains(&newer.to_string()), "{}", warned.message);
    assert_eq!(*seen.lock().unwrap(), ["newer-backup-unreadable"]);
    // Of a time before it nothing was passed over.
    let done = repo.restore("app").at(day(0)).into(&MemoryTarget::new()).await.unwrap();
    assert!(done.report.warnings.is_empty());
    let error = repo.restore("app").id(newer).into(&MemoryTarget::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_txt_without_a_chain_copies_and_leaves_the_objects_alone() {
    let sink = MemorySink::named("only");
    let repo = builder().sink(sink.clone()).build().unwrap();
    repo.backup("app", &source()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for key in sink.keys() {
        let bytes = sink.get(&key).unwrap();
        if key.file_name() == "RESTORE.txt" {
            text = String::from_utf8(bytes.to_vec()).unwrap();
        }
        std::fs::write(dir.path().join(key.file_name()), bytes).unwrap();
    }
    let status = std::process::Command::new("bash").args(["-c", &text]).current_dir(dir.path()).status();
    assert!(status.unwrap().success(), "{text}");
    assert_eq!(std::fs::read(dir.path().join("restored/big.bin")).unwrap(), noise(6_300_000, 7));
    assert_eq!(std::fs::read(dir.path().join("big.bin")).unwrap(), noise(6_300_000, 7));
}
