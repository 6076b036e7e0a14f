//! Threads for computing, shared by all codecs of a process.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, ErrorKind, Result};

/// A pool of threads for compression and hashing. Cloning shares it.
#[derive(Clone)]
pub struct Workers(Arc<rayon_core::ThreadPool>);

impl Workers {
    /// The pool of this process, one thread per core.
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<Workers> = OnceLock::new();
        if let Some(workers) = SHARED.get() {
            return Ok(workers.clone());
        }
        let made = Self::new(std::thread::available_parallelism().map_or(1, usize::from))?;
        Ok(SHARED.get_or_init(|| made).clone())
    }

    /// A pool of its own.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = rayon_core::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|n| format!("backup-worker-{n}"))
            // A panic in a job (a defect of a codec) must fail its run and not the whole service, as it would by
            // default. The job's channel closes, and the run ends with an error.
            .panic_handler(|_| {})
            .build()
            .map_err(|e| Error::new(ErrorKind::Io, "start worker threads").caused_by(e))?;
        Ok(Self(Arc::new(pool)))
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.threads())
    }
}

/// Jobs that run on all workers and give their results back in the order they were submitted.
///
/// At most `limit` jobs are under way, which bounds memory. To be used from a thread that may block, and not
/// from a worker.
pub(crate) struct Ordered<T> {
    workers: Workers,
    limit: usize,
    queue: VecDeque<Receiver<T>>,
}

impl<T: Send + 'static> Ordered<T> {
    /// At most `limit` jobs at once on `workers`.
    pub(crate) fn new(workers: &Workers, limit: usize) -> Self {
        Self { workers: workers.clone(), limit: limit.max(1), queue: VecDeque::new() }
    }

    /// How many jobs are useful at once on `workers`: one per thread, and one waiting, so that none idles.
    pub(crate) fn useful_limit(workers: &Workers) -> usize {
        workers.threads() + 1
    }

    /// Submits a job. Returns the oldest result if it had to be waited for to make room.
    pub(crate) fn submit(&mut self, job: impl FnOnce() -> T + Send + 'static) -> Result<Option<T>> {
        let oldest = if self.queue.len() >= self.limit { self.wait()? } else { None };
        let (send, receive) = sync_channel(1);
        self.workers.0.spawn(move || {
            // A panic here would end the whole process; instead the result stays out and the caller gets an error.
            if let Ok(result) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)) {
                // The receiver is gone when the run was given up; the result is of no use then.
                let _ = send.send(result);
            }
        });
        self.queue.push_back(receive);
        Ok(oldest)
    }

    /// The oldest result if it is ready.
    pub(crate) fn ready(&mut self) -> Result<Option<T>> {
        let Some(receiver) = self.queue.front() else { return Ok(None) };
        match receiver.try_recv() {
            Ok(result) => {
                self.queue.pop_front();
                Ok(Some(result))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(lost()),
        }
    }

    /// Waits for the oldest result; `None` when there is no job.
    pub(crate) fn wait(&mut self) -> Result<Option<T>> {
        match self.queue.pop_front() {
            None => Ok(None),
            Some(receiver) => receiver.recv().map(Some).map_err(|_| lost()),
        }
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Internal, "compute").message("a worker thread ended without a result")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_job_fails_its_run_and_not_the_process() {
        let workers = Workers::new(1).unwrap();
        let mut jobs = Ordered::new(&workers, 1);
        jobs.submit(|| panic!("a defect")).unwrap();
        let result: Result<Option<()>> = jobs.wait();
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn results_come_in_the_order_of_their_jobs() {
        let workers = Workers::new(3).unwrap();
        let mut jobs = Ordered::new(&workers, 4);
        let mut results = Vec::new();
        for n in 0..50u64 {
            let job = move || {
                std::thread::sleep(std::time::Duration::from_micros(n * 7919 % 300));
                n
            };
            results.extend(jobs.submit(job).unwrap());
        }
        while let Some(n) = jobs.wait().unwrap() {
            results.push(n);
        }
        assert_eq!(results, (0..50).collect::<Vec<_>>());
    }
}
