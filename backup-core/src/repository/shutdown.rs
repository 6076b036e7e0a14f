//! Ending a verb early because its caller shuts down.

use std::future::Future;
use std::pin::Pin;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Completes when a run is to end.
pub(super) type Shutdown<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Drops `work` when `shutdown` completes first, and fails with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled):
/// for work that a drop leaves in order.
pub(super) async fn or_drop<T>(
    shutdown: Option<impl Future<Output = ()>>,
    operation: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(shutdown) = shutdown else { return work.await };
    tokio::select! {
        biased;
        () = shutdown => Err(Error::cancelled(operation)),
        result = work => result,
    }
}

/// Tells `work` through `stop` that it is to end when `shutdown` completes first, and waits for it all the same.
pub(super) async fn or_wind_down<T>(
    shutdown: Option<impl Future<Output = ()>>,
    stop: &CancellationToken,
    work: impl Future<Output = T>,
) -> T {
    let Some(shutdown) = shutdown else { return work.await };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        () = shutdown => {
            stop.cancel();
            work.await
        }
        result = &mut work => result,
    }
}
