//! Reading, whole and in ranges.

use backup_core::{ErrorKind, Sink};

use super::{assert_kind, key, put, read};
use crate::{collect, noise};

/// A range gives exactly its bytes, is cut at the end, and fails where it begins beyond the end.
pub async fn ranges_are_exact(sink: &dyn Sink) {
    const SIZE: u64 = 1_300_000;
    let bytes = noise(1_300_000, 5);
    put(sink, "ranged/object", bytes.clone()).await;
    let k = key("ranged/object");
    for (start, end) in [
        (0, 1),
        (0, SIZE),
        (0, 600_000),
        (1, 2),
        (262_143, 262_145),
        (524_287, 1_048_577),
        (SIZE - 1, SIZE),
        (SIZE - 1, SIZE + 1),
        (1000, u64::MAX),
        (0, 0),
        (777, 777),
    ] {
        let stream = sink.open(&k, Some(start..end)).await;
        let stream = stream.unwrap_or_else(|e| panic!("open {start}..{end}: {}", e.chain()));
        let found = collect(stream).await.unwrap_or_else(|e| panic!("read {start}..{end}: {}", e.chain()));
        let index = |n: u64| usize::try_from(n.min(SIZE)).expect("a size of this suite");
        assert!(found == bytes[index(start)..index(end)], "{start}..{end} gave {} other bytes", found.len());
    }
    for (start, end) in [(SIZE + 1, SIZE + 2), (SIZE * 10, u64::MAX)] {
        let result = match sink.open(&k, Some(start..end)).await {
            Ok(stream) => collect(stream).await,
            Err(e) => Err(e),
        };
        let error = result.expect_err("a range that begins beyond the end is an error");
        assert!(!error.is_retryable(), "asking again for a range beyond the end cannot help");
    }
    put(sink, "ranged/empty", "").await;
    assert!(read(sink, "ranged/empty").await.expect("an empty object can be read").is_empty());
}

/// Reading, finding or reading a range of a missing object says [`ErrorKind::NotFound`].
pub async fn a_missing_object_is_not_found(sink: &dyn Sink) {
    put(sink, "present/object", "x").await;
    for name in ["absent", "present", "present/absent", "present/object/below", "absent/deeper/still"] {
        assert_kind(read(sink, name).await, ErrorKind::NotFound, &format!("open {name}"));
        assert_kind(sink.head(&key(name)).await, ErrorKind::NotFound, &format!("head {name}"));
        let ranged = match sink.open(&key(name), Some(0..1)).await {
            Ok(stream) => collect(stream).await,
            Err(e) => Err(e),
        };
        let error = assert_kind(ranged, ErrorKind::NotFound, &format!("open a range of {name}"));
        assert!(!error.is_retryable(), "looking again for a missing object is not worth a retry");
    }
}
