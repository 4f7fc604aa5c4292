//! Recycles the memory of compressed images.
//!
//! A reader allocates it, a worker frees it: left to the allocator, most of it goes back to the
//! system each time, and the kernel clears every page again for the next image.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;

/// Shorter members are left to the allocator.
const MIN_BYTES: usize = 16 << 10;

/// Size classes, four to a doubling, from [`MIN_BYTES`] to 14 MiB.
const CLASSES: usize = 40;

/// Most bytes that lie unused.
const MAX_FREE_BYTES: usize = 16 << 20;

/// Vectors by size class.
#[derive(Debug)]
pub(crate) struct BytePool {
    classes: [SegQueue<Vec<u8>>; CLASSES],
    free_bytes: AtomicUsize,
}

impl Default for BytePool {
    fn default() -> Self {
        BytePool {
            classes: std::array::from_fn(|_| SegQueue::new()),
            free_bytes: AtomicUsize::new(0),
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
    /// A vector of `len` bytes; they are those of its last use, or zeros.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let Some(class) = class_for(len) else {
            return vec![0; len];
        };
        let mut bytes = match self.classes[class].pop() {
            Some(bytes) => {
                self.free_bytes
                    .fetch_sub(bytes.capacity(), Ordering::Relaxed);
                bytes
            }
            None => vec![0; class_bytes(class)],
        };
        bytes.resize(len, 0);
        bytes
    }

    /// Keeps a vector that [`BytePool::take`] made; any other is freed.
    pub(crate) fn give_back(&self, bytes: Vec<u8>) {
        let capacity = bytes.capacity();
        let class = class_for(capacity).filter(|&class| class_bytes(class) == capacity);
        let Some(class) = class else {
            return;
        };
        let free = self.free_bytes.fetch_add(capacity, Ordering::Relaxed);
        if free + capacity > MAX_FREE_BYTES {
            self.free_bytes.fetch_sub(capacity, Ordering::Relaxed);
            return;
        }
        self.classes[class].push(bytes);
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
        pool.give_back(vec![1; 100_000]);
        let many: Vec<_> = (0..300).map(|_| pool.take(100_000)).collect();
        many.into_iter().for_each(|bytes| pool.give_back(bytes));
        let free = pool.free_bytes.load(Ordering::Relaxed);
        let kept: usize = pool.classes.iter().map(SegQueue::len).sum();
        assert!(free <= MAX_FREE_BYTES && kept > 100, "{free} in {kept}");
        while pool.classes.iter().any(|class| !class.is_empty()) {
            pool.take(100_000);
        }
        assert_eq!(pool.free_bytes.load(Ordering::Relaxed), 0);
    }
}
