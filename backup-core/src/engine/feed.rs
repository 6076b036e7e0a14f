//! Pulling a source's stream into the pipeline: even pieces, a rate limit, a stall time-out.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ByteStream;

/// Largest piece that enters the pipeline, in bytes.
pub(crate) const PIECE: usize = 256 * 1024;
/// Pieces below this are gathered until they reach it.
const SMALL: usize = 64 * 1024;
/// Pieces that may wait for the codec.
pub(crate) const QUEUE: usize = 4;

/// Limits plain bytes per second over all artifacts of a run.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: u64,
    /// When the bytes let through so far are paid for.
    paid_until: Mutex<Instant>,
}

impl RateLimit {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { per_second: bytes_per_second.max(1), paid_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may pass.
    pub(crate) async fn take(&self, bytes: usize) {
        let wait_until = {
            let mut paid = self.paid_until.lock().await;
            let start = (*paid).max(Instant::now());
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
            *paid = start + cost;
            *paid
        };
        tokio::time::sleep_until(wait_until).await;
    }
}

/// Reads `stream` to its end and sends it on in pieces.
pub(crate) async fn feed(
    mut stream: ByteStream,
    to: mpsc::Sender<Bytes>,
    watch: &Watch,
    limit: Option<&RateLimit>,
    stall: Duration,
) -> Result<()> {
    let mut gathered = BytesMut::new();
    loop {
        let next = tokio::time::timeout(stall, stream.next()).await.map_err(|_| {
            Error::new(ErrorKind::Timeout, "read source")
                .message("the source delivered nothing for too long; check it, or raise the stall time-out")
                .with("seconds", stall.as_secs())
        })?;
        let Some(chunk) = next else { break };
        let mut chunk = chunk?;
        watch.plain(chunk.len());
        if gathered.is_empty() && chunk.len() >= SMALL {
            while !chunk.is_empty() {
                let piece = chunk.split_to(chunk.len().min(PIECE));
                send(&to, piece, limit).await;
            }
            continue;
        }
        while !chunk.is_empty() {
            let room = PIECE - gathered.len();
            gathered.extend_from_slice(&chunk.split_to(chunk.len().min(room)));
            if gathered.len() >= SMALL {
                send(&to, gathered.split().freeze(), limit).await;
            }
        }
    }
    if !gathered.is_empty() {
        send(&to, gathered.freeze(), limit).await;
    }
    Ok(())
}

async fn send(to: &mpsc::Sender<Bytes>, piece: Bytes, limit: Option<&RateLimit>) {
    if let Some(limit) = limit {
        limit.take(piece.len()).await;
    }
    if to.send(piece).await.is_err() {
        // The other end is gone only when the codec or every sink failed; theirs is the error to report.
        futures::future::pending::<()>().await;
    }
}
