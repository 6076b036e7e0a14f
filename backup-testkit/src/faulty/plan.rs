//! When which fault happens.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup_core::{Error, ErrorKind, Result};

use crate::Operation;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call does nothing and fails.
    Fail {
        /// With this kind.
        kind: ErrorKind,
        /// And this answer of [`Error::is_retryable`].
        retryable: bool,
    },
    /// The call does its work, and then fails: a reply that was lost. A create-new has happened, and says it has not.
    LostReply {
        /// And this answer of [`Error::is_retryable`].
        retryable: bool,
    },
    /// The call never ends.
    Hang,
    /// The connection is cut: a stream of bytes gives half a chunk and a list nothing more, both then end *without
    /// an error*; every other call fails with [`ErrorKind::Unavailable`], not retryable.
    Cut,
    /// The process is killed (SIGKILL) before the call does anything. For children of [`Crash`](crate::Crash).
    Kill,
    /// A write takes half of its chunk and then fails, a stream gives half a chunk and then fails; every other call
    /// fails. Never retryable: the half cannot be offered again.
    Short {
        /// With this kind.
        kind: ErrorKind,
    },
}

impl Fault {
    /// A failure worth a retry: [`ErrorKind::Unavailable`].
    pub fn retryable() -> Self {
        Self::Fail { kind: ErrorKind::Unavailable, retryable: true }
    }

    /// A failure that stays: [`ErrorKind::Io`].
    pub fn permanent() -> Self {
        Self::Fail { kind: ErrorKind::Io, retryable: false }
    }

    /// A disk that becomes full in the middle of a chunk: [`ErrorKind::StorageFull`].
    pub fn short_write() -> Self {
        Self::Short { kind: ErrorKind::StorageFull }
    }
}

/// A fault and its moment: the n-th call (of one operation or of any), counted from when it is armed.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    nth: u64,
    times: u64,
    operation: Option<Operation>,
    fault: Fault,
    seen: u64,
}

impl Rule {
    /// The `n`-th call, the first being 1, fails for good, once.
    pub fn nth(n: u64) -> Self {
        Self { nth: n, times: 1, operation: None, fault: Fault::permanent(), seen: 0 }
    }

    /// Every call fails.
    pub fn always() -> Self {
        Self::nth(1).times(u64::MAX)
    }

    /// Counts only calls of `operation`.
    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Sets what goes wrong.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Lets it go wrong `times` in a row; `u64::MAX` is for ever.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn meets(&mut self, operation: Operation) -> bool {
        if self.operation.is_some_and(|only| only != operation) {
            return false;
        }
        self.seen += 1;
        self.seen >= self.nth && self.seen - self.nth < self.times
    }
}

/// What is to happen to one call.
pub(super) enum Step {
    Go,
    Hang,
    Fail(Error),
    DoThenFail(Error),
    HalfThenFail(Error),
    Cut,
}

#[derive(Debug, Default)]
pub(super) struct Plan(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    counts: BTreeMap<Operation, u64>,
    faults: u64,
}

impl Plan {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn arm(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    pub(super) fn disarm(&self) {
        self.state().rules.clear();
    }

    pub(super) fn total(&self) -> u64 {
        self.state().counts.values().sum()
    }

    pub(super) fn count(&self, operation: Operation) -> u64 {
        self.state().counts.get(&operation).copied().unwrap_or(0)
    }

    pub(super) fn faults(&self) -> u64 {
        self.state().faults
    }

    /// Counts a call and says what is to happen to it. Every rule counts it; the first that meets it decides.
    pub(super) fn step(&self, operation: Operation) -> Step {
        let mut state = self.state();
        let total: u64 = state.counts.values().sum::<u64>() + 1;
        *state.counts.entry(operation).or_default() += 1;
        let mut fault = None;
        for rule in &mut state.rules {
            if rule.meets(operation) {
                fault = fault.or(Some(rule.fault));
            }
        }
        let Some(fault) = fault else { return Step::Go };
        state.faults += 1;
        let error = |kind, retryable| {
            Error::new(kind, "injected fault")
                .message("a test asked for this failure")
                .with("operation", format_args!("{operation:?}"))
                .with("call", total)
                .retryable(retryable)
        };
        match fault {
            Fault::Fail { kind, retryable } => Step::Fail(error(kind, retryable)),
            Fault::LostReply { retryable } => Step::DoThenFail(error(ErrorKind::Unavailable, retryable)),
            Fault::Hang => Step::Hang,
            Fault::Kill => kill_this_process(),
            Fault::Cut if matches!(operation, Operation::Read | Operation::List) => Step::Cut,
            Fault::Cut => Step::Fail(error(ErrorKind::Unavailable, false)),
            Fault::Short { kind } if matches!(operation, Operation::Read | Operation::Write) => {
                Step::HalfThenFail(error(kind, false))
            }
            Fault::Short { kind } => Step::Fail(error(kind, false)),
        }
    }

    /// Runs a call that has no halves.
    pub(super) async fn call<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.step(operation) {
            Step::Go => call.await,
            Step::Hang => std::future::pending().await,
            Step::DoThenFail(error) => {
                call.await?;
                Err(error)
            }
            Step::Fail(error) | Step::HalfThenFail(error) => Err(error),
            Step::Cut => unreachable!("a cut of a call without a stream is a failure"),
        }
    }
}

/// Ends this process the way an operating system short of memory does: nothing is flushed, dropped or told.
fn kill_this_process() -> ! {
    let sent = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal may take a moment to arrive; nothing may go on until then.
    std::thread::sleep(std::time::Duration::from_secs(60));
    panic!("this process survived its own SIGKILL: {sent:?}")
}
