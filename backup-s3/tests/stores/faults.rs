//! A bad network between the sink and its store.

use std::time::Duration;

use backup_core::{
    Key, MemorySource, MemoryTarget, ObjectKind, PutOptions, Repository, Sink as _, put_bytes,
};
use backup_s3::ObjectStoreSink;
use backup_testkit::{FaultProxy, FaultSchedule, Moto, collect, noise};
use futures::TryStreamExt as _;

use crate::servers::{prefix, s3};

const MIB: usize = 1024 * 1024;
/// Cases in one run. `BACKUP_TORTURE_S3_FAULTS` sets the full count, `BACKUP_TORTURE_S3_FROM` the first, so that the full
/// count can be run in several commands: what happens in a case depends on the seed and its number alone.
const CASES: u64 = 20;
const SEED: u64 = 20_261_120;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn through(proxy: &FaultProxy, prefix: &str) -> ObjectStoreSink {
    s3(proxy.address()).prefix(prefix).request_timeout(Duration::from_secs(10)).build().expect("a sink")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backup_over_a_bad_network_verifies_or_leaves_nothing() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let (seed, cases) = (number("BACKUP_TORTURE_SEED", SEED), number("BACKUP_TORTURE_S3_FAULTS", CASES));
    let from = number("BACKUP_TORTURE_S3_FROM", 0);
    let (mut done, mut failed, mut restored, mut faults) = (0, 0, 0, 0);
    for case in from..from + cases {
        let what = format!("seed {seed}, case {case}");
        let place = prefix();
        // From a little trouble to one that no retries outlast.
        let percent = [20, 40, 60, 95][usize::try_from(case % 4).expect("small")];
        let schedule =
            |salt| FaultSchedule::new(seed ^ (case * 2 + salt)).percent(percent).within(12 * MIB as u64);
        let proxy = FaultProxy::start(moto.address(), schedule(0)).await;
        let repository = Repository::builder()
            .sink(through(&proxy, &place))
            .stall_timeout(Duration::from_secs(60))
            .retries(1, Duration::from_millis(20))
            .build()
            .expect("a repository");
        let bytes = noise(18 * MIB + usize::try_from(case).expect("small") * 1000, case);
        let source = MemorySource::new().artifact("large", bytes.clone()).artifact("small", "a few bytes");
        let result = tokio::time::timeout(Duration::from_secs(300), repository.backup("set", &source)).await;
        let result = result.unwrap_or_else(|_| panic!("{what}: the backup hangs"));
        faults += proxy.faults();

        let straight = s3(moto.address()).prefix(&place).build().expect("a sink");
        let calm = Repository::builder().sink(straight.clone()).build().expect("a repository");
        let listed = calm.backups("set").await.unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
        let report = match result {
            Ok(report) => report,
            Err(error) => {
                failed += 1;
                eprintln!("{what}: {}", error.chain());
                assert!(listed.is_empty(), "{what}: a failed backup is listed");
                eventually_swept(&moto, &straight, &what).await;
                continue;
            }
        };
        done += 1;
        let verified =
            calm.verify("set", report.id).await.unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
        assert!(verified.is_intact(), "{what}: {verified:?}");
        eventually_swept(&moto, &straight, &what).await;

        proxy.schedule(schedule(1));
        let target = MemoryTarget::new();
        let restore = repository.restore("set").latest().into(&target);
        let restore = tokio::time::timeout(Duration::from_secs(300), restore);
        if restore.await.unwrap_or_else(|_| panic!("{what}: the restore hangs")).is_ok() {
            restored += 1;
            assert!(target.get("large").as_ref() == Some(&bytes), "{what}: restored something else");
        }
        faults += proxy.faults();
    }
    eprintln!(
        "seed {seed}: {cases} cases from {from}, {done} backups, {failed} clean failures, {restored} restores, {faults} faults"
    );
    assert!(done >= cases / 4 && restored >= cases / 8, "too few got through to prove anything");
    assert!(faults >= cases, "too few faults to prove anything");
}

async fn eventually_swept(moto: &Moto, sink: &ObjectStoreSink, what: &str) {
    for _ in 0..100 {
        sink.sweep(Duration::ZERO).await.unwrap_or_else(|e| panic!("{what}: sweep: {}", e.chain()));
        if moto.unfinished_uploads("tests").await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: unfinished uploads remain after sweep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_on_where_it_broke() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let bytes = noise(30 * MIB, 5);
    let key = Key::parse("large").expect("a key");
    let straight = s3(moto.address()).build().expect("a sink");
    put_bytes(&straight, &key, bytes.clone(), PutOptions::overwrite(ObjectKind::Data)).await.expect("put");
    let mut complete = 0;
    let (from, reads) = (number("BACKUP_TORTURE_S3_FROM", 0), number("BACKUP_TORTURE_S3_READS", 10));
    for seed in from..from + reads {
        let schedule = FaultSchedule::new(seed).percent(70).at_most(12);
        let proxy = FaultProxy::start(moto.address(), schedule).await;
        let sink = through(&proxy, "");
        let found = async { collect(sink.open(&key, None).await?).await };
        match found.await {
            Ok(found) => {
                complete += 1;
                assert!(found == bytes, "seed {seed}: other bytes");
            }
            Err(e) => eprintln!("seed {seed}: {}", e.chain()),
        }
        assert!(proxy.faults() > 0, "seed {seed}: the network was good");
    }
    eprintln!("{reads} reads from seed {from}, {complete} came through");
    assert!(complete >= reads / 2, "only {complete} of {reads} reads came through");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_new_whose_reply_was_lost_is_ours() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let mut won = 0;
    for seed in 0..30 {
        let schedule = FaultSchedule::new(seed).percent(80).at_most(3).within(4096);
        let proxy = FaultProxy::start(moto.address(), schedule).await;
        let key = Key::parse(format!("new/{seed}")).expect("a key");
        let sink = through(&proxy, "");
        let put = put_bytes(&sink, &key, "mine".into(), PutOptions::create_new(ObjectKind::Manifest)).await;
        let there = s3(moto.address()).build().expect("a sink").head(&key).await.is_ok();
        match put {
            Ok(_) => {
                won += 1;
                assert!(there, "seed {seed}: reported, and not there");
            }
            Err(e) => {
                // Nobody else writes: being told of another writer would be wrong.
                assert_ne!(e.kind(), backup_core::ErrorKind::AlreadyExists, "seed {seed}: {}", e.chain());
            }
        }
    }
    assert!(won >= 20, "only {won} of 30 came through");
    let straight = s3(moto.address()).build().expect("a sink");
    let listed: Vec<_> = straight.list(&Key::root()).try_collect().await.expect("list");
    assert!(listed.len() >= won);
}
