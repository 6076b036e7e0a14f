//! [`SimulatedClock`]: a time of day that only a test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use chrono::{DateTime, TimeDelta, Utc};

/// A clock that stands still until a test moves it. Cloning gives another handle to the same clock.
///
/// ```
/// use backup_core::{MemorySink, Repository};
/// use backup_testkit::SimulatedClock;
/// use chrono::{TimeDelta, Utc};
///
/// let clock = SimulatedClock::at(Utc::now());
/// // A machine whose clock is seven hours slow.
/// let slow = Repository::builder().sink(MemorySink::new()).clock(clock.reading(-TimeDelta::hours(7))).build()?;
/// clock.advance(TimeDelta::days(3));
/// # drop(slow);
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimulatedClock(Arc<AtomicI64>);

impl SimulatedClock {
    /// Stands at `time`, to the microsecond.
    pub fn at(time: DateTime<Utc>) -> Self {
        Self(Arc::new(AtomicI64::new(time.timestamp_micros())))
    }

    /// What it shows.
    pub fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0.load(SeqCst)).unwrap_or_default()
    }

    /// Moves it; backwards, too.
    pub fn advance(&self, by: TimeDelta) {
        self.0.fetch_add(by.num_microseconds().unwrap_or(0), SeqCst);
    }

    /// The clock as a machine reads it that is wrong by `skew`: for
    /// [`RepositoryBuilder::clock`](backup_core::RepositoryBuilder::clock).
    pub fn reading(&self, skew: TimeDelta) -> impl Fn() -> DateTime<Utc> + Send + Sync + 'static {
        let clock = self.clone();
        move || clock.now() + skew
    }
}
