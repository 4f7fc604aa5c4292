//! Telling reads in progress that nobody waits for them any more.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// A flag that every read of a loader looks at. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks all reads that share this flag to end, for good.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether they were asked to.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// An error once the flag is set.
    ///
    /// # Errors
    /// Of kind `Other`: unlike `Interrupted` nobody tries again.
    pub fn check(&self) -> io::Result<()> {
        if self.is_set() {
            return Err(io::Error::other("stopped"));
        }
        Ok(())
    }
}
