//! Which sample when: pure functions of (seed, epoch, data), no I/O and no threads.
//!
//! An epoch's order is defined in two steps. [`epoch_shards`] permutes the shards; the samples of the
//! shards, one shard after the other, are then taken as they come, or permuted within [`Blocks`] of a
//! bounded number of samples, or, where all counts are known, all together by a [`Permutation`].
//! Nothing here looks at threads, ranks or time, so a seed gives one order on any machine, and each
//! position of it can be found without those before it.

mod blocks;
mod epoch;
mod mixture;
mod permutation;

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use blocks::Blocks;
pub use epoch::EpochOrder;
pub use mixture::Mixture;
pub use permutation::Permutation;

/// How the samples of an epoch are shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShuffleMode {
    /// Shards and samples in stored order, every epoch.
    None,
    /// Shards in a new random order each epoch, samples in stored order within them.
    Shards,
    /// Shards in a new random order each epoch, and samples among those that come near them.
    Buffer,
    /// All samples of the data set, each position equally likely; every shard needs an index.
    Full,
}

impl ShuffleMode {
    /// Every mode.
    pub const ALL: [ShuffleMode; 4] = [
        ShuffleMode::None,
        ShuffleMode::Shards,
        ShuffleMode::Buffer,
        ShuffleMode::Full,
    ];

    /// The name in configurations, e.g. `buffer`.
    pub fn name(self) -> &'static str {
        match self {
            ShuffleMode::None => "none",
            ShuffleMode::Shards => "shards",
            ShuffleMode::Buffer => "buffer",
            ShuffleMode::Full => "full",
        }
    }
}

/// What the order of one data set is drawn from, beside the samples of its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderSpec {
    /// Seed of the run.
    pub seed: u64,
    /// Which data set of a mixture, from 0: each has an order of its own.
    pub set: u32,
    /// How samples are shuffled.
    pub shuffle: ShuffleMode,
    /// Samples of a block, with [`ShuffleMode::Buffer`].
    pub block_samples: u64,
}

/// What a generator is for; keeps the streams of one epoch independent.
#[derive(Clone, Copy)]
enum Purpose {
    Shards = 1,
    Blocks = 2,
    Full = 3,
}

fn generator(spec: &OrderSpec, epoch: u64, purpose: Purpose, stream: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&spec.seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(b"qf-order");
    key[24] = purpose as u8;
    key[28..].copy_from_slice(&spec.set.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(stream);
    generator
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

/// Fisher and Yates' shuffle of `0..count`.
fn shuffled(count: usize, generator: &mut ChaCha8Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    for last in (1..order.len()).rev() {
        let other = below(generator, last as u64 + 1) as usize;
        order.swap(last, other);
    }
    order
}

/// The order in which an epoch visits `num_shards` shards. [`ShuffleMode::Full`] draws samples, not
/// shards: stored order.
pub fn epoch_shards(num_shards: usize, spec: &OrderSpec, epoch: u64) -> Vec<u32> {
    match spec.shuffle {
        ShuffleMode::None | ShuffleMode::Full => (0..num_shards as u32).collect(),
        ShuffleMode::Shards | ShuffleMode::Buffer => {
            shuffled(num_shards, &mut generator(spec, epoch, Purpose::Shards, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn spec(seed: u64, shuffle: ShuffleMode, block_samples: u64) -> OrderSpec {
        OrderSpec {
            seed,
            set: 0,
            shuffle,
            block_samples,
        }
    }

    #[test]
    fn shard_order_is_a_permutation_and_changes_with_the_epoch() {
        let order =
            |count, seed, epoch, shuffle| epoch_shards(count, &spec(seed, shuffle, 9), epoch);
        assert_eq!(order(4, 7, 0, ShuffleMode::None), [0, 1, 2, 3]);
        for epoch in 0..5 {
            let mut shards = order(100, 7, epoch, ShuffleMode::Shards);
            assert_ne!(shards, order(100, 7, epoch + 1, ShuffleMode::Shards));
            assert_ne!(shards, order(100, 8, epoch, ShuffleMode::Shards));
            assert_eq!(shards, order(100, 7, epoch, ShuffleMode::Buffer));
            let other_set = OrderSpec {
                set: 1,
                ..spec(7, ShuffleMode::Shards, 9)
            };
            assert_ne!(shards, epoch_shards(100, &other_set, epoch));
            shards.sort_unstable();
            assert!(shards.iter().copied().eq(0..100));
        }
        assert!(order(0, 1, 0, ShuffleMode::Shards).is_empty());
    }

    /// The order is part of the format of a saved run: it must not change between versions.
    #[test]
    fn order_is_stable_across_versions() {
        let shards = epoch_shards(8, &spec(42, ShuffleMode::Shards, 9), 3);
        assert_eq!(shards, GOLDEN_SHARDS);
    }

    const GOLDEN_SHARDS: [u32; 8] = [3, 0, 6, 7, 5, 4, 2, 1];

    #[test]
    fn below_is_uniform() {
        let mut generator = generator(&spec(1, ShuffleMode::Buffer, 9), 2, Purpose::Blocks, 0);
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
