//! Telling reads in progress that nobody waits for them any more.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// A flag that every read of a loader looks at. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    own: Arc<AtomicBool>,
    /// Set from outside, by a signal say.
    outer: Option<Arc<AtomicBool>>,
}

impl Stop {
    /// A flag of its own that counts as set once `outer` is, too.
    pub fn within(outer: Arc<AtomicBool>) -> Stop {
        Stop {
            own: Arc::default(),
            outer: Some(outer),
        }
    }

    /// A flag of its own within the same outer one.
    pub fn another(&self) -> Stop {
        Stop {
            own: Arc::default(),
            outer: self.outer.clone(),
        }
    }

    /// Asks all reads that share this flag to end, for good.
    pub fn set(&self) {
        self.own.store(true, Ordering::Release);
    }

    /// Whether they were asked to.
    pub fn is_set(&self) -> bool {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        is_set(&self.own) || self.outer.as_deref().is_some_and(is_set)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_flag_stops_all_and_one_stops_no_other() {
        let outer = Arc::new(AtomicBool::new(false));
        let one = Stop::within(outer.clone());
        let other = one.another();
        one.set();
        assert!(one.clone().is_set() && !other.is_set());
        assert!(!outer.load(Ordering::Relaxed));
        outer.store(true, Ordering::Relaxed);
        assert!(other.is_set() && other.check().is_err());
        assert!(!Stop::default().is_set());
    }
}
