//! The in-memory implementations keep the contracts of their traits.

use std::sync::Arc;

use backup_core::{
    ArtifactFormat, ArtifactMeta, ErrorKind, Key, MemorySink, MemorySource, MemoryTarget, ObjectKind,
    PutOptions, RestoreTarget as _, Selection, Sink as _, SnapshotRequest, Source as _, put_bytes,
    read_bytes,
};
use backup_testkit::{
    Fault, FaultySink, Operation, RecordingSink, Rule, SinkSuite, SourceSuite, TargetSuite, capture, noise,
};
use futures::StreamExt as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_sink_keeps_the_contract_of_sinks() {
    SinkSuite::new().run(async || Arc::new(MemorySink::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_and_recording_sinks_without_faults_keep_it_too() {
    SinkSuite::new().run(async || Arc::new(FaultySink::new(RecordingSink::new(MemorySink::new())))).await;
}

fn source(seed: u64) -> MemorySource {
    MemorySource::new()
        .artifact("one", noise(300_000, seed))
        .artifact("nothing", "")
        .artifact_with(ArtifactMeta::new("late", ArtifactFormat::BYTES).phase(1), noise(5, seed))
        .chunk_size(1000)
        .max_open(3)
}

#[tokio::test]
async fn the_memory_source_keeps_the_contract_of_sources() {
    SourceSuite::new().run(&source(1), async || ()).await;
}

#[tokio::test]
async fn the_memory_target_keeps_the_contract_of_targets() {
    let (first, second) = (capture(&source(1)).await.unwrap(), capture(&source(2)).await.unwrap());
    TargetSuite::new()
        .run(
            async || MemoryTarget::new(),
            async |target| target.names().into_iter().map(|n| (n.clone(), target.get(&n).unwrap())).collect(),
            [&first, &second],
        )
        .await;
}

#[tokio::test]
async fn a_selection_leaves_other_artifacts_of_a_memory_target_alone() {
    let target = MemoryTarget::new();
    target.put("one", "old");
    target.put("other", "kept");
    let captured = capture(&source(1)).await.unwrap();
    let mut plan = captured.plan(true);
    plan.selection = Selection::globs(["one"]).unwrap();
    let restore = target.begin(&plan).await.unwrap();
    restore.artifact(captured.readers().remove(0)).await.unwrap();
    let (report, undo) = restore.commit().await.unwrap();
    assert_eq!((report.items, report.bytes), (1, 300_000));
    assert_eq!(target.get("one").unwrap().len(), 300_000);
    assert_eq!(target.get("other").unwrap(), "kept");
    undo.unwrap().undo().await.unwrap();
    assert_eq!(target.get("one").unwrap(), "old");
}

#[tokio::test]
async fn a_snapshot_of_a_selection_holds_only_what_was_selected() {
    let request = SnapshotRequest { selection: Selection::globs(["l*"]).unwrap(), ..SnapshotRequest::full() };
    let mut snapshot = source(1).snapshot(request).await.unwrap();
    assert_eq!(snapshot.next().await.unwrap().unwrap().meta.name, "late");
    assert!(snapshot.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_backup_with_foreign_proofs_is_refused_by_a_memory_target() {
    let mut plan = capture(&source(1)).await.unwrap().plan(false);
    plan.proofs.insert("files".into(), backup_core::Proof::empty());
    let error = MemoryTarget::new().begin(&plan).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

async fn put_and_read(sink: &FaultySink) -> backup_core::Result<bytes::Bytes> {
    let key = Key::parse("a/b")?;
    put_bytes(sink, &key, noise(100, 1), PutOptions::create_new(ObjectKind::Note)).await?;
    read_bytes(sink, &key, 1000).await
}

#[tokio::test]
async fn every_call_can_be_made_to_fail_and_none_more() {
    let clean = FaultySink::new(MemorySink::new());
    put_and_read(&clean).await.unwrap();
    // create, write, finish, open, one chunk, the end
    assert_eq!(clean.total(), 6);
    for n in 1..=clean.total() + 1 {
        let sink = FaultySink::new(MemorySink::new());
        sink.arm(Rule::nth(n).fault(Fault::permanent()));
        assert_eq!(put_and_read(&sink).await.is_err(), n <= clean.total(), "call {n}");
        assert_eq!(sink.faults(), u64::from(n <= clean.total()));
    }
}

#[tokio::test]
async fn each_fault_does_what_it_is_named_for() {
    let key = Key::parse("a/b").unwrap();
    let inner = MemorySink::new();
    let sink = FaultySink::new(inner.clone());

    sink.arm(Rule::nth(1).on(Operation::Finish).fault(Fault::LostReply { retryable: true }));
    let error = put_and_read(&sink).await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(inner.get(&key).unwrap(), noise(100, 1), "a lost reply has done its work");

    sink.arm(Rule::nth(1).on(Operation::Read).fault(Fault::Cut));
    assert_eq!(read_bytes(&sink, &key, 1000).await.unwrap(), noise(100, 1)[..50], "a cut has no error");
    sink.arm(Rule::nth(1).on(Operation::Read).fault(Fault::Short { kind: ErrorKind::Corrupt }));
    let mut stream = sink.open(&key, None).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().len(), 50);
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(stream.next().await.is_none(), "an error is the last item");

    sink.arm(Rule::nth(1).on(Operation::Head).fault(Fault::Hang));
    let patience = std::time::Duration::from_millis(20);
    assert!(tokio::time::timeout(patience, sink.head(&key)).await.is_err());
    assert!(sink.head(&key).await.is_ok(), "a fault happens once");

    sink.arm(Rule::always().on(Operation::Delete).fault(Fault::retryable()));
    for _ in 0..3 {
        assert!(sink.delete(&key).await.unwrap_err().is_retryable());
    }
    sink.disarm();
    sink.delete(&key).await.unwrap();
    assert_eq!(sink.count(Operation::Delete), 4);
}

#[tokio::test]
async fn a_recording_counts_bytes_written_and_read() {
    let sink = RecordingSink::new(MemorySink::new());
    let key = Key::parse("a/b").unwrap();
    put_bytes(&sink, &key, noise(1000, 1), PutOptions::create_new(ObjectKind::Note)).await.unwrap();
    let stream = sink.open(&key, Some(10..30)).await.unwrap();
    backup_testkit::collect(stream).await.unwrap();
    assert_eq!((sink.bytes_written(), sink.bytes_read()), (1000, 20));
    assert_eq!(sink.bytes_read_of(|k| k.as_str() == "other"), 0);
    let open = sink.records().into_iter().find(|r| r.operation == Operation::Open).unwrap();
    assert_eq!((open.key, open.range), (key, Some(10..30)));
    sink.clear();
    assert_eq!(sink.records(), []);
}
