//! Reading: whole or in a range, resumed where it broke, large objects in parallel ranges and in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{ByteStream, Error, ErrorKind, Key, Result};
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult};
use tokio::task::JoinHandle;

use crate::error::Tried;
use crate::shared::Shared;

/// Bytes asked for at a time. One such piece is streamed; the following are fetched whole, ahead of the reader. Small, because
/// one answer comes at the pace of one connection: many at once fill the link with as little memory as few large ones.
const PIECE: u64 = 2 * 1024 * 1024;
/// Times a read is continued without a byte in between. `object_store` continues by itself first.
const RESUMES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const OPERATION: &str = "read object";

/// Opens an object, or the bytes of it in `range`.
pub(crate) async fn open(shared: Arc<Shared>, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
    let object = Object { path: shared.place.path(key)?, key: key.clone(), shared, e_tag: None };
    let wanted = range.clone().unwrap_or(0..u64::MAX);
    if wanted.start > wanted.end {
        return Err(object.outside(&wanted, None));
    }
    if wanted.is_empty() {
        return object.nothing(&wanted, None).await;
    }
    let first = wanted.start..wanted.end.min(wanted.start.saturating_add(PIECE));
    let result = match object.get(first).await {
        Ok(result) => result,
        // Stores refuse a range that begins at the end, and any range of an empty object.
        Err(error) if error.kind() != ErrorKind::NotFound && error.kind() != ErrorKind::PermissionDenied => {
            return object.nothing(&wanted, Some(error)).await;
        }
        Err(error) => return Err(error),
    };
    let object = Object { e_tag: result.meta.e_tag.clone(), ..object };
    let end = wanted.end.min(result.meta.size);
    let head = result.range.clone();
    let rest = head.end..end;
    let first = resuming(object.clone(), head, Some(result.into_stream()));
    if rest.is_empty() {
        return Ok(first);
    }
    Ok(first.chain(ahead(object, rest)).boxed())
}

#[derive(Clone)]
struct Object {
    shared: Arc<Shared>,
    key: Key,
    path: Path,
    e_tag: Option<String>,
}

impl Object {
    async fn get(&self, range: Range<u64>) -> Result<GetResult> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.e_tag.clone(),
            ..GetOptions::default()
        };
        self.shared.store.get_opts(&self.path, options).await.map_err(|e| self.error(&e))
    }

    fn error(&self, error: &object_store::Error) -> Error {
        self.shared.error(OPERATION, Tried::Enough, &self.key, error)
    }

    fn outside(&self, range: &Range<u64>, size: Option<u64>) -> Error {
        let mut error = Error::invalid(OPERATION, "the range lies outside the object")
            .with("key", &self.key)
            .with("range", format_args!("{}..{}", range.start, range.end));
        if let Some(size) = size {
            error = error.with("size", size);
        }
        error
    }

    /// An empty stream, if the object exists and `range` holds none of its bytes; else `why`.
    async fn nothing(&self, range: &Range<u64>, why: Option<Error>) -> Result<ByteStream> {
        let size = match self.shared.find(&self.path).await {
            Ok(found) => found.meta.size,
            Err(e) => return Err(self.error(&e)),
        };
        if range.start > size {
            return Err(self.outside(range, Some(size)));
        }
        match why {
            Some(error) if range.start < size.min(range.end) => Err(error),
            _ => Ok(futures::stream::empty().boxed()),
        }
    }
}

struct Resuming {
    object: Object,
    left: Range<u64>,
    stream: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    failures: u32,
}

/// Exactly the bytes of `range`; after a break it continues where it was.
fn resuming(
    object: Object,
    range: Range<u64>,
    stream: Option<BoxStream<'static, object_store::Result<Bytes>>>,
) -> ByteStream {
    let state = Resuming { object, left: range, stream, failures: 0 };
    futures::stream::try_unfold(state, |mut state| async move {
        loop {
            if state.left.is_empty() {
                return Ok(None);
            }
            match state.next().await {
                Ok(bytes) => {
                    state.failures = 0;
                    state.left.start += bytes.len() as u64;
                    return Ok(Some((bytes, state)));
                }
                Err(error) => {
                    let lasting =
                        !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Io);
                    if lasting || state.failures >= RESUMES {
                        return Err(error.retryable(false));
                    }
                    state.stream = None;
                    tokio::time::sleep(FIRST_WAIT * 2u32.pow(state.failures)).await;
                    state.failures += 1;
                }
            }
        }
    })
    .boxed()
}

impl Resuming {
    async fn next(&mut self) -> Result<Bytes> {
        if self.stream.is_none() {
            self.stream = Some(self.object.get(self.left.clone()).await?.into_stream());
        }
        let Some(stream) = &mut self.stream else {
            return Err(Error::new(ErrorKind::Internal, OPERATION));
        };
        let left = self.left.end - self.left.start;
        loop {
            return match stream.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) if bytes.len() as u64 <= left => Ok(bytes),
                Some(Ok(_)) => Err(Error::corrupt(OPERATION, "the store sent more than was asked for")),
                Some(Err(e)) => Err(self.object.error(&e)),
                None => Err(Error::new(ErrorKind::Unavailable, OPERATION)
                    .message("the store ended its reply before the last byte")
                    .with("key", &self.object.key)),
            };
        }
    }
}

/// A task that ends with its handle.
struct Fetch(JoinHandle<Result<Bytes>>);

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Ahead {
    object: Object,
    /// What no task fetches yet.
    left: Range<u64>,
    fetching: VecDeque<Fetch>,
}

/// The bytes of `range` in order, fetched in pieces ahead of the reader, at most `read_ahead` at once.
fn ahead(object: Object, range: Range<u64>) -> ByteStream {
    let mut state = Ahead { object, left: range, fetching: VecDeque::new() };
    // The first fetches run while the reader still has the first piece before it.
    state.fill();
    futures::stream::try_unfold(state, |mut state| async move {
        state.fill();
        let Some(fetch) = state.fetching.front_mut() else { return Ok(None) };
        let joined = (&mut fetch.0).await;
        let bytes = joined.map_err(|e| {
            Error::new(ErrorKind::Internal, OPERATION).message("a download task failed").caused_by(e)
        })??;
        state.fetching.pop_front();
        Ok(Some((bytes, state)))
    })
    .boxed()
}

impl Ahead {
    fn fill(&mut self) {
        while self.fetching.len() < self.object.shared.options.read_ahead && !self.left.is_empty() {
            let piece = self.left.start..self.left.end.min(self.left.start.saturating_add(PIECE));
            self.left.start = piece.end;
            self.fetching.push_back(Fetch(tokio::spawn(whole(self.object.clone(), piece))));
        }
    }
}

async fn whole(object: Object, range: Range<u64>) -> Result<Bytes> {
    let size = usize::try_from(range.end - range.start).unwrap_or(0);
    let all = BytesMut::with_capacity(size);
    let all = resuming(object, range, None)
        .try_fold(all, |mut all, bytes| async move {
            all.extend_from_slice(&bytes);
            Ok(all)
        })
        .await?;
    Ok(all.freeze())
}
