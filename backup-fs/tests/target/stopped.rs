//! Promise 7: a restore that is given up stops within a piece of a file, also while it reads back.

use std::path::Path;
use std::time::{Duration, Instant};

use backup_core::{Restore, RestorePlan};
use backup_fs::DirectoryTarget;

use crate::support::*;

/// Reading back a file of nothing but a hole takes many minutes, staging it no time.
const HUGE: u64 = 1 << 40;
/// Syncing a busy disk cannot be interrupted.
const AT_ONCE: Duration = Duration::from_secs(60);

async fn staged_huge(dir: &Path) -> Box<dyn Restore> {
    let from = dir.join("from");
    std::fs::create_dir_all(&from).unwrap();
    std::fs::File::create(from.join("huge")).unwrap().set_len(HUGE).unwrap();
    let archive = tar(&from, &[]);
    let plan = RestorePlan { logical_bytes: HUGE, ..plan(&archive) };
    let target = DirectoryTarget::new(dir.join("to")).check_space(false);
    staged(&target, &plan, &archive).await.unwrap()
}

#[tokio::test]
async fn a_restore_that_is_dropped_or_aborted_while_it_reads_back_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for abort in [true, false] {
        let restore = staged_huge(dir.path()).await;
        let proving = tokio::time::timeout(Duration::from_millis(200), restore.prove()).await;
        assert!(proving.is_err(), "it cannot be done yet");
        let begun = Instant::now();
        if abort {
            restore.abort().await.unwrap();
        } else {
            drop(restore);
        }
        while names(dir.path()) != ["from"] {
            assert!(begun.elapsed() < AT_ONCE, "abort {abort}: {:?} are still there", names(dir.path()));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() < AT_ONCE, "abort {abort}");
    }
}

#[test]
fn a_runtime_that_is_dropped_does_not_wait_for_a_restore_to_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = dir.path().to_owned();
    let (ready, begun) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let restore = staged_huge(&place).await;
        ready.send(()).unwrap();
        let _ = restore.prove().await;
    });
    begun.recv().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let now = Instant::now();
    drop(runtime);
    assert!(now.elapsed() < AT_ONCE, "{:?}", now.elapsed());
    assert_eq!(names(dir.path()), ["from"]);
}
