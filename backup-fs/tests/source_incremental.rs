//! Incremental backups of a `DirectorySource`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it skipped")]

#[path = "common/files.rs"]
#[expect(dead_code, reason = "shared with the other tests of the source")]
mod files;

use std::fs;

use backup_core::{BackupId, Digest, Item, ParentReader, SnapshotRequest};
use backup_fs::DirectorySource;
use files::{noise, take, take_with, tree};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::Value;

/// A finished backup as the next one's parent.
#[derive(Debug)]
struct Before {
    id: BackupId,
    state: Option<Value>,
    items: Vec<Item>,
}

impl Before {
    fn new(taken: &files::Taken) -> Self {
        let id: BackupId = "20261120T020000Z-000001".parse().unwrap();
        let fill = |mut item: Item| {
            item.origin.get_or_insert(id);
            item
        };
        Self { id, state: taken.report.state.clone(), items: taken.items().into_iter().map(fill).collect() }
    }
}

impl ParentReader for Before {
    fn id(&self) -> BackupId {
        self.id
    }
    fn state(&self) -> Option<&Value> {
        self.state.as_ref()
    }
    fn items(&self) -> BoxStream<'static, backup_core::Result<Item>> {
        futures::stream::iter(self.items.clone().into_iter().map(Ok)).boxed()
    }
}

/// Waits until what was written can be told from a later change by its times.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(3100)).await;
}

#[tokio::test]
async fn an_incremental_refers_to_unchanged_files_and_reads_the_others() {
    let big = noise(1, 600_000);
    let base = tree(&[
        ("a/same", b"same"),
        ("a/edited", b"before"),
        ("a.txt", b"same too"),
        ("big", &big),
        ("gone", b"x"),
        ("moved", b"m"),
    ]);
    fs::hard_link(base.path().join("big"), base.path().join("big-too")).unwrap();
    settle().await;
    let source = DirectorySource::new(base.path());
    let full = take(&source).await.unwrap();
    let parent = Before::new(&full);
    let at = |name: &str| base.path().join(name);
    fs::write(at("a/edited"), b"after!").unwrap();
    fs::write(at("new"), b"new").unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::rename(at("moved"), at("moved-here")).unwrap();

    let request = || SnapshotRequest { parent: Some(&parent), ..SnapshotRequest::full() };
    let next = take_with(&source, request()).await.unwrap();
    let referred: Vec<_> = next.items().into_iter().filter(|i| i.origin.is_some()).collect();
    let names: Vec<_> = referred.iter().map(|i| i.path.to_string()).collect();
    assert_eq!(names, ["a/same", "a.txt", "big"]);
    for item in &referred {
        assert_eq!(*item, *parent.items.iter().find(|i| i.path == item.path).unwrap());
    }
    assert_eq!(next.item("big-too").link, Some("big".into()));
    assert_eq!(next.item("a/edited").sha256, Some(Digest::of(b"after!")));
    assert!(next.archives[0].1.len() < 20_000);
    // The proof is that of the tree as it is now: the same as a full backup's.
    let again = take(&source).await.unwrap();
    assert_eq!(next.report.proofs, again.report.proofs);
    assert_eq!(next.paths(), again.paths());
    assert_eq!(next.report.details["files_unchanged"], 3);
}

#[tokio::test]
async fn a_file_changed_just_before_it_was_read_is_read_again_next_time() {
    let base = tree(&[("fresh", b"fresh")]);
    let source = DirectorySource::new(base.path());
    let parent = Before::new(&take(&source).await.unwrap());
    assert_eq!(parent.items[1].attributes["racy"], true);
    let request = SnapshotRequest { parent: Some(&parent), ..SnapshotRequest::full() };
    let next = take_with(&source, request).await.unwrap();
    assert_eq!(next.item("fresh").origin, None);
}

#[tokio::test]
async fn a_parent_of_another_format_gives_a_full_backup() {
    let base = tree(&[("f", b"f")]);
    settle().await;
    let source = DirectorySource::new(base.path());
    let mut parent = Before::new(&take(&source).await.unwrap());
    parent.state = Some(serde_json::json!({ "format": 999 }));
    let request = SnapshotRequest { parent: Some(&parent), ..SnapshotRequest::full() };
    assert_eq!(take_with(&source, request).await.unwrap().item("f").origin, None);
}
