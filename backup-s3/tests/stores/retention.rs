//! Promise 8 on object storage: locks hold, prune reports them and goes on; yearly backups move to an archive class and
//! come back.

use backup_core::{
    Availability, Error, ErrorKind, Gfs, KeepLast, KeepWithin, Key, MemorySink, MemorySource, MemoryTarget,
    ObjectKind, PutOptions, Repository, Sink as _, Slot, put_bytes,
};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, noise};
use chrono::{DateTime, TimeDelta, TimeZone as _, Utc};

use crate::servers::s3;

const SET: &str = "books";

async fn locking() -> Option<(Moto, ObjectStoreSink)> {
    let moto = Moto::start().await?;
    let with_locks = [("x-amz-bucket-object-lock-enabled", "true")];
    let (status, body) = moto.request("PUT", "/tests", &with_locks, "").await;
    assert_eq!(status, 200, "{body}");
    let sink = s3(moto.address()).build().expect("a sink");
    Some((moto, sink))
}

fn over(sink: &ObjectStoreSink) -> Repository {
    Repository::builder().sink(sink.clone()).build().expect("a repository")
}

fn source(seed: u64) -> MemorySource {
    MemorySource::new().artifact("data", noise(200_000, seed)).artifact("small", "a few bytes")
}

fn retain_until(error: &Error) -> Option<DateTime<Utc>> {
    let text = error.context_value("retain_until")?;
    Some(DateTime::parse_from_rfc3339(text).expect("a time").to_utc())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_object_is_not_deleted_and_says_until_when() {
    let Some((_moto, sink)) = locking().await else { return };
    let key = |name: &str| Key::parse(name).expect("a key");
    let until = Utc::now() + TimeDelta::days(30);
    let note = || PutOptions::overwrite(ObjectKind::Note);
    put_bytes(&sink, &key("locked"), "x".into(), note().retain_until(Some(until))).await.expect("put");
    put_bytes(&sink, &key("free"), "x".into(), note()).await.expect("put");
    let error = sink.delete(&key("locked")).await.expect_err("it is locked");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert_eq!(retain_until(&error).map(|time| time.timestamp()), Some(until.timestamp()), "{error}");
    sink.head(&key("locked")).await.expect("it is still there, and not hidden");
    sink.delete(&key("free")).await.expect("what was not locked goes");
    sink.delete(&key("absent")).await.expect("what is not there is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_reports_what_is_locked_and_goes_on() {
    let Some((moto, sink)) = locking().await else { return };
    let repository = over(&sink);
    let days_ago = |days| Utc::now() - TimeDelta::days(days);
    let policy = KeepWithin::days(30);
    let locked = repository.backup(SET, &source(1)).started_at(days_ago(3)).keep_by(&policy).await;
    let locked = locked.expect("a backup that is locked").id;
    let free = repository.backup(SET, &source(2)).started_at(days_ago(2)).await.expect("a backup").id;
    let newest = repository.backup(SET, &source(3)).started_at(days_ago(1)).await.expect("a backup").id;
    for object in ["manifest.json", "data.bin", "details.jsonl", "RESTORE.txt"] {
        let lock = |headers: std::collections::BTreeMap<String, String>| {
            headers.get("x-amz-object-lock-retain-until-date").cloned()
        };
        let kept = lock(moto.headers(&format!("/tests/{SET}/{locked}/{object}")).await);
        let until = (locked.time() + TimeDelta::days(30)).format("%Y-%m-%dT%H:%M:%S").to_string();
        assert!(kept.as_ref().is_some_and(|kept| kept.starts_with(&until)), "{object}: {kept:?}");
        assert_eq!(lock(moto.headers(&format!("/tests/{SET}/{free}/{object}")).await), None, "{object}");
    }

    // To this prune the month is over; the store knows better.
    let later = Utc::now() + TimeDelta::days(40);
    let last = KeepLast::new(1);
    let prune = repository.prune(SET, &last).now(later).allow_mass_delete();
    let report = prune.await.expect("a locked object does not stop a prune");
    assert_eq!(report.deleted.iter().map(|d| d.id).collect::<Vec<_>>(), [free], "{report}");
    let [refused] = report.not_deleted.as_slice() else { panic!("{report}") };
    assert_eq!((refused.id, refused.manifest_gone), (locked, false));
    let until = retain_until(&refused.error).expect("until when");
    assert_eq!(until.timestamp(), (locked.time() + TimeDelta::days(30)).timestamp());
    assert!(refused.error.to_string().contains("prune again when it has come"), "{}", refused.error);

    let listed: Vec<_> = repository.backups(SET).await.expect("list").iter().map(|b| b.id).collect();
    assert_eq!(listed, [newest, locked]);
    assert!(repository.verify(SET, locked).await.expect("verify").is_intact());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yearly_backup_moves_to_the_archive_and_comes_back_thawed() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let sink = s3(moto.address()).build().expect("a sink");
    let repository = over(&sink);
    let on = |year| Utc.with_ymd_and_hms(year, 12, 30, 2, 0, 0).single().expect("a time");
    let old = repository.backup(SET, &source(1)).started_at(on(2023)).await.expect("a backup").id;
    let new = repository.backup(SET, &source(2)).started_at(on(2024)).await.expect("a backup").id;
    let policy = Gfs::new().daily(1).yearly(5);
    let prune = || repository.prune(SET, &policy).storage_class(Slot::Yearly, "GLACIER");
    let plan = prune().plan().await.expect("a plan");
    assert!(plan.to_string().contains(&format!("{old}  GLACIER")), "{plan}");
    let report = prune().await.and_then(backup_core::PruneReport::into_result).expect("prune");
    assert_eq!(report.archived.iter().map(|a| (a.id, a.objects)).collect::<Vec<_>>(), [(old, 1)], "{report}");
    let again = prune().await.expect("prune");
    assert!(again.archived.is_empty() && again.is_complete(), "it lies there already: {again}");

    let availability = async |id, name: &str| {
        let key = Key::parse(format!("{SET}/{id}/{name}")).expect("a key");
        sink.head(&key).await.expect("head").availability
    };
    assert_eq!(availability(old, "data.bin").await, Availability::Archived);
    assert_eq!(
        availability(new, "data.bin").await,
        Availability::Ready,
        "the newest is kept for the day too"
    );
    for hot in ["manifest.json", "details.jsonl", "small.bin"] {
        assert_eq!(availability(old, hot).await, Availability::Ready, "{hot}");
    }
    assert_eq!(repository.backups(SET).await.expect("list").len(), 2);

    let target = MemoryTarget::new();
    let error = repository.restore(SET).id(old).into(&target).await.expect_err("it is archived");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(!error.is_retryable() && error.to_string().contains("`thaw`"), "{error}");
    let error =
        repository.restore(SET).id(old).into(&target).thaw().await.expect_err("it was only asked for");
    assert!(error.to_string().contains("were asked for"), "{error}");
    assert!(target.names().is_empty());
    // moto has it at once, or says that it is under way.
    assert_ne!(availability(old, "data.bin").await, Availability::Archived);
    let restored = repository.restore(SET).id(old).into(&target).await;
    match restored {
        Ok(_) => assert!(target.get("data") == Some(noise(200_000, 1))),
        Err(error) => assert!(error.to_string().contains("were asked for"), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_without_classes_is_left_alone() {
    let repository = Repository::builder().sink(MemorySink::new()).build().expect("a repository");
    for days in [800, 400, 1] {
        let started = Utc::now() - TimeDelta::days(days);
        repository.backup(SET, &source(1)).started_at(started).await.expect("a backup");
    }
    let policy = Gfs::new().daily(1).yearly(9);
    let report = repository.prune(SET, &policy).storage_class(Slot::Yearly, "GLACIER").await.expect("prune");
    assert!(report.archived.is_empty() && report.is_complete(), "{report}");
}
