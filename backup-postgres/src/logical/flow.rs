//! Streams made by a task: parsing and hashing run beside whoever reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::future::Future;

use backup_core::{ByteStream, Bytes, CancellationToken, Error, ErrorKind, Result};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How many chunks wait between the task and its reader. With chunks of 256 KiB this is 512 KiB a stream.
const WAITING: usize = 2;

/// Where a task puts its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Out(mpsc::Sender<Bytes>);

impl Out {
    /// Gives bytes to the reader, waiting until it has room.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.send(bytes).await.map_err(|_| Error::cancelled("stream data"))
    }
}

type Work = Box<dyn FnOnce(Out) -> BoxFuture<'static, Result<()>> + Send>;

enum State {
    Idle(Work),
    Running(mpsc::Receiver<Bytes>, Task),
    Done,
}

/// A task that is stopped when it is dropped.
struct Task(JoinHandle<Result<()>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of what `work` sends. It starts when polled first, stops when dropped or cancelled, and ends with the
/// error `work` returned, if it did.
pub(crate) fn flow<F, R>(cancelled: CancellationToken, work: F) -> ByteStream
where
    F: FnOnce(Out) -> R + Send + 'static,
    R: Future<Output = Result<()>> + Send + 'static,
{
    let work: Work = Box::new(move |out| Box::pin(work(out)));
    futures::stream::unfold((State::Idle(work), cancelled), |(state, cancelled)| async move {
        let (mut receiver, mut task) = match state {
            State::Done => return None,
            State::Running(receiver, task) => (receiver, task),
            State::Idle(work) => {
                let (sender, receiver) = mpsc::channel(WAITING);
                (receiver, Task(tokio::spawn(work(Out(sender)))))
            }
        };
        let next = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Some((Err(Error::cancelled("read artifact")), (State::Done, cancelled))),
            next = receiver.recv() => next,
        };
        if let Some(bytes) = next {
            return Some((Ok(bytes), (State::Running(receiver, task), cancelled)));
        }
        match (&mut task.0).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((Err(error), (State::Done, cancelled))),
            Err(lost) => {
                let error = Error::new(ErrorKind::Internal, "read artifact").caused_by(lost);
                Some((Err(error), (State::Done, cancelled)))
            }
        }
    })
    .boxed()
}

/// A stream of bytes that are at hand. `done` is called when the reader came back for more: then it has them.
pub(crate) fn at_hand(bytes: Bytes, done: impl FnOnce() -> Result<()> + Send + 'static) -> ByteStream {
    let first = futures::stream::once(async move { Ok(bytes) });
    let last =
        futures::stream::once(async move { done() }).filter_map(|ended| async move { ended.err().map(Err) });
    first.chain(last).boxed()
}

/// `data`, counted in `drained` when it was read to its end without an error.
pub(crate) fn counted(data: ByteStream, drained: Arc<AtomicUsize>) -> ByteStream {
    futures::stream::unfold(Some((data, drained)), |state| async move {
        let (mut data, drained) = state?;
        match data.next().await {
            Some(Ok(bytes)) => Some((Ok(bytes), Some((data, drained)))),
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                drained.fetch_add(1, Ordering::SeqCst);
                None
            }
        }
    })
    .boxed()
}
