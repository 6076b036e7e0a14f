//! Promise 1 on object storage: a backup killed at any moment is listed whole or not at all, and sweeps clean up.

use std::time::{Duration, Instant};

use backup_core::{Key, MemorySource, Repository, Sink};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Crash, Ended, FaultySink, Kill, Moto, noise};
use chrono::{TimeDelta, Utc};
use futures::TryStreamExt as _;

use crate::servers::{prefix, s3};

const SET: &str = "books";
const TEST: &str = "crash::a_backup_killed_anywhere_is_whole_or_absent_and_sweeps_leave_nothing";

fn source() -> MemorySource {
    // Three parts, an index, and a small one.
    MemorySource::new().artifact("large", noise(18 << 20, 1)).artifact("small", "a few bytes")
}

fn repository(sink: impl Sink + 'static) -> Repository {
    Repository::builder().sink(sink).build().expect("a repository")
}

fn sink(address: &str, prefix: &str) -> ObjectStoreSink {
    s3(address.parse().expect("an address")).prefix(prefix).build().expect("a sink")
}

#[test]
fn a_backup_killed_anywhere_is_whole_or_absent_and_sweeps_leave_nothing() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Some(child) = Crash::child() {
        let text = |name| child.var(name).into_string().expect("text");
        let repository = repository(child.sink(sink(&text("address"), &text("prefix"))));
        runtime.block_on(async { repository.backup(SET, &source()).await }).expect("a backup");
        return;
    }
    let Some(moto) = runtime.block_on(Moto::start()) else { return };
    runtime.block_on(moto.bucket("tests"));
    let address = moto.address().to_string();
    let child = |prefix: &str| Crash::of(TEST).var("address", &address).var("prefix", prefix);

    // How many calls a backup makes that nobody disturbs, and how long a child takes.
    let counting = FaultySink::new(sink(&address, &prefix()));
    runtime.block_on(async { repository(counting.clone()).backup(SET, &source()).await }).expect("a backup");
    let begun = Instant::now();
    assert_eq!(child(&prefix()).run(Kill::Never), Ended::Completed);
    let (calls, whole) = (counting.total(), begun.elapsed());

    let (kills, mut killed, mut unlisted) = (Crash::kills(20), 0, 0);
    for n in 0..kills {
        let place = prefix();
        // Half at calls, spread over all of them, half at moments between and within calls.
        let kill = if n % 2 == 0 {
            Kill::AtCall(1 + n * calls / kills)
        } else {
            Kill::After(whole * u32::try_from(n * 37 % 101).expect("small") / 101)
        };
        killed += u64::from(child(&place).run(kill) == Ended::Killed);
        unlisted += u64::from(runtime.block_on(check(&moto, &sink(&address, &place), kill)));
    }
    assert!(killed > kills / 2, "only {killed} of {kills} were killed");
    assert!(unlisted > kills / 4, "only {unlisted} of {kills} left no backup: too late to prove anything");
    eprintln!("{kills} kills: {killed} hit, {unlisted} left no backup");
}

/// Checks what a killed run left, and that it can be cleaned up; says whether it left no backup.
async fn check(moto: &Moto, sink: &ObjectStoreSink, kill: Kill) -> bool {
    let repository = repository(sink.clone());
    let list = repository.backups(SET).await.expect("list");
    assert!(list.unreadable.is_empty(), "{kill:?}: {:?}", list.unreadable);
    for backup in list.iter() {
        let report = repository.verify(SET, backup.id).await.expect("verify");
        assert!(report.is_intact(), "{kill:?}: listed and not whole: {report:?}");
    }
    let absent = list.is_empty();
    // Nothing has to be unlocked or waited for.
    repository.backup(SET, &source()).await.unwrap_or_else(|e| panic!("after {kill:?}: {}", e.chain()));
    // Four days later the marker of the killed run has expired.
    let later = Utc::now() + TimeDelta::days(4);
    let swept = repository.sweep(SET).now(later).await.expect("sweep");
    assert!(swept.failed.is_empty(), "{kill:?}: {swept:?}");
    sink.sweep(Duration::ZERO).await.expect("sweep uploads");
    assert_eq!(moto.unfinished_uploads("tests").await, 0, "{kill:?}: unfinished uploads remain");
    let backups: Vec<String> =
        repository.backups(SET).await.expect("list").iter().map(|b| b.id.to_string()).collect();
    let objects: Vec<_> = sink.list(&Key::root()).try_collect().await.expect("list");
    for object in objects {
        let of_a_backup = backups.iter().any(|id| object.key.as_str().contains(id));
        assert!(of_a_backup, "{kill:?}: {} is left", object.key);
    }
    absent
}
