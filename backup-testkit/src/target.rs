//! The conformance suite of restore targets.

use std::collections::BTreeMap;

use backup_core::{ArtifactReader, Atomicity, Bytes, ErrorKind, Restore, RestorePlan, RestoreTarget, Undo};

use crate::Captured;

/// Runs the promises of [`RestoreTarget`] with a captured backup.
///
/// The two captured backups differ in content, so that replacing shows.
#[derive(Clone, Debug)]
pub struct TargetSuite {
    refuses_non_empty: bool,
}

impl TargetSuite {
    /// The suite with all checks.
    pub fn new() -> Self {
        Self { refuses_non_empty: true }
    }

    /// For targets that cannot know whether something is there ([`Atomicity::None`] only): leaves out the
    /// checks of emptiness and of replacing.
    pub fn cannot_see_what_is_there(mut self) -> Self {
        self.refuses_non_empty = false;
        self
    }

    /// Runs all checks. `make` gives a new, empty target every time; `content` reads the state of a target, such that
    /// equal states give equal maps.
    pub async fn run<T: RestoreTarget>(
        &self,
        make: impl AsyncFn() -> T,
        content: impl AsyncFn(&T) -> BTreeMap<String, Bytes>,
        two: [&Captured; 2],
    ) {
        let [first, second] = two;
        for (meta, _) in &first.artifacts {
            assert!(make().await.accepts(&meta.format), "the target does not accept {}", meta.format.name);
        }
        self.a_restore_proves_what_the_source_proved(&make, &content, first).await;
        self.giving_up_leaves_nothing(&make, &content, first).await;
        a_changed_byte_is_noticed(&make, first).await;
        if self.refuses_non_empty {
            something_in_the_way_is_kept(&make, &content, first, second).await;
            replacing_can_be_undone(&make, &content, first, second).await;
        }
    }

    async fn a_restore_proves_what_the_source_proved<T: RestoreTarget>(
        &self,
        make: &impl AsyncFn() -> T,
        content: &impl AsyncFn(&T) -> BTreeMap<String, Bytes>,
        captured: &Captured,
    ) {
        let target = make().await;
        let empty = content(&target).await;
        let restore = begin(&target, &captured.plan(false)).await;
        offer(&*restore, captured.readers()).await;
        let proofs = restore.prove().await.unwrap_or_else(|e| panic!("prove: {}", e.chain()));
        assert_eq!(proofs, captured.report.proofs, "the staged copy proves something else than the source");
        if target.atomicity() != Atomicity::None {
            assert!(content(&target).await == empty, "something is visible before commit");
        }
        let (_, undo) = restore.commit().await.unwrap_or_else(|e| panic!("commit: {}", e.chain()));
        if self.refuses_non_empty {
            assert!(undo.is_none(), "nothing was replaced, so there is nothing to undo");
        }
        assert!(content(&target).await != empty, "commit changed nothing");
    }

    /// An aborted or dropped restore, before, amid and after its artifacts, leaves the target as it was.
    async fn giving_up_leaves_nothing<T: RestoreTarget>(
        &self,
        make: &impl AsyncFn() -> T,
        content: &impl AsyncFn(&T) -> BTreeMap<String, Bytes>,
        captured: &Captured,
    ) {
        for artifacts in [0, 1, usize::MAX] {
            for abort in [true, false] {
                let target = make().await;
                let before = content(&target).await;
                let restore = begin(&target, &captured.plan(false)).await;
                offer(&*restore, captured.readers().into_iter().take(artifacts)).await;
                let torn = captured.artifacts.iter().position(|(_, bytes)| bytes.len() > 1);
                if let (0, Some(torn)) = (artifacts, torn) {
                    let half = captured.artifacts[torn].1.len() / 2;
                    let result = restore.artifact(captured.broken_reader(torn, half)).await;
                    assert!(result.is_err(), "an artifact that cannot be read whole was taken for whole");
                }
                give_up(restore, abort).await;
                if target.atomicity() != Atomicity::None {
                    assert!(
                        content(&target).await == before,
                        "an aborted restore left something (abort={abort})"
                    );
                    let again = target.begin(&captured.plan(false)).await;
                    let again =
                        again.unwrap_or_else(|e| panic!("begin after an aborted restore: {}", e.chain()));
                    give_up(again, true).await;
                }
            }
        }
    }
}

impl Default for TargetSuite {
    fn default() -> Self {
        Self::new()
    }
}

async fn begin(target: &impl RestoreTarget, plan: &RestorePlan) -> Box<dyn Restore> {
    target.begin(plan).await.unwrap_or_else(|e| panic!("begin: {}", e.chain()))
}

async fn offer(restore: &dyn Restore, readers: impl IntoIterator<Item = ArtifactReader>) {
    for reader in readers {
        if restore.wants(reader.meta()) {
            let name = reader.meta().name.clone();
            restore.artifact(reader).await.unwrap_or_else(|e| panic!("artifact {name}: {}", e.chain()));
        }
    }
}

async fn give_up(restore: Box<dyn Restore>, abort: bool) {
    if abort {
        restore.abort().await.unwrap_or_else(|e| panic!("abort: {}", e.chain()));
    } else {
        drop(restore);
    }
}

/// A restore of everything, up to and including commit.
async fn restore_all(
    target: &impl RestoreTarget,
    captured: &Captured,
    replace: bool,
) -> Option<Box<dyn Undo>> {
    let restore = begin(target, &captured.plan(replace)).await;
    offer(&*restore, captured.readers()).await;
    assert_eq!(restore.prove().await.expect("prove"), captured.report.proofs);
    restore.commit().await.unwrap_or_else(|e| panic!("commit: {}", e.chain())).1
}

/// One flipped byte in the largest artifact fails the artifact, or makes another proof.
async fn a_changed_byte_is_noticed<T: RestoreTarget>(make: &impl AsyncFn() -> T, captured: &Captured) {
    let items = captured.items.iter().filter(|item| item.size > 0 && item.sha256.is_some());
    let Some(item) = items.max_by_key(|item| item.size) else { return };
    let target = make().await;
    let restore = begin(&target, &captured.plan(false)).await;
    let mut failed = false;
    for reader in captured.readers() {
        let (meta, bytes) = captured
            .artifacts
            .iter()
            .find(|(meta, _)| meta.name == reader.meta().name)
            .expect("a reader per artifact");
        let mut bytes = bytes.to_vec();
        if meta.name == item.artifact {
            // The last byte of the content, wherever headers before and padding behind it are: the item's content is
            // looked for by its digest.
            let range = usize::try_from(item.offset).expect("fits")
                ..usize::try_from(item.offset + item.length).expect("fits");
            let size = usize::try_from(item.size).expect("fits");
            let at = (range.start..=range.end.saturating_sub(size))
                .find(|at| Some(backup_core::Digest::of(&bytes[*at..*at + size])) == item.sha256);
            let Some(at) = at else { return give_up(restore, true).await };
            bytes[at + size - 1] ^= 1;
        }
        failed |= restore.artifact(ArtifactReader::from_bytes(meta.clone(), bytes)).await.is_err();
    }
    if !failed {
        let proofs = restore.prove().await;
        assert!(
            proofs.is_err() || proofs.is_ok_and(|p| p != captured.report.proofs),
            "a changed byte was proved"
        );
    }
    give_up(restore, true).await;
}

/// What is there is refused without `replace`, and stays as it was.
async fn something_in_the_way_is_kept<T: RestoreTarget>(
    make: &impl AsyncFn() -> T,
    content: &impl AsyncFn(&T) -> BTreeMap<String, Bytes>,
    first: &Captured,
    second: &Captured,
) {
    let target = make().await;
    restore_all(&target, first, false).await;
    let before = content(&target).await;
    match target.begin(&second.plan(false)).await {
        Ok(_) => panic!("a restore over existing data began without being asked to replace"),
        Err(e) => assert_eq!(e.kind(), ErrorKind::TargetNotEmpty, "{}", e.chain()),
    }
    assert!(content(&target).await == before, "a refused restore changed something");
}

/// Replacing shows the new, undo the old, dropping the old the new; giving up a replacement changes nothing.
async fn replacing_can_be_undone<T: RestoreTarget>(
    make: &impl AsyncFn() -> T,
    content: &impl AsyncFn(&T) -> BTreeMap<String, Bytes>,
    first: &Captured,
    second: &Captured,
) {
    let target = make().await;
    if target.atomicity() == Atomicity::None {
        return;
    }
    restore_all(&target, first, false).await;
    let old = content(&target).await;
    for abort in [true, false] {
        let restore = begin(&target, &second.plan(true)).await;
        offer(&*restore, second.readers()).await;
        give_up(restore, abort).await;
        assert!(content(&target).await == old, "a replacement that was given up changed something");
    }
    let undo = restore_all(&target, second, true).await.expect("a replacing restore gives an undo");
    let new = content(&target).await;
    assert!(new != old, "the replacement is not there");
    undo.undo().await.unwrap_or_else(|e| panic!("undo: {}", e.chain()));
    assert!(content(&target).await == old, "undo did not bring the old state back");
    let undo = restore_all(&target, second, true).await.expect("a replacing restore gives an undo");
    undo.drop_old().await.unwrap_or_else(|e| panic!("drop_old: {}", e.chain()));
    assert!(content(&target).await == new, "dropping the old state changed the new");
}
