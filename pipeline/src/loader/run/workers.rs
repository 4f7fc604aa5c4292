//! The rayon pool of the workers, whose threads have ended once it is dropped.

use std::io;
use std::thread::JoinHandle;

use crate::error::PipelineError;

/// Runs jobs on threads `qf-work-N`. Dropping it waits for all jobs and for the threads: rayon's own pool
/// only tells them to end, and what a job holds (page-locked memory) would be freed some time later.
pub(crate) struct Workers {
    // Dropped in this order: told to end, then waited for.
    pool: rayon::ThreadPool,
    _threads: Joined,
}

/// Threads that are waited for when this is dropped.
struct Joined(Vec<JoinHandle<()>>);

impl Workers {
    pub(crate) fn start(threads: usize) -> Result<Workers, PipelineError> {
        let mut joined = Joined(Vec::new());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            // The position in the order reports the death of its worker; the process lives on.
            .panic_handler(|_| {})
            .spawn_handler(|thread| {
                let name = format!("qf-work-{}", thread.index());
                let handle = crate::loader::thread::spawn(&name, || thread.run())
                    .map_err(io::Error::other)?;
                joined.0.push(handle);
                Ok(())
            })
            .build()
            .map_err(|error| PipelineError::Thread(format!("cannot start workers: {error}")))?;
        Ok(Workers {
            pool,
            _threads: joined,
        })
    }

    /// Runs a job behind those that were given before.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.pool.spawn_fifo(job);
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // A job that panics does not end its thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_and_what_they_hold_are_over_when_it_is_dropped() {
        let held = Arc::new(());
        for threads in [1, 3] {
            let workers = Workers::start(threads).unwrap();
            for number in 0..20 {
                let held = held.clone();
                workers.run(move || {
                    std::thread::sleep(Duration::from_millis(1));
                    assert_ne!(number, 7, "a job that fails");
                    drop(held);
                });
            }
            drop(workers);
            assert_eq!(Arc::strong_count(&held), 1);
        }
    }
}
