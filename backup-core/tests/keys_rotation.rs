//! Rotation, key checks, the list of sets and the recovery sheet.
#![expect(clippy::unwrap_used, reason = "in a test's helpers, too, a panic is the failure")]

use std::time::Duration;

use backup_core::{
    AesGcm, BackupId, Bytes, ErrorKind, Key, Keyring, MemorySink, MemorySource, MemoryTarget, ObjectInfo,
    PutOptions, Repository, Result, Sink, SinkId, SinkWriter, async_trait,
};
use backup_testkit::{Fault, FaultySink, Operation, Rule};
use futures::stream::BoxStream;

const SET: &str = "app/data";

fn ring(keys: &[u8]) -> Keyring {
    keys.iter().fold(Keyring::builder(), |ring, key| ring.key([*key; 32])).build().unwrap()
}

fn over<S: Sink + 'static>(sinks: impl IntoIterator<Item = S>, keyring: &Keyring) -> Repository {
    let mut builder = Repository::builder();
    for sink in sinks {
        builder = builder.sink(sink);
    }
    builder
        .require_copies(1)
        .transform(AesGcm::new(keyring.clone()))
        .stall_timeout(Duration::from_millis(250))
        .retries(0, Duration::from_millis(1))
        .build()
        .unwrap()
}

async fn back_up(repo: &Repository, set: &str) -> BackupId {
    repo.backup(set, &MemorySource::new().artifact("a", "precious")).await.unwrap().id
}

async fn opens(sink: &MemorySink, keyring: &Keyring, set: &str) -> bool {
    let target = MemoryTarget::new();
    let done = over([sink.clone()], keyring).restore(set).latest().into(&target).await;
    done.is_ok() && target.get("a").unwrap() == "precious"
}

/// Everything but key wraps.
fn objects(sink: &MemorySink) -> Vec<(Key, Bytes)> {
    let keys = sink.keys().into_iter().filter(|k| !k.as_str().contains("/keys/"));
    keys.map(|k| (k.clone(), sink.get(&k).unwrap())).collect()
}

fn wraps(sink: &MemorySink) -> Vec<Key> {
    sink.keys().into_iter().filter(|k| k.as_str().contains("/keys/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_only_the_new_key_opens_and_nothing_else_changed() {
    let sinks = [MemorySink::named("a"), MemorySink::named("b")];
    let repo = over(sinks.clone(), &ring(&[1]));
    for set in [SET, "other"] {
        back_up(&repo, set).await;
    }
    let before = sinks.each_ref().map(objects);
    let report = repo.rotate_all(&ring(&[2])).await.unwrap();
    assert_eq!(report.rotated.len(), 4);
    assert!(report.rotated.iter().all(|r| r.written == 1 && r.deleted == 1));
    assert!(report.locked.is_empty() && report.foreign.is_empty());
    assert_eq!(sinks.each_ref().map(objects), before);
    for sink in &sinks {
        for set in [SET, "other"] {
            assert!(opens(sink, &ring(&[2]), set).await);
            assert!(!opens(sink, &ring(&[1]), set).await);
        }
        assert_eq!(wraps(sink).len(), 2);
    }
    // Again, with the old keyring as well as with the new one: nothing left to do.
    for keys in [&[1][..], &[2], &[2, 1]] {
        let report = over(sinks.clone(), &ring(keys)).rotate_all(&ring(&[2])).await.unwrap();
        assert!(report.rotated.iter().all(|r| r.written == 0 && r.deleted == 0));
        assert_eq!(report.rotated.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_set_can_be_rotated_and_old_wraps_be_kept() {
    let a = MemorySink::named("a");
    let repo = over([a.clone()], &ring(&[1]));
    for set in [SET, "other"] {
        back_up(&repo, set).await;
    }
    let report = repo.rotate(SET, &ring(&[2])).keep_old().await.unwrap();
    assert_eq!(report.rotated.len(), 1);
    assert!(opens(&a, &ring(&[1]), SET).await && opens(&a, &ring(&[2]), SET).await);
    assert!(!opens(&a, &ring(&[2]), "other").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_keys_can_wrap_and_a_wrap_for_a_strange_key_is_left_alone() {
    let a = MemorySink::named("a");
    let escrow = Keyring::builder().key([1; 32]).key([9; 32]).wrap_with_all().build().unwrap();
    back_up(&over([a.clone()], &escrow), SET).await;
    assert_eq!(wraps(&a).len(), 2);
    // This repository does not know key 9.
    let both = Keyring::builder().key([2; 32]).key([3; 32]).wrap_with_all().build().unwrap();
    let report = over([a.clone()], &ring(&[1])).rotate(SET, &both).await.unwrap();
    assert_eq!((report.rotated[0].written, report.rotated[0].deleted), (2, 1));
    assert_eq!(report.foreign.len(), 1);
    assert!(report.foreign[0].written.is_some());
    for (key, good) in [(1, false), (2, true), (3, true), (9, true)] {
        assert_eq!(opens(&a, &ring(&[key]), SET).await, good, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_is_replaced_by_another() {
    let a = MemorySink::named("a");
    let (old, new) = ("old passphrase", "new passphrase");
    back_up(&over([a.clone()], &Keyring::from_passphrase(old).unwrap()), SET).await;
    let repo = over([a.clone()], &Keyring::from_passphrase(old).unwrap());
    let mistyped = Keyring::from_passphrase(new).unwrap();
    assert_eq!(repo.rotate(SET, &mistyped).await.unwrap_err().kind(), ErrorKind::WrongKey);
    let ring = Keyring::builder().passphrase(new).allow_new_passphrase().build().unwrap();
    repo.rotate(SET, &ring).await.unwrap();
    assert!(opens(&a, &Keyring::from_passphrase(new).unwrap(), SET).await);
    assert!(!opens(&a, &Keyring::from_passphrase(old).unwrap(), SET).await);
}

/// A sink that deletes nothing before a date, like a bucket with object lock.
#[derive(Clone, Debug)]
struct Locked(MemorySink);

#[async_trait]
impl Sink for Locked {
    fn id(&self) -> &SinkId {
        self.0.id()
    }
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        self.0.create(key, options).await
    }
    async fn open(&self, key: &Key, range: Option<std::ops::Range<u64>>) -> Result<backup_core::ByteStream> {
        self.0.open(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.0.head(key).await
    }
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        self.0.list(prefix)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        if key.as_str().ends_with("pending.json") {
            return self.0.delete(key).await;
        }
        Err(backup_core::Error::new(ErrorKind::PermissionDenied, "delete object")
            .with("retain_until", "2027-01-31T00:00:00Z"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_old_wrap_is_reported_with_its_date() {
    let a = MemorySink::named("a");
    back_up(&over([a.clone()], &ring(&[1])), SET).await;
    let report = over([Locked(a.clone())], &ring(&[1])).rotate(SET, &ring(&[2])).await.unwrap();
    assert_eq!(report.locked.len(), 1);
    assert_eq!(report.locked[0].until.unwrap().to_rfc3339(), "2027-01-31T00:00:00+00:00");
    assert_eq!(report.locked[0].error.as_ref().unwrap().kind(), ErrorKind::PermissionDenied);
    assert!(opens(&a, &ring(&[1]), SET).await && opens(&a, &ring(&[2]), SET).await);
}

/// A sink on which, at the first try to delete a wrap, a prune has just deleted the copy and a replication has brought it
/// back with the wraps of another sink. The try itself fails.
#[derive(Clone, Debug)]
struct Replicated {
    sink: MemorySink,
    once: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

#[async_trait]
impl Sink for Replicated {
    fn id(&self) -> &SinkId {
        self.sink.id()
    }
    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        self.sink.create(key, options).await
    }
    async fn open(&self, key: &Key, range: Option<std::ops::Range<u64>>) -> Result<backup_core::ByteStream> {
        self.sink.open(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.sink.head(key).await
    }
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        self.sink.list(prefix)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        if self.once.swap(false, std::sync::atomic::Ordering::SeqCst) {
            for new in wraps(&self.sink).iter().filter(|wrap| *wrap != key) {
                self.sink.remove(new);
            }
            return Err(backup_core::Error::new(ErrorKind::Unavailable, "delete object"));
        }
        self.sink.delete(key).await
    }
}

/// Found by the model checker (seed 9): the repeated deletion took the only wrap of the new copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_wrap_of_a_copy_made_anew_meanwhile_is_not_deleted() {
    let sink = MemorySink::named("a");
    back_up(&over([sink.clone()], &ring(&[1])), SET).await;
    let replicated = Replicated { sink: sink.clone(), once: std::sync::Arc::new(true.into()) };
    let repo = Repository::builder()
        .sink(replicated)
        .transform(AesGcm::new(ring(&[1])))
        .retries(2, Duration::from_millis(1))
        .build()
        .unwrap();
    let error = repo.rotate(SET, &ring(&[2])).await.unwrap_err();
    assert!(error.chain().contains("copied anew"), "{}", error.chain());
    assert!(opens(&sink, &ring(&[1]), SET).await);
    repo.rotate(SET, &ring(&[2])).await.unwrap();
    assert!(opens(&sink, &ring(&[2]), SET).await && !opens(&sink, &ring(&[1]), SET).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_not_rotated_but_reported() {
    let sinks = [MemorySink::named("a"), MemorySink::named("b")];
    let repo = over(sinks.clone(), &ring(&[1]));
    back_up(&repo, SET).await;
    let manifest = sinks[1].keys().into_iter().find(|k| k.as_str().ends_with("manifest.json")).unwrap();
    assert!(sinks[1].damage(&manifest, |bytes| bytes[20] ^= 1));
    let before = wraps(&sinks[1]);
    let report = repo.rotate(SET, &ring(&[2])).report().await.unwrap();
    assert_eq!((report.rotated.len(), report.failures.len()), (1, 1));
    assert_eq!(wraps(&sinks[1]), before);
    assert!(report.into_result().unwrap_err().chain().contains("replicate"));
    // Healed, it opens with the new key, and the old wrap is gone with the next rotation.
    let both = over(sinks.clone(), &ring(&[2, 1]));
    both.replicate_all(SET).await.unwrap();
    both.rotate(SET, &ring(&[2])).await.unwrap();
    assert!(opens(&sinks[1], &ring(&[2]), SET).await);
    assert!(!opens(&sinks[1], &ring(&[1]), SET).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_every_call_leaves_every_copy_openable_and_the_next_run_finishes() {
    let kinds = [Fault::permanent(), Fault::Hang, Fault::Cut, Fault::LostReply { retryable: false }];
    for fault in kinds {
        let (mut n, mut failures) = (1, 0);
        loop {
            let a = MemorySink::named("a");
            back_up(&over([a.clone()], &ring(&[1])), SET).await;
            let before = objects(&a);
            let faulty = FaultySink::new(a.clone());
            faulty.arm(Rule::nth(n).fault(fault));
            let result = over([faulty.clone()], &ring(&[1])).rotate_all(&ring(&[2])).await;
            let fired = faulty.faults() > 0;
            let (old, new) = (opens(&a, &ring(&[1]), SET).await, opens(&a, &ring(&[2]), SET).await);
            assert!(old || new, "{fault:?} at call {n}: no key opens the copy");
            match result {
                Err(error) => {
                    failures += 1;
                    assert!(fired, "{}", error.chain());
                }
                // A list cut short says nothing: then there was nothing to rotate, and the report shows it.
                Ok(report) if report.rotated.is_empty() => assert!(fault == Fault::Cut && old),
                Ok(_) => assert!(new),
            }
            let report = over([a.clone()], &ring(&[1])).rotate_all(&ring(&[2])).await.unwrap();
            assert_eq!(report.rotated.len(), 1);
            assert!(opens(&a, &ring(&[2]), SET).await && !opens(&a, &ring(&[1]), SET).await);
            assert_eq!(objects(&a), before);
            if !fired {
                break;
            }
            n += 1;
        }
        assert!(failures > 5, "only {failures} of {n} faults of {fault:?} were noticed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_dropped_at_every_call_leaves_every_copy_openable() {
    // A call that hangs is where a killed process was.
    for n in 1..40 {
        let a = MemorySink::named("a");
        back_up(&over([a.clone()], &ring(&[1])), SET).await;
        let faulty = FaultySink::new(a.clone());
        faulty.arm(Rule::nth(n).fault(Fault::Hang));
        let repo =
            Repository::builder().sink(faulty.clone()).transform(AesGcm::new(ring(&[1]))).build().unwrap();
        let new = ring(&[2]);
        let run = repo.rotate(SET, &new).into_future();
        let finished = tokio::time::timeout(Duration::from_millis(100), run).await.is_ok();
        assert!(opens(&a, &ring(&[2, 1]), SET).await, "killed at call {n}");
        over([a.clone()], &ring(&[1])).rotate(SET, &new).await.unwrap();
        assert!(opens(&a, &new, SET).await && !opens(&a, &ring(&[1]), SET).await);
        if finished {
            return;
        }
    }
    panic!("the rotation never finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_are_found_and_keys_are_checked_one_by_one() {
    let a = MemorySink::named("a");
    back_up(&over([a.clone()], &ring(&[1])), SET).await;
    back_up(&over([a.clone()], &ring(&[2])), "bücher/pg").await;
    a.replace(&Key::parse("app/data/notes.txt").unwrap(), "foreign");
    let repo = over([a.clone()], &ring(&[1, 3]));
    let sets = repo.sets().await.unwrap();
    assert_eq!(sets.iter().map(backup_core::SetName::as_str).collect::<Vec<_>>(), [SET, "bücher/pg"]);

    let report = repo.check_keys().await.unwrap();
    let opened: Vec<_> = report.checks.iter().map(|c| (c.set.as_str(), c.opens.is_ok())).collect();
    assert_eq!(opened, [(SET, true), (SET, false), ("bücher/pg", false), ("bücher/pg", false)]);
    assert_eq!(report.locked_out().len(), 1);
    let error = report.into_result().unwrap_err();
    assert_eq!((error.kind(), error.context_value("set")), (ErrorKind::WrongKey, Some("bücher/pg")));
    over([a], &ring(&[1, 2])).check_keys().await.unwrap().into_result().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_sheet_holds_secrets_only_when_asked() {
    let a = MemorySink::named("a");
    let keyring = Keyring::builder().passphrase("correct horse").key([0x5a; 32]).build().unwrap();
    let repo = over([a], &keyring);
    let id = back_up(&repo, SET).await;
    let sheet = repo.recovery_sheet().await.unwrap();
    for needed in [SET, &id.to_string(), "decrypt.py", "600000 rounds", "k-", "p-", "on a", "PBKDF2"] {
        assert!(sheet.expose().contains(needed), "{needed} is missing:\n{}", sheet.expose());
    }
    let secrets = ["correct horse".to_owned(), "5a".repeat(32)];
    for secret in &secrets {
        assert!(!sheet.expose().contains(secret));
    }
    let sheet = repo.recovery_sheet().include_secrets().await.unwrap();
    for secret in &secrets {
        assert!(sheet.expose().contains(secret));
        assert!(!format!("{sheet:?}").contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_brings_back_no_wrap_that_was_rotated_away() {
    let sinks = [MemorySink::named("a"), MemorySink::named("b")];
    back_up(&over(sinks.clone(), &ring(&[1])), SET).await;
    let faulty = FaultySink::new(sinks[1].clone());
    faulty.arm(Rule::always().on(Operation::Create));
    over([FaultySink::new(sinks[0].clone()), faulty], &ring(&[1])).rotate_all(&ring(&[2])).await.unwrap_err();
    assert!(opens(&sinks[1], &ring(&[1]), SET).await);
    over(sinks.clone(), &ring(&[2, 1])).replicate_all(SET).verify_existing().await.unwrap();
    assert!(!opens(&sinks[0], &ring(&[1]), SET).await);
}
