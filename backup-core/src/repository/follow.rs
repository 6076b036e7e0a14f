//! The follow verb: a continuous log, stored slice by slice.
//!
//! # Where it begins, and goes on
//!
//! What lies on the sinks decides, so that a restart after a kill needs no state of its own: the loop goes on at the end of
//! the slices that join the newest base, or, where the newest base has no slice yet, behind the last slice before it. If
//! the source no longer has what follows, that is a gap: [`Event::LogGap`] names it, and where a newer base exists a new range
//! begins at its position. Without a newer base the loop ends with [`ErrorKind::LogGap`]: make one.
//!
//! # Slices that not every sink has
//!
//! The next slice begins where the last one that any sink holds ended, degraded or not: a sink that is away for a week must
//! not make the others fall behind. What a sink lacks is said by [`Event::LogGap`] with that sink, and
//! replicated from the others as soon as a slice reaches every sink again, and when the loop starts. Until every slice has its
//! copies, [`LogSource::release`] is not called, so that the source keeps what is not safe.

mod report;
mod round;

use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use report::FollowReport;

use self::round::{Following, Next};
use super::Repository;
use super::shutdown::{Shutdown, or_wind_down};
use crate::engine::feed::RateLimit;
use crate::error::{Error, ErrorKind, Result};
use crate::log::LogSource;
use crate::name::SetName;
use crate::observer::{Event, Observer};
use crate::retention::LogPosition;
use crate::source::Warning;

/// How long a slice gathers entries, and how many bytes, unless told otherwise.
const SLICE_TIME: Duration = Duration::from_secs(300);
const SLICE_BYTES: u64 = 64 * 1024 * 1024;
/// How often the source is asked whether a slice is full.
const POLL: Duration = Duration::from_secs(1);
/// How long the loop goes on without storing anything, because something fails, before it gives up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3600);
/// Waits after failures: the first, doubled each time up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(60);

/// A log to be followed: set options, then await. Runs until it is stopped by [`run_until`](Self::run_until), has caught
/// up ([`once`](Self::once)), or fails.
#[must_use = "a log is followed when this is awaited"]
pub struct Follow<'a> {
    repository: &'a Repository,
    set: String,
    source: &'a dyn LogSource,
    options: Options,
    rate_limit: Option<u64>,
    observers: Vec<Arc<dyn Observer>>,
    shutdown: Option<Shutdown<'a>>,
}

#[derive(Clone, Debug)]
struct Options {
    time: Duration,
    bytes: u64,
    poll: Duration,
    once: bool,
    starting_at: Option<LogPosition>,
    give_up_after: Duration,
}

impl<'a> Follow<'a> {
    pub(super) fn new(repository: &'a Repository, set: &str, source: &'a dyn LogSource) -> Self {
        Self {
            repository,
            set: set.to_owned(),
            source,
            options: Options {
                time: SLICE_TIME,
                bytes: SLICE_BYTES,
                poll: POLL,
                once: false,
                starting_at: None,
                give_up_after: GIVE_UP_AFTER,
            },
            rate_limit: None,
            observers: Vec::new(),
            shutdown: None,
        }
    }

    /// Stores a slice when this much time has passed since the last one, or this many plain bytes have gathered, whatever
    /// comes first. The time is what can be lost when the source is. Default five minutes, 64 MiB. Nothing is
    /// stored while there is nothing new.
    pub fn slice(mut self, time: Duration, bytes: u64) -> Self {
        self.options.time = time;
        self.options.bytes = bytes.max(1);
        self.options.poll = POLL.min(time).max(Duration::from_millis(1));
        self
    }

    /// Stores what there is now, in slices of the given size, and ends when the source has nothing new.
    pub fn once(mut self) -> Self {
        self.options.once = true;
        self
    }

    /// Where to begin when the set has neither a slice nor a backup that knows its place in the log. Without this the
    /// loop insists on a base first.
    pub fn starting_at(mut self, position: LogPosition) -> Self {
        self.options.starting_at = Some(position);
        self
    }

    /// For how long to try again, with growing waits, while no slice can be stored. Default one hour.
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.options.give_up_after = time;
        self
    }

    /// Reads at most this many plain bytes a second.
    pub fn rate_limit(mut self, bytes_per_second: u64) -> Self {
        self.rate_limit = Some(bytes_per_second);
        self
    }

    /// Watches this run, beside the repository's observers.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Ends the loop cleanly when `shutdown` completes: a slice under way is given up, and belongs to the next one after a
    /// restart. Unlike the other verbs this then succeeds: stopping is how following ends.
    pub fn run_until(mut self, shutdown: impl Future<Output = ()> + Send + 'a) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    async fn run(mut self) -> Result<FollowReport> {
        let set = SetName::parse(std::mem::take(&mut self.set))?;
        let watch = self.repository.0.watch(std::mem::take(&mut self.observers));
        let stop = CancellationToken::new();
        let shutdown = self.shutdown.take();
        let mut following = Following::new(
            self.repository,
            set.clone(),
            self.source,
            self.options,
            self.rate_limit.map(|rate| Arc::new(RateLimit::new(rate))),
            watch,
            stop.clone(),
        );
        let result = or_wind_down(shutdown, &stop, following.work().boxed()).await;
        match result {
            Err(error) if !(stop.is_cancelled() && error.kind() == ErrorKind::Cancelled) => {
                Err(error.with("set", &set))
            }
            _ => Ok(following.into_report()),
        }
    }
}

impl Following<'_> {
    /// Round after round until it is to end.
    async fn work(&mut self) -> Result<()> {
        let mut wait = FIRST_WAIT;
        let mut failing_since = None;
        loop {
            let error = match self.round().await {
                Ok(Next::Again) => {
                    (wait, failing_since) = (FIRST_WAIT, None);
                    continue;
                }
                Ok(Next::End) => return Ok(()),
                Err(error) => error,
            };
            let since = *failing_since.get_or_insert_with(std::time::Instant::now);
            if is_final(&error) || since.elapsed() >= self.options.give_up_after {
                return Err(error);
            }
            let message = format!("following {} goes on in {wait:?}: {}", self.set(), error.chain());
            self.watch.event(&Event::Warning(&Warning::new("log-slice-failed", message)));
            // What was known may be the reason: look again.
            self.forget();
            self.pause(wait).await?;
            wait = (wait * 2).min(LAST_WAIT);
        }
    }
}

/// Whether trying again cannot help without somebody doing something.
fn is_final(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::LogGap
            | ErrorKind::Cancelled
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
            | ErrorKind::Unencrypted
            | ErrorKind::WrongKey
            | ErrorKind::NotFound
            | ErrorKind::Internal
    )
}

impl<'a> IntoFuture for Follow<'a> {
    type Output = Result<FollowReport>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        self.run().boxed()
    }
}

impl std::fmt::Debug for Follow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow")
            .field("set", &self.set)
            .field("source", &self.source)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
