//! The conformance suite of sources.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backup_core::{Key, Outcome, Proofs, SnapshotRequest, Source};
use futures::StreamExt as _;

use crate::{Captured, capture};

/// How long a source may take to notice that it is to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the promises of [`Source`] against one that holds some data and that nobody writes to meanwhile.
///
/// What only the datastore can tell (that no transaction, slot, file or process is left) is asked through the
/// `no_leaks` that [`run`](SourceSuite::run) takes.
#[derive(Clone, Debug)]
pub struct SourceSuite {
    deterministic: bool,
}

impl SourceSuite {
    /// The suite for a source whose bytes are the same every time.
    pub fn new() -> Self {
        Self { deterministic: true }
    }

    /// For sources whose artifacts differ from run to run although the content is the same (embedded times, hash
    /// order): only names and proofs are compared then.
    pub fn bytes_differ(mut self) -> Self {
        self.deterministic = false;
        self
    }

    /// Runs all checks. Call it with at least one artifact that is not empty. `no_leaks` is awaited after every run
    /// that was given up, and panics if the datastore still holds something for it.
    pub async fn run(&self, source: &dyn Source, no_leaks: impl AsyncFn()) {
        let check = source.check().await.unwrap_or_else(|e| panic!("check: {}", e.chain()));
        assert!(check.is_ok(), "check finds a reason why a backup would fail: {:?}", check.findings);

        let first = take(source).await;
        assert!(
            first.artifacts.iter().any(|(_, bytes)| !bytes.is_empty()),
            "the suite needs a source with data"
        );
        names_are_unique_and_make_keys(&first);
        items_lie_within_artifacts_and_do_not_overlap(&first);
        proofs_are_the_sums_of_items(&first);
        no_leaks().await;

        nothing_is_finished_before_it_is_drained(source).await;
        no_leaks().await;
        a_dropped_stream_leaves_nothing(source).await;
        no_leaks().await;
        a_cancelled_run_ends(source).await;
        no_leaks().await;

        let second = take(source).await;
        self.same(&first, &second);
    }

    fn same(&self, first: &Captured, second: &Captured) {
        assert_eq!(first.report.proofs, second.report.proofs, "the same content proves differently");
        let names = |c: &Captured| c.artifacts.iter().map(|(meta, _)| meta.clone()).collect::<Vec<_>>();
        assert_eq!(names(first), names(second), "the same content makes other artifacts");
        if self.deterministic {
            for ((meta, a), (_, b)) in first.artifacts.iter().zip(&second.artifacts) {
                assert!(a == b, "artifact {} differs from run to run", meta.name);
            }
            assert_eq!(first.items, second.items, "the same content makes other items");
        }
    }
}

impl Default for SourceSuite {
    fn default() -> Self {
        Self::new()
    }
}

async fn take(source: &dyn Source) -> Captured {
    capture(source).await.unwrap_or_else(|e| panic!("a full backup failed: {}", e.chain()))
}

fn names_are_unique_and_make_keys(taken: &Captured) {
    let mut seen = BTreeSet::new();
    for (meta, _) in &taken.artifacts {
        assert!(seen.insert(&meta.name), "two artifacts are named {}", meta.name);
        let object = format!("{}.{}", meta.name, meta.format.extension);
        assert!(Key::root().join(&object).is_ok(), "{object} does not fit a key");
    }
    for name in taken.report.artifacts.keys() {
        assert!(seen.iter().any(|seen| *seen == name), "details of an artifact that does not exist: {name}");
    }
}

fn items_lie_within_artifacts_and_do_not_overlap(taken: &Captured) {
    let sizes: BTreeMap<&str, u64> =
        taken.artifacts.iter().map(|(meta, bytes)| (&*meta.name, bytes.len() as u64)).collect();
    let mut ranges: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for item in taken.items.iter().filter(|item| item.origin.is_none()) {
        let size = sizes.get(&*item.artifact);
        let size =
            *size.unwrap_or_else(|| panic!("{} is in {}, which does not exist", item.path, item.artifact));
        let end = item.offset.checked_add(item.length);
        assert!(end.is_some_and(|end| end <= size), "{} lies beyond the end of {}", item.path, item.artifact);
        if item.length > 0 {
            ranges.entry(&item.artifact).or_default().push((item.offset, item.offset + item.length));
        }
    }
    for (artifact, mut ranges) in ranges {
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "items overlap in {artifact}: {pair:?}");
        }
    }
}

fn proofs_are_the_sums_of_items(taken: &Captured) {
    let mut sums = Proofs::new();
    for proof in taken.items.iter().filter_map(|item| item.proof.as_ref()) {
        sums.entry(proof.of.to_string()).or_default().merge(&proof.proof);
    }
    for (name, sum) in sums {
        assert_eq!(
            taken.report.proofs.get(&name),
            Some(&sum),
            "the items do not add up to the proof {name:?}"
        );
    }
}

/// `finish` while an artifact was not read to its end must fail: it is the success token.
async fn nothing_is_finished_before_it_is_drained(source: &dyn Source) {
    for read_some in [false, true] {
        let mut snapshot = source.snapshot(SnapshotRequest::full()).await.expect("snapshot");
        let mut artifact = snapshot.next().await.expect("next").expect("an artifact");
        if read_some {
            let _ = artifact.data.next().await;
        }
        drop(artifact);
        let finished = tokio::time::timeout(PATIENCE, snapshot.finish()).await.expect("finish hangs");
        assert!(finished.is_err(), "finish succeeded although an artifact was given up");
        snapshot.close(Outcome::Aborted).await.expect("close");
    }
}

async fn a_dropped_stream_leaves_nothing(source: &dyn Source) {
    for close in [true, false] {
        let mut snapshot = source.snapshot(SnapshotRequest::full()).await.expect("snapshot");
        let mut artifact = snapshot.next().await.expect("next").expect("an artifact");
        let _ = artifact.data.next().await;
        drop(artifact);
        if close {
            tokio::time::timeout(PATIENCE, snapshot.close(Outcome::Aborted))
                .await
                .expect("close hangs")
                .expect("close");
        } else {
            drop(snapshot);
        }
    }
    // And one where nothing was asked for at all.
    drop(source.snapshot(SnapshotRequest::full()).await.expect("snapshot"));
}

async fn a_cancelled_run_ends(source: &dyn Source) {
    let request = SnapshotRequest::full();
    let cancel = request.cancelled.clone();
    let mut snapshot = source.snapshot(request).await.expect("snapshot");
    let run = async {
        let Ok(Some(mut artifact)) = snapshot.next().await else { return };
        let _ = artifact.data.next().await;
        cancel.cancel();
        while let Some(Ok(_)) = artifact.data.next().await {}
    };
    tokio::time::timeout(PATIENCE, run).await.expect("a cancelled run goes on and on");
    tokio::time::timeout(PATIENCE, snapshot.close(Outcome::Aborted))
        .await
        .expect("close hangs")
        .expect("close");
}
