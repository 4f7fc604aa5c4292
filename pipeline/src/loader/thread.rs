//! Starting threads.

use std::thread::JoinHandle;

use crate::error::PipelineError;

/// Starts a named thread.
///
/// # Errors
/// [`PipelineError::Thread`] naming it.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, PipelineError> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body)
        .map_err(|error| PipelineError::Thread(format!("cannot start thread {name}: {error}")))
}
