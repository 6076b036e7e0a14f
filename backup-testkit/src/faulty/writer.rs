//! The writer of a faulty sink.

use std::sync::Arc;

use backup_core::{Bytes, ObjectInfo, Result, SinkWriter, async_trait};

use super::plan::{Plan, Step};
use crate::Operation;

#[derive(Debug)]
pub(super) struct FaultyWriter {
    inner: Box<dyn SinkWriter>,
    plan: Arc<Plan>,
}

impl FaultyWriter {
    pub(super) fn new(inner: Box<dyn SinkWriter>, plan: Arc<Plan>) -> Self {
        Self { inner, plan }
    }
}

#[async_trait]
impl SinkWriter for FaultyWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        match self.plan.step(Operation::Write) {
            Step::Go => self.inner.write(chunk).await,
            Step::Hang => std::future::pending().await,
            Step::Fail(error) => Err(error),
            Step::HalfThenFail(error) => {
                self.inner.write(chunk.slice(..chunk.len() / 2)).await?;
                Err(error)
            }
            // After a retryable error the chunk counts as not taken, so a lost reply must not have taken it: what the
            // contract asks of adapters is kept here too.
            Step::DoThenFail(error) if error.is_retryable() => Err(error),
            Step::DoThenFail(error) => {
                self.inner.write(chunk).await?;
                Err(error)
            }
            Step::Cut => unreachable!("a cut of a write is a failure"),
        }
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo> {
        let Self { inner, plan } = *self;
        plan.call(Operation::Finish, inner.finish()).await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        let Self { inner, plan } = *self;
        plan.call(Operation::Abort, inner.abort()).await
    }
}
