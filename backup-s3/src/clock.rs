//! How far a store's clock is from ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Seconds the store's clock is ahead of ours, from its last response.
#[derive(Clone, Debug)]
pub(crate) struct Skew(Arc<AtomicI64>);

/// No response was seen yet.
const UNKNOWN: i64 = i64::MIN;

impl Default for Skew {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(UNKNOWN)))
    }
}

impl Skew {
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(crate) fn set(&self, seconds: i64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    /// `None` before the first response.
    pub(crate) fn get(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|skew| *skew != UNKNOWN)
    }
}
