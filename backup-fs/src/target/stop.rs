//! Telling the threads of a restore that nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::{Error, Result};

use super::OPERATION;

/// A flag that its clones share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks everybody to end.
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails once somebody asked to end. Called for each file, and for each piece of a large one.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::cancelled(OPERATION)) } else { Ok(()) }
    }

    /// Asks to end when it is dropped.
    pub(crate) fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }
}

/// See [`Stop::on_drop`].
#[derive(Debug)]
pub(crate) struct StopOnDrop(Stop);

impl StopOnDrop {
    /// Asks to end before it is dropped.
    pub(crate) fn now(&self) {
        self.0.now();
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.now();
    }
}
