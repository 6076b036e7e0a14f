//! One stream into one object on every sink: the whole pipeline.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::encode::{self, Encoded, Scope};
use super::fanout::{Fanout, Numbered};
use super::feed::{self, RateLimit};
use super::progress::Watch;
use super::retry::Patience;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::sink::PutOptions;
use crate::source::ByteStream;
use crate::transform::Chain;

/// How a run stores objects.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) chain: Arc<Chain>,
    pub(crate) patience: Patience,
    pub(crate) limit: Option<Arc<RateLimit>>,
    pub(crate) watch: Watch,
}

/// Sinks that failed while an object was stored, by their number in the repository.
pub(crate) type Failures = Vec<(usize, Error)>;

impl Pipeline {
    /// Reads `stream` once, encodes it once, and stores it under `key` on every sink. Fails when the stream, the
    /// codec or every sink fails; a sink that fails while another does not is returned beside the result.
    pub(crate) async fn store(
        &self,
        sinks: &[Numbered],
        key: &Key,
        options: &PutOptions,
        scope: Scope,
        stream: ByteStream,
    ) -> Result<(Encoded, Failures)> {
        let mut fanout = Fanout::open(sinks, key, options, self.patience, &self.watch);
        let (plain_to, plain_from) = mpsc::channel::<Bytes>(feed::QUEUE);
        let (stored_to, mut stored_from) = mpsc::channel::<Bytes>(encode::QUEUE);

        let feeding =
            feed::feed(stream, plain_to, &self.watch, self.limit.as_deref(), self.patience.source_stall);
        let (chain, watch) = (Arc::clone(&self.chain), self.watch.clone());
        let encoding = tokio::task::spawn_blocking(move || {
            encode::encode(&chain, &scope, plain_from, stored_to, &watch)
        });
        let encoding = async {
            encoding.await.unwrap_or_else(|e| {
                Err(Error::new(ErrorKind::Internal, "encode artifact")
                    .message("the codec failed")
                    .caused_by(e))
            })
        };
        let writing = async {
            while let Some(block) = stored_from.recv().await {
                fanout.write(block).await?;
            }
            Ok(())
        };
        // Only when the source's stream ended well, and the codec saw that end, may anything become visible:
        // on the first error the others are dropped, and with them the writers.
        let ((), encoded, ()) = tokio::try_join!(feeding, encoding, writing)?;
        let failures = fanout.finish(encoded.stored_size).await?;
        Ok((encoded, failures))
    }
}
