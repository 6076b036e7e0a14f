//! Replication: every copy whole, nothing unverified copied, nothing listed that is not whole.
#![expect(clippy::unwrap_used, reason = "in a test's helpers, too, a panic is the failure")]

use std::time::Duration;

use backup_core::{
    AesGcm, BackupId, Error, ErrorKind, Gzip, Key, Keyring, MemorySink, MemorySource, MemoryTarget,
    Placement, Repository, ShortOf, SinkId, copies,
};
use backup_testkit::{Fault, FaultySink, Operation, RecordingSink, Rule, noise};
use futures::{StreamExt as _, TryStreamExt as _};

const SET: &str = "app/data";

fn source() -> MemorySource {
    MemorySource::new().artifact("big", noise(4_400_000, 1)).artifact("small", "hello").artifact("none", "")
}

fn keyring() -> Keyring {
    Keyring::builder().key([7; 32]).build().unwrap()
}

/// A repository over these sinks that gives up quickly.
fn over<S: backup_core::Sink + 'static>(sinks: impl IntoIterator<Item = S>) -> Repository {
    let mut builder = Repository::builder();
    for sink in sinks {
        builder = builder.sink(sink);
    }
    builder
        .require_copies(1)
        .transform(Gzip::default())
        .transform(AesGcm::new(keyring()))
        .stall_timeout(Duration::from_millis(250))
        .retries(0, Duration::from_millis(1))
        .build()
        .unwrap()
}

fn id(sink: &MemorySink) -> SinkId {
    backup_core::Sink::id(sink).clone()
}

async fn backed_up(sink: &MemorySink) -> BackupId {
    over([sink.clone()]).backup(SET, &source()).await.unwrap().id
}

async fn restores_alone(sink: &MemorySink) {
    let target = MemoryTarget::new();
    over([sink.clone()]).restore(SET).latest().into(&target).await.unwrap();
    assert_eq!(target.get("big").unwrap(), noise(4_400_000, 1));
    assert_eq!(target.get("small").unwrap(), "hello");
    assert_eq!(target.get("none").unwrap(), "");
}

fn same(a: &MemorySink, b: &MemorySink) {
    assert_eq!(a.keys(), b.keys());
    for key in a.keys() {
        assert!(a.get(&key) == b.get(&key), "{key} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_an_empty_sink_is_whole_and_stands_alone() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    let repo = over([a.clone(), b.clone()]);
    let report = repo.replicate(SET, backup).await.unwrap();
    assert!(report.is_whole());
    let replica = report.replicas.iter().find(|r| r.sink == id(&b)).unwrap();
    assert_eq!(replica.copied.len(), a.keys().len());
    assert_eq!(replica.bytes, a.total_bytes());
    assert!(replica.copied.last().unwrap().as_str().ends_with("/manifest.json"));
    same(&a, &b);
    restores_alone(&b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_writes_nothing() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    over([a.clone(), b.clone()]).replicate(SET, backup).await.unwrap();
    let (a, b) = (RecordingSink::new(a), RecordingSink::new(b));
    for report in [
        over([a.clone(), b.clone()]).replicate(SET, backup).await.unwrap(),
        over([a.clone(), b.clone()]).replicate_all(SET).verify_existing().await.unwrap(),
    ] {
        assert_eq!(report.bytes(), 0);
        assert!(report.replicas.iter().all(|r| r.copied.is_empty() && r.healed.is_empty() && r.kept > 0));
    }
    for sink in [a, b] {
        assert_eq!(sink.count(Operation::Create) + sink.count(Operation::Delete), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_degraded_backup_is_no_longer_degraded_after_replication() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let faulty = FaultySink::new(b.clone());
    let repo = Repository::builder()
        .sink(a.clone())
        .sink(faulty.clone())
        .retries(0, Duration::from_millis(1))
        .build()
        .unwrap();
    faulty.arm(Rule::always().on(Operation::Create));
    let error = repo.backup(SET, &source()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooFewCopies);
    faulty.disarm();
    let list = repo.backups(SET).await.unwrap();
    assert!(list[0].degraded);
    let report = repo.replicate_all(SET).await.unwrap();
    assert!(report.is_whole());
    let list = repo.backups(SET).await.unwrap();
    assert!(!list[0].degraded);
    assert_eq!(list[0].copies.len(), 2);
    same(&a, &b);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_or_missing_object_of_a_copy_is_healed() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    over([a.clone(), b.clone()]).replicate(SET, backup).await.unwrap();
    let keys = a.keys();
    assert!(keys.iter().any(|k| k.as_str().contains(".enc.idx")));
    for key in &keys {
        let empty = a.get(key).unwrap().is_empty();
        for damage in if empty { 2..4 } else { 0..4 } {
            let noticed = match damage {
                0 => b.damage(key, |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }),
                1 => b.damage(key, |bytes| bytes.truncate(bytes.len() / 2)),
                2 => b.damage(key, |bytes| bytes.push(0)),
                _ => b.remove(key).is_some(),
            };
            assert!(noticed);
            let repo = over([b.clone(), a.clone()]);
            let report = repo.replicate(SET, backup).verify_existing().await.unwrap();
            let replica = report.replicas.iter().find(|r| r.sink == id(&b)).unwrap();
            let written = if damage < 3 { &replica.healed } else { &replica.copied };
            assert_eq!(written, std::slice::from_ref(key), "damage {damage}");
            assert!(over([b.clone()]).verify(SET, backup).await.unwrap().is_intact());
            if !key.as_str().contains("/keys/") {
                assert!(a.get(key) == b.get(key));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_damaged_in_different_blocks_heal_each_other() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    let repo = over([a.clone(), b.clone()]);
    repo.replicate(SET, backup).await.unwrap();
    let big = a.keys().into_iter().find(|k| k.as_str().ends_with("big.bin.gz.enc")).unwrap();
    let good = a.get(&big).unwrap();
    assert!(a.damage(&big, |bytes| bytes[100] ^= 1));
    assert!(b.damage(&big, |bytes| bytes[4_000_000] ^= 1));
    let report = repo.replicate(SET, backup).verify_existing().await.unwrap();
    assert_eq!(report.replicas.iter().map(|r| r.healed.len()).sum::<usize>(), 2);
    assert!(a.get(&big).unwrap() == good && b.get(&big).unwrap() == good);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_data_in_the_only_source_is_never_copied() {
    let a = MemorySink::named("a");
    let backup = backed_up(&a).await;
    for key in a.keys() {
        if a.get(&key).unwrap().is_empty() {
            continue;
        }
        let (a, b) = (a.fork(), MemorySink::named("b"));
        assert!(a.damage(&key, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }));
        let wrong = a.get(&key).unwrap();
        let repo = over([a.clone(), b.clone()]);
        repo.replicate(SET, backup).await.unwrap_err();
        assert!(b.get(&key).is_none_or(|copied| copied != wrong), "{key} was copied damaged");
        assert!(over([b.clone()]).backups(SET).await.unwrap().is_empty(), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_whole_manifest_of_the_same_backup_is_refused() {
    // Without keys anyone can make a manifest that is whole: here, a label was changed and the digest made anew.
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let repo = Repository::builder().sink(a.clone()).sink(b.clone()).build().unwrap();
    let backup = repo.backup(SET, &source()).label("n", "1").await.unwrap().id;
    let key = a.keys().into_iter().find(|k| k.as_str().ends_with("manifest.json")).unwrap();
    let text = String::from_utf8(b.get(&key).unwrap().to_vec()).unwrap();
    let (document, _) = text.trim_end().rsplit_once('\n').unwrap();
    let document = format!("{}\n", document.replace("\"n\": \"1\"", "\"n\": \"2\""));
    let seal = backup_core::Digest::of(document.as_bytes());
    let other = format!("{document}{{\"seal\":\"sha256\",\"value\":\"{seal}\"}}\n");
    b.replace(&key, other.clone());
    let error = repo.replicate(SET, backup).await.unwrap_err();
    assert!(error.chain().contains("another manifest"), "{}", error.chain());
    assert_eq!(b.get(&key).unwrap(), other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_being_pruned_or_just_finishing_is_left_alone() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    let condemned = Key::parse(format!("{SET}/{backup}/condemned/00ff")).unwrap();
    b.replace(&condemned, "");
    let repo = over([a.clone(), b.clone()]);
    assert!(repo.replicate(SET, backup).await.unwrap_err().chain().contains("pruned"));
    assert_eq!(b.keys(), std::slice::from_ref(&condemned));
    b.remove(&condemned);

    let pending = Key::parse(format!("{SET}/{backup}/pending.json")).unwrap();
    let marker = format!(r#"{{"format":1,"set":"{SET}","id":"{backup}","expires":"2100-01-01T00:00:00Z"}}"#);
    a.replace(&pending, marker);
    assert_eq!(repo.replicate(SET, backup).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(b.keys().is_empty());
    repo.replicate(SET, backup).take_over().await.unwrap();
    restores_alone(&b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_cut_off_is_resumed_and_not_begun_again() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    let faulty = FaultySink::new(b.clone());
    // The third object fails for good: what was copied before stays.
    faulty.arm(Rule::nth(6).on(Operation::Create).times(u64::MAX));
    over([FaultySink::new(a.clone()), faulty]).replicate(SET, backup).await.unwrap_err();
    let before = b.keys();
    assert!(before.len() >= 3 && !before.iter().any(|k| k.as_str().ends_with("manifest.json")));
    assert!(over([b.clone()]).backups(SET).await.unwrap().is_empty());
    let report = over([a.clone(), b.clone()]).replicate(SET, backup).await.unwrap();
    let replica = report.replicas.iter().find(|r| r.sink == id(&b)).unwrap();
    assert!(replica.kept > 0);
    assert!(replica.bytes < a.total_bytes() / 2, "{} bytes were copied again", replica.bytes);
    same(&a, &b);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sinks_to_read_and_to_write_can_be_named() {
    let sinks = [MemorySink::named("a"), MemorySink::named("b"), MemorySink::named("c")];
    let backup = backed_up(&sinks[0]).await;
    let repo = over(sinks.clone());
    let report = repo.replicate(SET, backup).from(&id(&sinks[0])).to(&id(&sinks[2])).await.unwrap();
    assert_eq!(report.replicas.len(), 1);
    assert!(sinks[1].keys().is_empty());
    let error = repo.replicate(SET, backup).from(&id(&sinks[1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = repo.replicate(SET, backup).to(&SinkId::new("d")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// One fault at every call of either sink in turn: a loud failure, nothing listed that is not whole, a clean re-run.
async fn sweep(fault: Fault, on_source: bool, heal: bool) {
    let a = MemorySink::named("a");
    let backup = backed_up(&a).await;
    let mut n = 1;
    let mut failures = 0;
    loop {
        let b = MemorySink::named("b");
        if heal {
            over([a.clone(), b.clone()]).replicate(SET, backup).await.unwrap();
            for key in b.keys().iter().filter(|k| !k.as_str().contains(".enc.idx")) {
                b.damage(key, |bytes| bytes.truncate(bytes.len() / 2));
            }
        }
        let (from, to) = (FaultySink::new(a.clone()), FaultySink::new(b.clone()));
        let faulty = if on_source { &from } else { &to };
        faulty.arm(Rule::nth(n).fault(fault));
        let repo = over([from.clone(), to.clone()]);
        let result = repo.replicate(SET, backup).to(&id(&b)).await;
        let fired = faulty.faults() > 0;
        faulty.disarm();
        let listed = over([b.clone()]).backups(SET).await.unwrap();
        match result {
            Ok(report) => assert!(report.is_whole()),
            Err(error) => {
                failures += 1;
                assert!(fired, "{}", error.chain());
            }
        }
        if !listed.is_empty() {
            let report = over([b.clone()]).verify(SET, backup).await.unwrap();
            assert!(report.is_intact(), "{fault:?} at call {n}: {:?}", report.problems);
        }
        over([a.clone(), b.clone()]).replicate(SET, backup).verify_existing().await.unwrap();
        same(&a, &b);
        if !fired {
            break;
        }
        n += 1;
    }
    assert!(failures > 5, "only {failures} of {n} faults were noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_every_call_of_the_destination_is_loud_and_leaves_nothing_half() {
    sweep(Fault::permanent(), false, false).await;
    sweep(Fault::permanent(), false, true).await;
    sweep(Fault::LostReply { retryable: false }, false, false).await;
    sweep(Fault::short_write(), false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_every_call_of_the_source_is_loud_and_leaves_nothing_half() {
    sweep(Fault::permanent(), true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_at_every_call_leaves_nothing_half() {
    sweep(Fault::Cut, false, false).await;
    sweep(Fault::Cut, false, true).await;
    sweep(Fault::Cut, true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_at_every_call_is_given_up_and_leaves_nothing_half() {
    sweep(Fault::Hang, false, false).await;
    sweep(Fault::Hang, true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_leaves_nothing_listed_and_the_next_one_finishes() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let backup = backed_up(&a).await;
    let repo = over([a.clone(), b.clone()]);
    let run = repo.replicate(SET, backup).rate_limit(4_000_000).into_future();
    assert!(tokio::time::timeout(Duration::from_millis(300), run).await.is_err());
    assert!(over([b.clone()]).backups(SET).await.unwrap().is_empty());
    repo.replicate(SET, backup).await.unwrap();
    same(&a, &b);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_that_cannot_be_opened_does_not_stop_the_others() -> Result<(), Error> {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let first = backed_up(&a).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = backed_up(&a).await;
    let manifest = Key::parse(format!("{SET}/{first}/manifest.json"))?;
    assert!(a.damage(&manifest, |bytes| bytes[10] ^= 1));
    let repo = over([a.clone(), b.clone()]);
    let report = repo.replicate_all(SET).report().await?;
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].id, Some(first));
    assert!(report.replicas.iter().all(|r| r.id == second && r.whole));
    let list = over([b.clone()]).backups(SET).await?;
    assert_eq!(list.iter().map(|s| s.id).collect::<Vec<_>>(), [second]);
    Ok(())
}

/// A source that refers to its parent for everything but one new artifact is made of directories in `backup-fs`; here
/// the references are followed as the manifest has them.
#[derive(Debug)]
struct Grows(u32);

struct GrowsSnapshot {
    number: u32,
    given: bool,
    items: backup_core::ItemSpool,
}

#[backup_core::async_trait]
impl backup_core::Source for Grows {
    fn kind(&self) -> &'static str {
        "grows"
    }
    async fn check(&self) -> backup_core::Result<backup_core::CheckReport> {
        Ok(backup_core::CheckReport::default())
    }
    async fn snapshot(
        &self,
        request: backup_core::SnapshotRequest<'_>,
    ) -> backup_core::Result<Box<dyn backup_core::Snapshot>> {
        let mut items = backup_core::ItemSpool::new();
        if let Some(parent) = request.parent {
            let mut old = parent.items();
            while let Some(item) = old.try_next().await? {
                items.push(&item)?;
            }
        }
        Ok(Box::new(GrowsSnapshot { number: self.0, given: false, items }))
    }
}

#[backup_core::async_trait]
impl backup_core::Snapshot for GrowsSnapshot {
    async fn next(&mut self) -> backup_core::Result<Option<backup_core::Artifact>> {
        if std::mem::replace(&mut self.given, true) {
            return Ok(None);
        }
        let name = format!("part-{}", self.number);
        self.items.push(&backup_core::whole_item(&name, 3, backup_core::Digest::of(b"new")))?;
        let meta = backup_core::ArtifactMeta::new(name, backup_core::ArtifactFormat::BYTES);
        Ok(Some(backup_core::Artifact { meta, data: futures::stream::iter([Ok("new".into())]).boxed() }))
    }
    async fn finish(&mut self) -> backup_core::Result<backup_core::SourceReport> {
        let items = std::mem::take(&mut self.items);
        Ok(backup_core::SourceReport { items, ..Default::default() })
    }
    async fn close(self: Box<Self>, _: backup_core::Outcome) -> backup_core::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_incremental_refers_to_is_replicated_before_it() {
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let repo = over([a.clone()]);
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(repo.backup("grow", &Grows(number)).incremental().await.unwrap().id);
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let last = ids[2];
    assert_eq!(repo.contents("grow", last).await.unwrap().manifest().references.len(), 2);
    // The destination fails once while the first is copied: then it gets none of those that need it.
    let faulty = FaultySink::new(b.clone());
    let both = over([FaultySink::new(a.clone()), faulty.clone()]);
    faulty.arm(Rule::nth(1).on(Operation::Create));
    let report = both.replicate("grow", last).report().await.unwrap();
    assert_eq!(report.failures.len(), 3, "{:?}", report.failures);
    assert!(over([b.clone()]).backups("grow").await.unwrap().is_empty());

    let report = both.replicate("grow", last).await.unwrap();
    let on_b: Vec<_> = report.replicas.iter().filter(|r| r.sink == id(&b)).map(|r| r.id).collect();
    assert_eq!(on_b, ids, "oldest first");
    same(&a, &b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_good_copies_break_the_copy_rule_is_degraded_until_replicated() {
    let home = || Placement::new().medium("disk").site("home");
    let (a, b) = (MemorySink::named("a"), MemorySink::named("b"));
    let faulty = FaultySink::new(b.clone());
    let builder = || {
        Repository::builder()
            .production(Placement::new().medium("ssd").site("home"))
            .sink_at(a.clone(), home())
            .sink_at(faulty.clone(), Placement::new().medium("object store").site("away"))
            .retries(0, Duration::from_millis(1))
    };
    // One copy is enough by number, but it must not be the one at home.
    let repo = builder().require(copies(2).media(2).off_site(1)).build().unwrap();
    faulty.arm(Rule::always().on(Operation::Create));
    let error = repo.backup(SET, &source()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooFewCopies);
    assert_eq!(error.context_value("short_of"), Some("0 of 1 copies off site"));
    faulty.disarm();
    let list = repo.backups(SET).await.unwrap();
    assert!(list[0].degraded);
    assert_eq!(list[0].shortfalls.iter().map(|s| s.of).collect::<Vec<_>>(), [ShortOf::OffSite]);
    repo.replicate_all(SET).await.unwrap();
    let list = repo.backups(SET).await.unwrap();
    assert!(!list[0].degraded && list[0].shortfalls.is_empty());

    for rule in [copies(4), copies(2).media(4), copies(2).off_site(2)] {
        let error = builder().require(rule).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.context_value("short_of").is_some());
    }
}
