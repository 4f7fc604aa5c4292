//! The order of shards.

use super::draw::{generator, shuffled, Purpose};
use super::{OrderSpec, ShuffleMode};

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
pub(super) mod tests {
    use super::super::draw::below;
    use super::*;

    pub(in crate::order) fn spec(seed: u64, shuffle: ShuffleMode, block_samples: u64) -> OrderSpec {
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
