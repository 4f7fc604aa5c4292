//! How many threads a command uses, and starting them.

use std::thread::{Builder, Scope, ScopedJoinHandle};

use anyhow::Context;

/// As many as were asked for, else one for each processor.
pub(crate) fn threads(asked: Option<u16>) -> usize {
    match asked {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    }
}

/// Starts a thread that ends before `scope` does.
///
/// # Errors
/// That the system gives no more threads, with what to do.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    body: impl FnOnce() -> T + Send + 'scope,
) -> anyhow::Result<ScopedJoinHandle<'scope, T>> {
    (Builder::new().spawn_scoped(scope, body))
        .context("the system gives no more threads; --threads takes how many to use")
}

/// Whether the system gives one more thread just now.
pub(crate) fn has_one() -> bool {
    Builder::new().spawn(|| ()).is_ok()
}
