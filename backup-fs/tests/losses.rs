//! Objects that no copy holds undamaged any more: the rest restores where that is asked for, with a list of what is lost,
//! and is no success (promises 3 and 4).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::collections::BTreeMap;
use std::path::Path;

use backup_core::{AesGcm, ErrorKind, Key, Keyring, MemorySink, Repository, RestoreOutcome, Zstd};
use backup_fs::{DirectorySource, DirectoryTarget};
use backup_testkit::noise;

const SET: &str = "site/content";

fn repository(sinks: &[MemorySink]) -> Repository {
    let keyring = Keyring::builder().key([5; 32]).build().unwrap();
    let builder = sinks.iter().fold(Repository::builder(), |builder, sink| builder.sink(sink.clone()));
    builder.transform(Zstd::default()).transform(AesGcm::new(keyring)).build().unwrap()
}

fn source(tree: &Path) -> DirectorySource {
    DirectorySource::builder().root(".", tree).artifact_size(6_000_000).build().unwrap()
}

/// Forty files of a quarter of a MiB, in directories, and a hard link to each tenth.
fn grow(tree: &Path) {
    for n in 0..40_u64 {
        let dir = tree.join(format!("dir{}", n / 10));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("file{n:02}"));
        std::fs::write(&path, noise(256 * 1024, n)).unwrap();
        if n % 10 == 0 {
            std::fs::hard_link(&path, tree.join(format!("link{n:02}"))).unwrap();
        }
    }
}

/// Every regular file below a directory, by its name in it.
fn files(tree: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(tree).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The data objects of the sinks, the same on all.
fn artifacts(sink: &MemorySink) -> Vec<Key> {
    sink.keys().into_iter().filter(|key| key.file_name().ends_with(".tar.zst.enc")).collect()
}

/// Restores what can be restored; checks that it is exactly what is not in the list.
async fn rest(repo: &Repository, tree: &Path) -> RestoreOutcome {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    let error = repo.restore(SET).latest().into(&DirectoryTarget::new(&plain)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound), "{}", error.chain());
    assert!(!plain.exists(), "without the option nothing is restored");

    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let target = DirectoryTarget::new(&first);
    let error = repo.restore(SET).latest().into(&target).allow_losses().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    let target = DirectoryTarget::new(&second);
    let outcome = repo.restore(SET).latest().into(&target).allow_losses().report().await.unwrap();
    assert!(!outcome.is_complete());
    assert_eq!(error.context_value("lost").unwrap(), outcome.losses.len().to_string());

    let mut expected = files(tree);
    for loss in &outcome.losses {
        assert!(!loss.why.is_empty());
        expected.remove(&loss.item.to_string());
    }
    for restored in [first, second] {
        let restored = files(&restored);
        assert_eq!(restored.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(restored == expected, "other bytes were restored");
    }
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn without_one_object_the_rest_restores_and_the_losses_are_listed() {
    let tree = tempfile::tempdir().unwrap();
    grow(tree.path());
    let sinks = [MemorySink::named("first"), MemorySink::named("second")];
    let repo = repository(&sinks);
    repo.backup(SET, &source(tree.path())).await.unwrap();
    let objects = artifacts(&sinks[0]);
    assert!(objects.len() >= 2, "{objects:?}");

    for lost in &objects {
        let saved = sinks.each_ref().map(|sink| sink.remove(lost).unwrap());
        let outcome = rest(&repo, tree.path()).await;
        assert!(outcome.losses.iter().all(|loss| loss.size <= 256 * 1024));
        assert!(outcome.losses.len() < 35, "{} of about 49 items are lost", outcome.losses.len());
        for (sink, bytes) in sinks.iter().zip(saved) {
            sink.replace(lost, bytes);
        }
    }
    let target = tempfile::tempdir().unwrap();
    let into = DirectoryTarget::new(target.path().join("whole"));
    let whole = repo.restore(SET).latest().into(&into).allow_losses().await.unwrap();
    assert!(whole.is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_costs_only_the_files_that_lie_in_it() {
    let tree = tempfile::tempdir().unwrap();
    grow(tree.path());
    let sinks = [MemorySink::named("first"), MemorySink::named("second")];
    let repo = repository(&sinks);
    repo.backup(SET, &source(tree.path())).await.unwrap();
    let large = artifacts(&sinks[0]).remove(0);
    for sink in &sinks {
        assert!(sink.damage(&large, |bytes| bytes[2_500_000] ^= 4));
    }
    let outcome = rest(&repo, tree.path()).await;
    // A stored block is one MiB. With the encrypted segments across its edges it touches three compressed blocks of one
    // MiB: twelve files, one at each edge, a directory and a link.
    assert!((1..=16).contains(&outcome.losses.len()), "{:?}", outcome.losses);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_restores_what_it_holds_itself_when_its_parent_is_lost() {
    let tree = tempfile::tempdir().unwrap();
    grow(tree.path());
    let sinks = [MemorySink::named("first"), MemorySink::named("second")];
    let repo = repository(&sinks);
    // What changed a moment before it was read is read again next time, and would not lie in the parent.
    tokio::time::sleep(std::time::Duration::from_millis(4100)).await;
    let parent = repo.backup(SET, &source(tree.path())).await.unwrap().id;
    // Ids tell seconds apart.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    std::fs::write(tree.path().join("new"), "written since").unwrap();
    let child = repo.backup(SET, &source(tree.path())).incremental().await.unwrap();
    assert!(child.stored_size < 1_000_000, "{child:?}");
    for sink in &sinks {
        for key in sink.keys().iter().filter(|key| key.as_str().contains(&parent.to_string())) {
            sink.remove(key);
        }
    }
    let outcome = rest(&repo, tree.path()).await;
    assert!(outcome.losses.iter().all(|loss| loss.item.to_string() != "new"));
    assert!(outcome.losses.iter().any(|loss| loss.why.contains(&parent.to_string())), "{:?}", outcome.losses);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_replaces_allows_no_losses_and_what_is_out_of_reach_is_not_lost() {
    let tree = tempfile::tempdir().unwrap();
    grow(tree.path());
    let sink = MemorySink::named("only");
    let repo = repository(std::slice::from_ref(&sink));
    repo.backup(SET, &source(tree.path())).await.unwrap();
    let target = DirectoryTarget::new(tree.path());
    let error = repo.restore(SET).latest().into(&target).replace().allow_losses().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let faulty = backup_testkit::FaultySink::new(sink);
    let keyring = Keyring::builder().key([5; 32]).build().unwrap();
    let away = Repository::builder()
        .sink(faulty.clone())
        .keyring(keyring)
        .transform(Zstd::default())
        .retries(0, std::time::Duration::ZERO)
        .build()
        .unwrap();
    // The manifest, its key wrap and the details are still read; then the sink goes away.
    let fault = backup_testkit::Fault::Fail { kind: ErrorKind::Unavailable, retryable: true };
    let rule = backup_testkit::Rule::nth(8).on(backup_testkit::Operation::Open).times(u64::MAX);
    faulty.arm(rule.fault(fault));
    let dir = tempfile::tempdir().unwrap();
    let target = DirectoryTarget::new(dir.path().join("restored"));
    let error = away.restore(SET).latest().into(&target).allow_losses().report().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(!dir.path().join("restored").exists());
}
