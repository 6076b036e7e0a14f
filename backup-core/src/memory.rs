//! A source, a sink and a target in memory: for documentation, examples and tests.
//!
//! They keep the whole contract of their traits, and let a test look inside and do damage.

mod sink;
mod source;
mod target;

pub use sink::MemorySink;
pub use source::MemorySource;
pub use target::MemoryTarget;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The content of a mutex whose holders never leave it half-changed, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
