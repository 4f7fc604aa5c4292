//! How much memory a shuffle has left, as those see it who read for it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Samples on their way to a shuffle, and held by it, in bytes. Counted, never waited for: who finds no
/// budget leaves a member in its shard.
#[derive(Debug)]
pub(crate) struct ShuffleBudget {
    max_bytes: usize,
    on_the_way: AtomicUsize,
    held: AtomicUsize,
}

impl ShuffleBudget {
    pub(crate) fn new(max_bytes: usize) -> ShuffleBudget {
        ShuffleBudget {
            max_bytes,
            on_the_way: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        }
    }

    /// Whether `len` bytes more would fit. Readers that ask at one time may all hear that they do.
    pub(crate) fn is_for(&self, len: u64) -> bool {
        let taken = self.held.load(Ordering::Relaxed) + self.on_the_way.load(Ordering::Relaxed);
        len <= self.max_bytes.saturating_sub(taken) as u64
    }

    /// A sample was read.
    pub(crate) fn send(&self, bytes: usize) {
        self.on_the_way.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A sample that was read has arrived; what is kept of it is then told with [`ShuffleBudget::hold`].
    pub(crate) fn receive(&self, bytes: usize) {
        self.on_the_way.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The shuffle keeps this much in all.
    pub(crate) fn hold(&self, bytes: usize) {
        self.held.store(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_what_is_held_count() {
        let budget = ShuffleBudget::new(100);
        assert!(budget.is_for(100) && !budget.is_for(101));
        budget.send(60);
        assert!(budget.is_for(40) && !budget.is_for(41));
        budget.receive(60);
        budget.hold(90);
        assert!(budget.is_for(10) && !budget.is_for(11));
        // More may come than the budget holds.
        budget.send(60);
        assert!(!budget.is_for(1) && budget.is_for(0));
        budget.receive(60);
        budget.hold(0);
        assert!(budget.is_for(100));
    }
}
