//! The threads that requests run on: two for the whole process.

use std::future::Future;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::AbortHandle;

use crate::stop::Stop;

const WORKER_THREADS: usize = 2;

/// Threads for what blocks in the system: looking up host names.
const BLOCKING_THREADS: usize = 4;

/// How long the end of the process's last remote shard may wait for those.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// How often a thread that waits looks whether it is to stop.
pub(super) const STOP_INTERVAL: Duration = Duration::from_millis(50);

static SHARED: Mutex<Weak<Runtime>> = Mutex::new(Weak::new());

/// Chooses the TLS library of the process, for clients that a program makes itself; one that has been
/// chosen already stays.
pub fn install_tls() {
    // An error means that the program has chosen a provider of its own, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[derive(Debug)]
pub(super) struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    /// The one of this process, started where there is none.
    pub(super) fn shared() -> io::Result<Arc<Runtime>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = shared.upgrade() {
            return Ok(runtime);
        }
        install_tls();
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("qf-remote")
            .enable_all()
            .build()?;
        let runtime = Arc::new(Runtime(Some(runtime)));
        *shared = Arc::downgrade(&runtime);
        Ok(runtime)
    }

    pub(super) fn spawn(
        &self,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<AbortHandle> {
        let runtime = self.0.as_ref().ok_or_else(stopped)?;
        Ok(runtime.spawn(future).abort_handle())
    }

    /// Runs `future` on the threads and waits for it here, unless `stop` is set.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        stop: &Stop,
        future: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let task = self.spawn(async move {
            // Whoever waited may have stopped.
            let _ = sender.send(future.await);
        })?;
        loop {
            match receiver.recv_timeout(STOP_INTERVAL) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("a request panicked"))
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = stop.check() {
                task.abort();
                return Err(error);
            }
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("stopped")
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Within a task, of this runtime or another, nothing may wait.
            if Handle::try_current().is_ok() {
                runtime.shutdown_background();
            } else {
                runtime.shutdown_timeout(SHUTDOWN);
            }
        }
    }
}
