//! The sink of the model: every call waits until the scheduler lets it through, and what it did is noted.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use backup_core::{
    ByteStream, Bytes, Error, ErrorKind, Key, ObjectInfo, PutOptions, Result, Sink, SinkId, SinkWriter,
    async_trait,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::world::World;
use crate::Operation;

/// What is to happen to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done. A list shows so many entries before it asks again, as a store does that gives pages.
    Go { page: usize },
    /// It does nothing and fails.
    Fail { retryable: bool },
    /// It is done, and fails all the same.
    LostReply { retryable: bool },
    /// An object that is read ends early, without an error. Any other call fails.
    Cut,
    /// It never ends.
    Hang,
}

fn failure(retryable: bool) -> Error {
    Error::new(ErrorKind::Unavailable, "use sink")
        .message("the model asked for this failure")
        .retryable(retryable)
}

/// A sink as one operation of one actor sees it.
#[derive(Clone)]
pub(super) struct GateSink {
    pub(super) inner: Arc<dyn Sink>,
    /// Its place among the sinks.
    pub(super) number: usize,
    pub(super) op: u64,
    pub(super) world: Arc<World>,
}

impl fmt::Debug for GateSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GateSink({})", self.inner.id())
    }
}

impl GateSink {
    async fn pass(&self, operation: Operation, key: &Key) -> Fate {
        self.world.pass(self.op, self.number, operation, key).await
    }

    /// Runs a call without a stream. What it does is done even if the caller gives it up meanwhile, as with a request
    /// that has reached a server.
    async fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &Key,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let fate = self.pass(operation, key).await;
        if let Fate::Fail { retryable } = fate {
            return Err(failure(retryable));
        }
        if fate == Fate::Cut {
            return Err(failure(false));
        }
        if fate == Fate::Hang {
            return std::future::pending().await;
        }
        let done = tokio::spawn(call).await.map_err(|e| {
            Error::new(ErrorKind::Internal, "use sink")
                .message("the sink below the model panicked")
                .caused_by(e)
        })?;
        match (done, fate) {
            (Ok(_), Fate::LostReply { retryable }) => Err(failure(retryable)),
            (done, _) => done,
        }
    }
}

#[async_trait]
impl Sink for GateSink {
    fn id(&self) -> &SinkId {
        self.inner.id()
    }

    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        let (inner, name) = (Arc::clone(&self.inner), key.clone());
        let writer =
            self.call(Operation::Create, key, async move { inner.create(&name, options).await }).await?;
        Ok(Box::new(GateWriter { inner: writer, key: key.clone(), bytes: Vec::new(), sink: self.clone() }))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let fate = self.pass(Operation::Open, key).await;
        match fate {
            Fate::Go { .. } => self.inner.open(key, range).await,
            Fate::Hang => std::future::pending().await,
            Fate::Fail { retryable } | Fate::LostReply { retryable } => Err(failure(retryable)),
            Fate::Cut => {
                let mut stream = self.inner.open(key, range).await?;
                let first = stream.try_next().await?.unwrap_or_default();
                Ok(futures::stream::iter([Ok(first.slice(..first.len() / 2))]).boxed())
            }
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let (inner, name) = (Arc::clone(&self.inner), key.clone());
        self.call(Operation::Head, key, async move { inner.head(&name).await }).await
    }

    /// Page by page, each as the sink is at its moment.
    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        let start = Some((self.clone(), prefix.clone(), None::<Key>));
        futures::stream::try_unfold(start, |state| async move {
            let Some((sink, prefix, after)) = state else { return Ok(None) };
            let page = match sink.pass(Operation::List, &prefix).await {
                Fate::Go { page } => page.max(1),
                Fate::Hang => std::future::pending().await,
                Fate::Fail { retryable } | Fate::LostReply { retryable } => return Err(failure(retryable)),
                Fate::Cut => return Err(failure(false)),
            };
            let mut all: Vec<ObjectInfo> = sink.inner.list(&prefix).try_collect().await?;
            all.sort_by(|a, b| a.key.cmp(&b.key));
            all.retain(|object| after.as_ref().is_none_or(|after| object.key > *after));
            let more = all.len() > page;
            all.truncate(page);
            let last = all.last().map(|object| object.key.clone());
            let next = if more { Some((sink, prefix, last)) } else { None };
            Ok(Some((futures::stream::iter(all.into_iter().map(Ok)), next)))
        })
        .try_flatten()
        .boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let (sink, name) = (self.clone(), key.clone());
        self.call(Operation::Delete, key, async move {
            sink.inner.delete(&name).await?;
            sink.world.deleted(sink.op, sink.number, &name);
            Ok(())
        })
        .await
    }

    fn writer_memory(&self) -> usize {
        self.inner.writer_memory()
    }
}

#[derive(Debug)]
struct GateWriter {
    inner: Box<dyn SinkWriter>,
    key: Key,
    bytes: Vec<u8>,
    sink: GateSink,
}

#[async_trait]
impl SinkWriter for GateWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        self.inner.write(chunk).await
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo> {
        let Self { inner, key, bytes, sink } = *self;
        let (through, name) = (sink.clone(), key.clone());
        sink.call(Operation::Finish, &key, async move {
            let done = inner.finish().await?;
            through.world.put(through.op, through.number, &name, &bytes.into());
            Ok(done)
        })
        .await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}
