//! [`FaultySink`]: any sink, with faults at chosen moments.

mod plan;
mod writer;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{
    ByteStream, Error, Key, ObjectInfo, PutOptions, Result, Sink, SinkId, SinkWriter, Space, StoreAddress,
    StoreCopy, Warning, async_trait,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::Operation;
use plan::{Plan, Step};
use writer::FaultyWriter;

pub use plan::{Fault, Rule};

/// Passes every call on to a sink, counts it, and lets the n-th one fail, hang, or stop half-way.
///
/// Calls of the sink, its writers and its streams count together in the order they happen, so a test can run once
/// without faults, read [`total`](FaultySink::total), and then run again for every `n` up to it. Cloning gives
/// another handle to the same plan.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use backup_core::{Key, MemorySink, ObjectKind, PutOptions, put_bytes};
/// use backup_testkit::{Fault, FaultySink, Operation, Rule};
///
/// let inner = MemorySink::new();
/// let sink = FaultySink::new(inner.clone());
/// sink.arm(Rule::nth(1).on(Operation::Write).fault(Fault::short_write()));
/// let key = Key::parse("a").unwrap();
/// let put = put_bytes(&sink, &key, "bytes".into(), PutOptions::create_new(ObjectKind::Note)).await;
/// assert!(put.is_err());
/// assert!(inner.keys().is_empty());
/// assert_eq!(sink.total(), 3); // create, write, abort
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FaultySink {
    inner: Arc<dyn Sink>,
    plan: Arc<Plan>,
}

impl FaultySink {
    /// A sink without faults yet.
    pub fn new(inner: impl Sink + 'static) -> Self {
        Self { inner: Arc::new(inner), plan: Arc::default() }
    }

    /// Adds a rule. Its count begins now.
    pub fn arm(&self, rule: Rule) {
        self.plan.arm(rule);
    }

    /// Removes all rules; the counts stay.
    pub fn disarm(&self) {
        self.plan.disarm();
    }

    /// How many calls there were in all.
    pub fn total(&self) -> u64 {
        self.plan.total()
    }

    /// How many calls of `operation` there were.
    pub fn count(&self, operation: Operation) -> u64 {
        self.plan.count(operation)
    }

    /// How many faults happened.
    pub fn faults(&self) -> u64 {
        self.plan.faults()
    }

    /// Runs a call that has no halves under the plan.
    async fn call<T>(&self, operation: Operation, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.plan.call(operation, call).await
    }
}

#[async_trait]
impl Sink for FaultySink {
    fn id(&self) -> &SinkId {
        self.inner.id()
    }

    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        let inner = self.call(Operation::Create, self.inner.create(key, options)).await?;
        Ok(Box::new(FaultyWriter::new(inner, Arc::clone(&self.plan))))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let stream = self.call(Operation::Open, self.inner.open(key, range)).await?;
        Ok(under_plan(stream, Arc::clone(&self.plan), Operation::Read, |chunk| {
            let half = chunk.len() / 2;
            (half > 0).then(|| chunk.slice(..half))
        }))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.call(Operation::Head, self.inner.head(key)).await
    }

    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        under_plan(self.inner.list(prefix), Arc::clone(&self.plan), Operation::List, |_| None)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.call(Operation::Delete, self.inner.delete(key)).await
    }

    fn writer_memory(&self) -> usize {
        self.inner.writer_memory()
    }

    fn failure_domain(&self) -> Option<String> {
        self.inner.failure_domain()
    }

    async fn probe(&self) -> Result<Vec<Warning>> {
        self.call(Operation::Probe, self.inner.probe()).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.call(Operation::Space, self.inner.space()).await
    }

    async fn sweep(&self, older_than: Duration) -> Result<u64> {
        self.call(Operation::Sweep, self.inner.sweep(older_than)).await
    }

    async fn thaw(&self, key: &Key) -> Result<()> {
        self.call(Operation::Thaw, self.inner.thaw(key)).await
    }

    async fn change_class(&self, key: &Key, class: &str) -> Result<bool> {
        self.call(Operation::ChangeClass, self.inner.change_class(key, class)).await
    }

    fn address(&self, key: &Key) -> Option<StoreAddress> {
        self.inner.address(key)
    }

    async fn copy_from(
        &self,
        from: &StoreAddress,
        size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        self.call(Operation::CopyFrom, self.inner.copy_from(from, size, to, options)).await
    }
}

/// A stream whose every poll for an item is a step of the plan. A cut ends it without an error, after what `half`
/// leaves of the item; a short one fails after the half.
fn under_plan<T: Send + 'static>(
    inner: BoxStream<'static, Result<T>>,
    plan: Arc<Plan>,
    operation: Operation,
    half: fn(&T) -> Option<T>,
) -> BoxStream<'static, Result<T>> {
    let start = State::Open(inner, plan);
    futures::stream::unfold(start, move |state| async move {
        let (mut inner, plan) = match state {
            State::Open(inner, plan) => (inner, plan),
            State::Failing(error) => return Some((Err(error), State::Ended)),
            State::Ended => return None,
        };
        let (end, step_half) = match plan.step(operation) {
            Step::Go => return inner.next().await.map(|item| (item, State::Open(inner, plan))),
            Step::Hang => std::future::pending().await,
            Step::Fail(error) => (State::Failing(error), false),
            Step::HalfThenFail(error) | Step::DoThenFail(error) => (State::Failing(error), true),
            Step::Cut => (State::Ended, true),
        };
        let rest = match inner.next().await {
            Some(Ok(item)) if step_half => half(&item),
            _ => None,
        };
        match (rest, end) {
            (Some(item), end) => Some((Ok(item), end)),
            (None, State::Failing(error)) => Some((Err(error), State::Ended)),
            (None, _) => None,
        }
    })
    .boxed()
}

/// Where a stream under a plan is.
enum State<T> {
    Open(BoxStream<'static, Result<T>>, Arc<Plan>),
    Failing(Error),
    Ended,
}
