//! Counting bytes and telling observers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::observer::{Event, Observer};

/// Least time between two progress events, in milliseconds.
const PROGRESS_EVERY_MS: u64 = 200;

/// The counters and observers of one run. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Watch(Arc<Inner>);

struct Inner {
    observers: Vec<Arc<dyn Observer>>,
    started: Instant,
    plain: AtomicU64,
    stored: AtomicU64,
    total: AtomicU64,
    /// Milliseconds after `started` at which progress was last told.
    told: AtomicU64,
}

impl Watch {
    pub(crate) fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self(Arc::new(Inner {
            observers,
            started: Instant::now(),
            plain: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            total: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }))
    }

    /// Counters of a new run, with the same observers.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.0.observers.clone())
    }

    pub(crate) fn event(&self, event: &Event<'_>) {
        for observer in &self.0.observers {
            observer.on_event(event);
        }
    }

    /// Sets the expected plain bytes of the run.
    pub(crate) fn expect(&self, total: Option<u64>) {
        self.0.total.store(total.unwrap_or(0), Relaxed);
    }

    pub(crate) fn plain(&self, bytes: usize) {
        self.0.plain.fetch_add(bytes as u64, Relaxed);
        self.tell();
    }

    pub(crate) fn stored(&self, bytes: usize) {
        self.0.stored.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    fn tell(&self) {
        if self.0.observers.is_empty() {
            return;
        }
        let elapsed = self.elapsed();
        let now = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let told = self.0.told.load(Relaxed);
        let due = now >= told + PROGRESS_EVERY_MS;
        if due && self.0.told.compare_exchange(told, now, Relaxed, Relaxed).is_ok() {
            let plain = self.0.plain.load(Relaxed);
            let total = self.0.total.load(Relaxed);
            self.event(&Event::Progress {
                plain,
                stored: self.0.stored.load(Relaxed),
                total: (total > 0).then_some(total),
                #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                rate: plain as f64 / elapsed.as_secs_f64(),
            });
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({} observers)", self.0.observers.len())
    }
}
