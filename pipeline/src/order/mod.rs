//! Which sample when: pure functions of (seed, epoch, data), no I/O and no threads.
//!
//! The order of an epoch is defined in two steps. [`epoch_shards`] permutes the shards; the samples
//! of the shards, one shard after the other, then pass a [`ShuffleBuffer`] that always holds the
//! next few hundred and emits a random one of them. Neither looks at threads or time, so the same
//! seed gives the same order on any machine.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How the samples of an epoch are shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShuffleMode {
    /// Shards and samples in stored order, every epoch.
    None,
    /// Shards in a new random order each epoch, samples in stored order within them.
    Shards,
    /// Shards in a new random order each epoch, and samples through a bounded buffer.
    Buffer,
}

/// What a generator is for; keeps the streams of one epoch independent.
#[derive(Clone, Copy)]
enum Purpose {
    Shards = 1,
    Buffer = 2,
}

fn generator(seed: u64, epoch: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(b"qf-order");
    key[24] = purpose as u8;
    ChaCha8Rng::from_seed(key)
}

/// A uniform integer below `bound` (`bound > 0`), without modulo bias.
fn below(generator: &mut ChaCha8Rng, bound: u64) -> u64 {
    // Lemire's method: the high word of a 64x64-bit product, rejecting the uneven remainder.
    loop {
        let product = u128::from(generator.next_u64()) * u128::from(bound);
        if (product as u64) >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

/// The order in which an epoch visits `num_shards` shards.
pub fn epoch_shards(num_shards: usize, seed: u64, epoch: u64, mode: ShuffleMode) -> Vec<u32> {
    let mut order: Vec<u32> = (0..num_shards as u32).collect();
    if mode != ShuffleMode::None {
        let mut generator = generator(seed, epoch, Purpose::Shards);
        for last in (1..order.len()).rev() {
            let other = below(&mut generator, last as u64 + 1) as usize;
            order.swap(last, other);
        }
    }
    order
}

/// Bounds of a [`ShuffleBuffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferBounds {
    /// At most this many samples.
    pub max_samples: usize,
    /// At most this many bytes, as counted by the `weight` of [`ShuffleBuffer::push`]; one sample
    /// is held however large it is.
    pub max_bytes: usize,
}

/// Holds back samples and releases a random one whenever a bound is exceeded.
pub struct ShuffleBuffer<T> {
    items: Vec<(T, usize)>,
    bytes: usize,
    bounds: BufferBounds,
    generator: ChaCha8Rng,
}

impl<T> ShuffleBuffer<T> {
    /// An empty buffer for one epoch.
    pub fn new(seed: u64, epoch: u64, bounds: BufferBounds) -> Self {
        let generator = generator(seed, epoch, Purpose::Buffer);
        ShuffleBuffer {
            items: Vec::new(),
            bytes: 0,
            bounds,
            generator,
        }
    }

    /// Puts an item in; call [`ShuffleBuffer::pop_excess`] until it is `None` before the next.
    pub fn push(&mut self, item: T, weight: usize) {
        self.bytes += weight;
        self.items.push((item, weight));
    }

    /// A random item, while the buffer is beyond its bounds.
    pub fn pop_excess(&mut self) -> Option<T> {
        let too_many = self.items.len() > self.bounds.max_samples.max(1);
        let too_large = self.bytes > self.bounds.max_bytes && self.items.len() > 1;
        if too_many || too_large {
            self.pop()
        } else {
            None
        }
    }

    /// A random item, until the buffer is empty: the end of the epoch.
    pub fn pop(&mut self) -> Option<T> {
        if self.items.is_empty() {
            return None;
        }
        let chosen = below(&mut self.generator, self.items.len() as u64) as usize;
        let (item, weight) = self.items.swap_remove(chosen);
        self.bytes -= weight;
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_order_is_a_permutation_and_changes_with_the_epoch() {
        assert_eq!(epoch_shards(4, 7, 0, ShuffleMode::None), [0, 1, 2, 3]);
        for epoch in 0..5 {
            let mut order = epoch_shards(100, 7, epoch, ShuffleMode::Shards);
            assert_ne!(order, epoch_shards(100, 7, epoch + 1, ShuffleMode::Shards));
            assert_ne!(order, epoch_shards(100, 8, epoch, ShuffleMode::Shards));
            assert_eq!(order, epoch_shards(100, 7, epoch, ShuffleMode::Buffer));
            order.sort_unstable();
            assert!(order.iter().copied().eq(0..100));
        }
        assert!(epoch_shards(0, 1, 0, ShuffleMode::Shards).is_empty());
    }

    /// The order is part of the format of a saved run: it must not change between versions.
    #[test]
    fn order_is_stable_across_versions() {
        assert_eq!(epoch_shards(8, 42, 3, ShuffleMode::Shards), GOLDEN_SHARDS);
        assert_eq!(shuffle(8, 42, 3, 4, usize::MAX), GOLDEN_BUFFER);
    }

    const GOLDEN_SHARDS: [u32; 8] = [3, 0, 6, 7, 5, 4, 2, 1];
    const GOLDEN_BUFFER: [usize; 8] = [4, 0, 5, 7, 1, 6, 3, 2];

    fn shuffle(count: usize, seed: u64, epoch: u64, samples: usize, bytes: usize) -> Vec<usize> {
        let bounds = BufferBounds {
            max_samples: samples,
            max_bytes: bytes,
        };
        let mut buffer = ShuffleBuffer::new(seed, epoch, bounds);
        let mut out = Vec::new();
        for item in 0..count {
            buffer.push(item, 10);
            while let Some(item) = buffer.pop_excess() {
                out.push(item);
            }
        }
        while let Some(item) = buffer.pop() {
            out.push(item);
        }
        out
    }

    #[test]
    fn buffer_loses_and_repeats_nothing_and_keeps_its_bounds() {
        for (samples, bytes) in [
            (1, usize::MAX),
            (7, usize::MAX),
            (100, 35),
            (1000, usize::MAX),
            (0, 0),
        ] {
            let mut out = shuffle(500, 1, 0, samples, bytes);
            // An item cannot leave before it came, and the buffer never holds more than its bound.
            let held = samples.min(bytes / 10).max(1);
            for (position, &item) in out.iter().enumerate() {
                assert!(item <= position + held, "{item} at {position}");
            }
            out.sort_unstable();
            assert!(out.iter().copied().eq(0..500));
        }
        assert_eq!(shuffle(100, 1, 0, 1, 0), shuffle(100, 1, 0, 1, 0));
        assert_ne!(
            shuffle(100, 1, 0, 50, 10_000),
            shuffle(100, 2, 0, 50, 10_000)
        );
    }

    #[test]
    fn below_is_uniform() {
        let mut generator = generator(1, 2, Purpose::Buffer);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[below(&mut generator, 7) as usize] += 1;
        }
        // 10,000 expected; 5 standard deviations are 463.
        assert!(
            counts.iter().all(|&count| count.abs_diff(10_000) < 463),
            "{counts:?}"
        );
    }
}
