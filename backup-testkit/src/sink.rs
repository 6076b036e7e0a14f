//! The conformance suite of sinks: one public function per promise, and [`SinkSuite`] to run them all.
//!
//! Every check takes a sink of which it may use any key, and which holds nothing else.

mod naming;
mod racing;
mod reading;
mod visibility;
mod writing;

use std::sync::Arc;

use backup_core::{Bytes, Error, Key, ObjectInfo, ObjectKind, PutOptions, Result, Sink, put_bytes};
use futures::TryStreamExt as _;

pub use naming::{
    every_allowed_character_and_255_byte_segments_work, head_and_list_agree, prefixes_match_whole_segments,
    the_root_is_no_object,
};
pub use racing::{
    concurrent_writers_do_not_mix, create_new_has_one_winner, overwriters_leave_one_whole_object,
};
pub use reading::{a_missing_object_is_not_found, ranges_are_exact};
pub use visibility::{
    a_dropped_finish_leaves_a_whole_object_or_none, a_dropped_write_leaves_nothing,
    aborted_and_dropped_writers_leave_nothing, an_overwrite_shows_the_old_or_the_new,
    nothing_is_visible_before_finish,
};
pub use writing::{
    create_new_refuses_what_exists, deleting_what_is_absent_is_ok, objects_of_any_size_come_back,
};

/// Runs every check of [`crate::sink`], each on a sink of its own.
#[derive(Clone, Debug)]
pub struct SinkSuite {
    large: usize,
    racers: usize,
}

impl SinkSuite {
    /// The suite with a large object of 24 MiB and 16 racing writers.
    pub fn new() -> Self {
        Self { large: 24 * 1024 * 1024, racers: 16 }
    }

    /// Sets the size of the large object in bytes; for stores with multipart uploads, several parts' worth.
    pub fn large(mut self, bytes: usize) -> Self {
        self.large = bytes;
        self
    }

    /// Sets how many writers race for one name.
    pub fn racers(mut self, writers: usize) -> Self {
        self.racers = writers.max(2);
        self
    }

    /// Runs all checks. `make` gives an empty sink every time (a fresh directory, a fresh prefix).
    pub async fn run<S: Sink + 'static>(&self, make: impl AsyncFn() -> Arc<S>) {
        nothing_is_visible_before_finish(&*make().await).await;
        aborted_and_dropped_writers_leave_nothing(&*make().await).await;
        a_dropped_write_leaves_nothing(&*make().await).await;
        a_dropped_finish_leaves_a_whole_object_or_none(&*make().await).await;
        let sink: Arc<dyn Sink> = make().await;
        an_overwrite_shows_the_old_or_the_new(sink).await;
        create_new_refuses_what_exists(&*make().await).await;
        objects_of_any_size_come_back(&*make().await, self.large).await;
        deleting_what_is_absent_is_ok(&*make().await).await;
        a_missing_object_is_not_found(&*make().await).await;
        ranges_are_exact(&*make().await).await;
        prefixes_match_whole_segments(&*make().await).await;
        every_allowed_character_and_255_byte_segments_work(&*make().await).await;
        head_and_list_agree(&*make().await).await;
        the_root_is_no_object(&*make().await).await;
        let sink: Arc<dyn Sink> = make().await;
        create_new_has_one_winner(sink, self.racers).await;
        let sink: Arc<dyn Sink> = make().await;
        overwriters_leave_one_whole_object(sink, self.racers).await;
        let sink: Arc<dyn Sink> = make().await;
        concurrent_writers_do_not_mix(sink, self.racers).await;
    }
}

impl Default for SinkSuite {
    fn default() -> Self {
        Self::new()
    }
}

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key of this suite")
}

fn note() -> PutOptions {
    PutOptions::overwrite(ObjectKind::Note)
}

fn new_note() -> PutOptions {
    PutOptions::create_new(ObjectKind::Note)
}

async fn put(sink: &dyn Sink, name: &str, bytes: impl Into<Bytes>) -> ObjectInfo {
    put_bytes(sink, &key(name), bytes.into(), note())
        .await
        .unwrap_or_else(|e| panic!("cannot put {name}: {}", e.chain()))
}

async fn read(sink: &dyn Sink, name: &str) -> Result<Bytes> {
    crate::collect(sink.open(&key(name), None).await?).await
}

async fn list(sink: &dyn Sink, prefix: &str) -> Vec<ObjectInfo> {
    let mut found: Vec<ObjectInfo> =
        sink.list(&key(prefix)).try_collect().await.unwrap_or_else(|e| panic!("cannot list: {}", e.chain()));
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

async fn names(sink: &dyn Sink, prefix: &str) -> Vec<String> {
    list(sink, prefix).await.into_iter().map(|found| found.key.to_string()).collect()
}

fn assert_kind<T>(result: Result<T>, kind: backup_core::ErrorKind, what: &str) -> Error {
    match result {
        Ok(_) => panic!("{what}: succeeded, and should be {kind:?}"),
        Err(e) if e.kind() == kind => e,
        Err(e) => panic!("{what}: {:?} instead of {kind:?}: {}", e.kind(), e.chain()),
    }
}

/// Fails unless `name` is neither listed, nor found, nor readable.
async fn assert_invisible(sink: &dyn Sink, name: &str, when: &str) {
    use backup_core::ErrorKind::NotFound;
    assert_kind(sink.head(&key(name)).await, NotFound, &format!("head {when}"));
    assert_kind(read(sink, name).await, NotFound, &format!("open {when}"));
    assert!(!names(sink, "").await.contains(&name.to_owned()), "{name} is listed {when}");
}
