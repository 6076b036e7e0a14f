//! Reading small files ahead of their turn.
//!
//! The walker puts entries into a window, in archive order; reader threads look at them and read what is small;
//! the assembler takes the results out, in the same order. So a disk that answers slowly has several requests at
//! once, and hashing uses all cores, while the archive stays the same from run to run.
//!
//! The window has at most [`LENGTH`] entries and holds at most `budget` bytes of content: a reader reserves room for
//! the largest small file before it looks at an entry, and gives back what the file did not need. Entries are
//! claimed oldest first, so whatever holds the budget is before the entry that waits for it, and will be taken.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;

use backup_core::Item;
use rustix::fs::FileType;

use super::entry::{Found, Place, SMALL, inspect};

/// Entries between the walker and the assembler.
///
/// Each waiting one may hold its directory open, so this also bounds file descriptors.
const LENGTH: usize = 256;
/// Entries a reader claims at once, to take the lock less often.
const CLAIM: usize = 4;

/// An entry and what is known of it before it is looked at.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its name in the archive.
    pub(crate) path: Vec<u8>,
    pub(crate) at: Place,
    /// What the directory said it is.
    pub(crate) hint: FileType,
    /// What the parent backup has under this name.
    pub(crate) parent: Option<Box<Item>>,
}

/// An entry that was looked at.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) path: Vec<u8>,
    pub(crate) found: Found,
    /// Kept for files that are still to be streamed.
    pub(crate) at: Option<Place>,
}

#[derive(Debug)]
enum Slot {
    Waiting(Job),
    Claimed,
    Done(Looked),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Filling,
    /// The walker will put in nothing more.
    Complete,
    /// Everybody is to return.
    Stopped,
}

#[derive(Debug, Default)]
struct State {
    slots: VecDeque<Slot>,
    /// Slots taken out since the beginning: the number of the front one.
    taken: u64,
    /// Number of the oldest slot that no reader has claimed.
    unclaimed: u64,
    /// Bytes of content held or reserved.
    held: u64,
    phase: Phase,
    /// Threads waiting, so that nobody is woken for nothing.
    idle_readers: usize,
    assembler_waits: bool,
    walker_waits: bool,
}

/// The window. See the [module](self).
#[derive(Debug)]
pub(crate) struct Window {
    budget: u64,
    state: Mutex<State>,
    work: Condvar,
    ready: Condvar,
    room: Condvar,
}

/// Where a walk puts what it finds, in archive order.
pub(crate) trait Entries: std::fmt::Debug {
    /// An entry that is to be looked at.
    fn push(&self, job: Job) -> Result<(), Stopped>;
    /// An entry the walk itself has looked at.
    fn push_found(&self, path: Vec<u8>, found: Found) -> Result<(), Stopped>;
    /// Nothing more will come.
    fn complete(&self);
    /// The walk failed.
    fn stop(&self);
}

impl Entries for Window {
    fn push(&self, job: Job) -> Result<(), Stopped> {
        self.push(job)
    }
    fn push_found(&self, path: Vec<u8>, found: Found) -> Result<(), Stopped> {
        self.push_found(path, found)
    }
    fn complete(&self) {
        self.complete();
    }
    fn stop(&self) {
        self.stop();
    }
}

/// The window was stopped: the run is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopped;

impl Window {
    /// A window that holds at most `budget` bytes of content, and at least one file.
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            budget: budget.max(SMALL),
            state: Mutex::default(),
            work: Condvar::new(),
            ready: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// Appends an entry that is to be looked at. Waits while the window is full.
    pub(crate) fn push(&self, job: Job) -> Result<(), Stopped> {
        let mut state = self.wait_for_room()?;
        state.slots.push_back(Slot::Waiting(job));
        if state.idle_readers > 0 {
            drop(state);
            self.work.notify_one();
        }
        Ok(())
    }

    /// Appends an entry the walker itself has looked at.
    pub(crate) fn push_found(&self, path: Vec<u8>, found: Found) -> Result<(), Stopped> {
        let mut state = self.wait_for_room()?;
        state.slots.push_back(Slot::Done(Looked { path, found, at: None }));
        if state.assembler_waits {
            drop(state);
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Nothing more will be pushed.
    pub(crate) fn complete(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Filling {
            state.phase = Phase::Complete;
        }
        drop(state);
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// Makes everybody return.
    pub(crate) fn stop(&self) {
        self.lock().phase = Phase::Stopped;
        self.work.notify_all();
        self.ready.notify_all();
        self.room.notify_all();
    }

    /// Moves what is ready at the front into `batch`, at least one; leaves it empty at the end.
    pub(crate) fn take(&self, batch: &mut VecDeque<Looked>) -> Result<(), Stopped> {
        let mut state = self.lock();
        loop {
            if state.phase == Phase::Stopped {
                return Err(Stopped);
            }
            while let Some(Slot::Done(..)) = state.slots.front() {
                if let Some(Slot::Done(looked)) = state.slots.pop_front() {
                    state.taken += 1;
                    batch.push_back(looked);
                }
            }
            state.unclaimed = state.unclaimed.max(state.taken);
            if !batch.is_empty() || (state.phase == Phase::Complete && state.slots.is_empty()) {
                break;
            }
            state.assembler_waits = true;
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.assembler_waits = false;
        }
        // The walker is woken for a good stretch of work, not for each entry.
        if state.walker_waits && state.slots.len() <= LENGTH / 2 {
            state.walker_waits = false;
            self.room.notify_one();
        }
        Ok(())
    }

    /// The assembler is done with `bytes` of content it took.
    pub(crate) fn release(&self, bytes: u64) {
        let mut state = self.lock();
        state.held = state.held.saturating_sub(bytes);
        if state.idle_readers > 0 && state.unclaimed < state.taken + state.slots.len() as u64 {
            drop(state);
            self.work.notify_one();
        }
    }

    /// The loop of a reader thread. It ends when everything was claimed, or by [`stop`](Self::stop), which the
    /// assembler calls in the end.
    pub(crate) fn read(&self) {
        let _guard = StopOnPanic(self);
        let mut claimed = Vec::with_capacity(CLAIM);
        while self.claim(&mut claimed).is_ok() && !claimed.is_empty() {
            for (number, job) in claimed.drain(..) {
                let found = inspect(&job.at, job.hint, job.parent);
                let at = matches!(found, Found::Stream).then_some(job.at);
                self.put(number, Looked { path: job.path, found, at });
            }
        }
    }

    /// Claims the oldest entries; none at the end.
    fn claim(&self, claimed: &mut Vec<(u64, Job)>) -> Result<(), Stopped> {
        let mut state = self.lock();
        loop {
            if state.phase == Phase::Stopped {
                return Err(Stopped);
            }
            while claimed.len() < CLAIM && state.held + SMALL <= self.budget {
                let number = state.unclaimed;
                let Some(slot) = index(&state, number).and_then(|i| state.slots.get_mut(i)) else { break };
                if let Slot::Waiting(_) = slot
                    && let Slot::Waiting(job) = std::mem::replace(slot, Slot::Claimed)
                {
                    claimed.push((number, job));
                    state.held += SMALL;
                }
                state.unclaimed += 1;
            }
            let end = state.taken + state.slots.len() as u64;
            if !claimed.is_empty() || (state.phase == Phase::Complete && state.unclaimed >= end) {
                if state.idle_readers > 0 && state.unclaimed < end && state.held + SMALL <= self.budget {
                    self.work.notify_one();
                }
                return Ok(());
            }
            state.idle_readers += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle_readers -= 1;
        }
    }

    fn put(&self, number: u64, looked: Looked) {
        let mut state = self.lock();
        state.held = state.held.saturating_sub(SMALL) + content_length(&looked.found);
        let Some(i) = index(&state, number) else { return };
        if let Some(slot) = state.slots.get_mut(i) {
            *slot = Slot::Done(looked);
        }
        let wake_assembler = i == 0 && state.assembler_waits;
        let wake_reader = state.idle_readers > 0
            && state.held + SMALL <= self.budget
            && state.unclaimed < state.taken + state.slots.len() as u64;
        drop(state);
        if wake_assembler {
            self.ready.notify_one();
        }
        if wake_reader {
            self.work.notify_one();
        }
    }

    fn wait_for_room(&self) -> Result<MutexGuard<'_, State>, Stopped> {
        let mut state = self.lock();
        while state.phase != Phase::Stopped && state.slots.len() >= LENGTH {
            state.walker_waits = true;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.phase == Phase::Stopped { Err(Stopped) } else { Ok(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of content that `found` holds in memory.
pub(crate) fn content_length(found: &Found) -> u64 {
    if let Found::File { content, .. } = found { content.len() as u64 } else { 0 }
}

fn index(state: &State, number: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(state.taken)?).ok()
}

/// Stops the window when its thread panics, so that nobody waits for it for ever.
#[derive(Debug)]
pub(crate) struct StopOnPanic<'a>(pub(crate) &'a Window);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.0.stop();
        }
    }
}
