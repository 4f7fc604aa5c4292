//! Recycles the memory of compressed images.
//!
//! A reader allocates it, a worker frees it: left to the allocator, most of it goes back to the
//! system each time, and the kernel clears every page again for the next image.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shorter members are left to the allocator.
const MIN_BYTES: usize = 16 << 10;

/// Size classes, four to a doubling, from [`MIN_BYTES`] to 14 MiB.
const CLASSES: usize = 40;

/// Where there is none of a class, one of the next classes serves: up to half as much again.
const NEAR_CLASSES: usize = 3;

/// Most bytes that lie unused.
const MAX_FREE_BYTES: usize = 32 << 20;

/// Vectors by size class; who takes one gets the one that came back last, which may still be in the
/// processor's cache.
#[derive(Debug, Default)]
pub(crate) struct BytePool(Mutex<Free>);

#[derive(Debug)]
struct Free {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

impl Default for Free {
    fn default() -> Self {
        Free {
            classes: std::array::from_fn(|_| Vec::new()),
            bytes: 0,
        }
    }
}

/// Capacity of the vectors of a class.
const fn class_bytes(class: usize) -> usize {
    (MIN_BYTES << (class / 4)) / 4 * (4 + class % 4)
}

/// The smallest class that holds `len` bytes; `None` beyond the classes.
fn class_for(len: usize) -> Option<usize> {
    (len >= MIN_BYTES)
        .then(|| (0..CLASSES).find(|&class| class_bytes(class) >= len))
        .flatten()
}

impl BytePool {
    fn free(&self) -> MutexGuard<'_, Free> {
        // Nothing that can panic runs while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vector of `len` bytes; they are those of its last use, or zeros.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let Some(class) = class_for(len) else {
            return vec![0; len];
        };
        let recycled = self.free().pop(class);
        let mut bytes = recycled.unwrap_or_else(|| vec![0; class_bytes(class)]);
        bytes.resize(len, 0);
        bytes
    }

    /// Keeps a vector that [`BytePool::take`] made; any other is freed.
    pub(crate) fn give_back(&self, bytes: Vec<u8>) {
        let capacity = bytes.capacity();
        if let Some(class) = class_for(capacity).filter(|&class| class_bytes(class) == capacity) {
            let refused = self.free().push(class, bytes);
            drop(refused); // Where others need not wait for it.
        }
    }
}

impl Free {
    fn pop(&mut self, class: usize) -> Option<Vec<u8>> {
        let fitting = self.classes[class..].iter_mut().take(NEAR_CLASSES);
        let bytes = fitting.filter_map(Vec::pop).next()?;
        self.bytes -= bytes.capacity();
        Some(bytes)
    }

    /// Gives it back if there is no room.
    fn push(&mut self, class: usize, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if self.bytes + bytes.capacity() > MAX_FREE_BYTES {
            return Some(bytes);
        }
        self.bytes += bytes.capacity();
        self.classes[class].push(bytes);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_and_are_bounded() {
        let pool = BytePool::default();
        for len in [0, 1, MIN_BYTES - 1, MIN_BYTES, 150_001, 9 << 20, 100 << 20] {
            let bytes = pool.take(len);
            assert_eq!(bytes.len(), len);
            let waste = bytes.capacity() - len;
            assert!(waste <= len / 4 + 1, "{len}: {waste}");
        }
        let mut bytes = pool.take(100_000);
        bytes[0] = 1;
        let at = bytes.as_ptr();
        pool.give_back(bytes);
        let again = pool.take(99_000);
        assert!(again.len() == 99_000 && again.as_ptr() == at);
        pool.give_back(again);
        // A somewhat longer one serves as well, one twice as long does not.
        let shorter = pool.take(80_000);
        assert!(shorter.len() == 80_000 && shorter.as_ptr() == at);
        pool.give_back(shorter);
        let short = pool.take(50_000);
        assert_ne!(short.as_ptr(), at);
        pool.give_back(vec![1; 100_000]);
        let many: Vec<_> = (0..300).map(|_| pool.take(100_000)).collect();
        many.into_iter().for_each(|bytes| pool.give_back(bytes));
        let free = pool.free().bytes;
        let kept: usize = pool.free().classes.iter().map(Vec::len).sum();
        assert!(free <= MAX_FREE_BYTES && kept > 100, "{free} in {kept}");
        while pool.free().classes.iter().any(|class| !class.is_empty()) {
            pool.take(100_000);
        }
        assert_eq!(pool.free().bytes, 0);
    }
}
