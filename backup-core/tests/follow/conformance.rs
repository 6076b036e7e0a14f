//! The testkit's own log keeps the promises of a log source.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use backup_core::{LogPosition, LogSource, async_trait};
use backup_testkit::log::LogFileSource;
use backup_testkit::{LogFile, LogSourceSuite, LogWorld};

struct World {
    file: LogFile,
    source: LogFileSource,
    /// After how many lines a new file begins.
    rotate_every: usize,
    written: AtomicUsize,
}

#[async_trait]
impl LogWorld for World {
    fn source(&self) -> &dyn LogSource {
        &self.source
    }

    async fn here(&self) -> LogPosition {
        self.file.position()
    }

    async fn write(&self, entries: usize) {
        for _ in 0..entries {
            let written = self.written.fetch_add(1, Relaxed);
            if written % self.rotate_every == self.rotate_every - 1 {
                self.file.rotate();
            }
            self.file.append(&format!("entry {written} {}", "x".repeat(200)));
        }
    }

    async fn forget(&self) -> bool {
        self.file.rotate();
        self.file.forget();
        true
    }
}

#[tokio::test]
async fn the_log_file_passes_the_suite() {
    for rotate_every in [usize::MAX, 30, 1] {
        let dir = tempfile::tempdir().unwrap();
        let file = LogFile::create(dir.path());
        let source = file.source();
        let world = World { file, source, rotate_every, written: AtomicUsize::new(0) };
        LogSourceSuite::new().run(&world).await;
    }
}
