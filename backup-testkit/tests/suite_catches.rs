//! The sink suite fails for sinks that break a promise, each at the check that is about it.
#![allow(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

use std::ops::Range;
use std::sync::Arc;

use backup_core::{
    ByteStream, Bytes, Error, ErrorKind, Key, MemorySink, ObjectInfo, ObjectKind, PutMode, PutOptions,
    Result, Sink, SinkId, SinkWriter, async_trait,
};
use backup_testkit::SinkSuite;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

/// What is wrong with a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    VisibleWhileWritten,
    DropFinishes,
    CreateNewOverwrites,
    AlreadyExistsIsRetryable,
    RangeIgnoresEnd,
    RangeBeyondEndIsEmpty,
    PrefixByCharacters,
    ListStopsAtAThousand,
    DeleteOfAbsentFails,
    LosesTheLastByte,
    MissingIsIo,
    SizeIsWrong,
}

#[derive(Debug)]
struct Sloppy(MemorySink, Broken);

#[async_trait]
impl Sink for Sloppy {
    fn id(&self) -> &SinkId {
        self.0.id()
    }

    async fn create(&self, key: &Key, mut options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        if self.1 == Broken::CreateNewOverwrites {
            options.mode = PutMode::Overwrite;
        }
        let inner = self.0.create(key, options).await.map_err(|e| self.spoil(e))?;
        Ok(Box::new(SloppyWriter {
            inner,
            sink: self.0.clone(),
            broken: self.1,
            key: key.clone(),
            all: Vec::new(),
            done: false,
        }))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let range = match (self.1, range) {
            (Broken::RangeIgnoresEnd, Some(range)) => Some(range.start..u64::MAX),
            (Broken::RangeBeyondEndIsEmpty, Some(range)) if range.start > self.0.head(key).await?.size => {
                return Ok(futures::stream::empty().boxed());
            }
            (_, range) => range,
        };
        self.0.open(key, range).await.map_err(|e| self.spoil(e))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let mut info = self.0.head(key).await.map_err(|e| self.spoil(e))?;
        info.size += u64::from(self.1 == Broken::SizeIsWrong);
        Ok(info)
    }

    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        match self.1 {
            Broken::PrefixByCharacters => {
                let prefix = prefix.to_string();
                let below =
                    move |info: &ObjectInfo| std::future::ready(info.key.as_str().starts_with(&prefix));
                self.0.list(&Key::root()).try_filter(below).boxed()
            }
            Broken::ListStopsAtAThousand => self.0.list(prefix).take(1000).boxed(),
            _ => self.0.list(prefix),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        if self.1 == Broken::DeleteOfAbsentFails {
            self.0.head(key).await?;
        }
        self.0.delete(key).await
    }
}

impl Sloppy {
    fn spoil(&self, error: Error) -> Error {
        spoil(self.1, error)
    }
}

fn spoil(broken: Broken, error: Error) -> Error {
    match (broken, error.kind()) {
        (Broken::MissingIsIo, ErrorKind::NotFound) => Error::new(ErrorKind::Io, "test"),
        (Broken::AlreadyExistsIsRetryable, ErrorKind::AlreadyExists) => error.retryable(true),
        _ => error,
    }
}

#[derive(Debug)]
struct SloppyWriter {
    inner: Box<dyn SinkWriter>,
    sink: MemorySink,
    broken: Broken,
    key: Key,
    all: Vec<u8>,
    done: bool,
}

#[async_trait]
impl SinkWriter for SloppyWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.all.extend_from_slice(&chunk);
        if self.broken == Broken::VisibleWhileWritten {
            self.sink.replace(&self.key, self.all.clone());
        }
        self.inner.write(chunk).await
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectInfo> {
        self.done = true;
        let (sink, broken, key) = (self.sink.clone(), self.broken, self.key.clone());
        // The old inner writer moves out; what stays behind must not finish on drop.
        let inner = std::mem::replace(
            &mut self.inner,
            sink.create(&Key::parse("unused").unwrap(), PutOptions::overwrite(ObjectKind::Note)).await?,
        );
        let info = inner.finish().await.map_err(|e| spoil(broken, e))?;
        if broken == Broken::LosesTheLastByte {
            sink.damage(&key, |bytes| bytes.truncate(bytes.len().saturating_sub(1)));
        }
        Ok(info)
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.done = true;
        Ok(())
    }
}

impl Drop for SloppyWriter {
    fn drop(&mut self) {
        if self.broken == Broken::DropFinishes && !self.done {
            self.sink.replace(&self.key, self.all.clone());
        }
    }
}

/// The message the suite fails with, or `None` if it passes.
async fn verdict(broken: Broken) -> Option<String> {
    let suite = SinkSuite::new().large(100_000).racers(8);
    let run = suite.run(async || Arc::new(Sloppy(MemorySink::new(), broken)));
    let panic = std::panic::AssertUnwindSafe(run).catch_unwind().await.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_promise_fails_the_suite() {
    assert_eq!(verdict(Broken::Nothing).await, None, "the sink under the faults is sound");
    for (broken, says) in [
        (Broken::VisibleWhileWritten, "while written"),
        (Broken::DropFinishes, "after a writer was given up"),
        (Broken::CreateNewOverwrites, "create-new"),
        (Broken::AlreadyExistsIsRetryable, "trying again cannot help"),
        (Broken::RangeIgnoresEnd, "other bytes"),
        (Broken::RangeBeyondEndIsEmpty, "begins beyond the end"),
        (Broken::PrefixByCharacters, "list \"a/b\""),
        (Broken::ListStopsAtAThousand, "missing from the list"),
        (Broken::DeleteOfAbsentFails, "delete of absent"),
        (Broken::LosesTheLastByte, "differs from what was written"),
        (Broken::MissingIsIo, "instead of NotFound"),
        (Broken::SizeIsWrong, "head and list differ"),
    ] {
        let said = verdict(broken).await.unwrap_or_else(|| panic!("{broken:?} passes the suite"));
        assert!(said.contains(says), "{broken:?} fails elsewhere: {said}");
    }
}
