//! An epoch of a data set whose counts are all known.

use super::{epoch_shards, Blocks, OrderSpec, Permutation, ShuffleMode};

/// Finds any position of an epoch.
///
/// Memory: 12 bytes a shard, and 4 bytes a sample of one block.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    shards: Vec<u32>,
    /// Samples before each shard of `shards`, and of all: one longer than `shards`.
    starts: Vec<u64>,
    shuffle: Shuffle,
}

#[derive(Clone, Debug)]
enum Shuffle {
    Stored,
    Blocks {
        blocks: Blocks,
        current: u64,
        permutation: Vec<u32>,
    },
    Full(Permutation),
}

impl EpochOrder {
    /// The epoch's order over shards with these numbers of samples.
    pub fn new(counts: &[u32], spec: &OrderSpec, epoch: u64) -> EpochOrder {
        let shards = epoch_shards(counts.len(), spec, epoch);
        let mut starts = Vec::with_capacity(shards.len() + 1);
        let mut total = 0u64;
        starts.push(0);
        for &shard in &shards {
            total += u64::from(counts[shard as usize]);
            starts.push(total);
        }
        let shuffle = match spec.shuffle {
            ShuffleMode::None | ShuffleMode::Shards => Shuffle::Stored,
            ShuffleMode::Buffer => Shuffle::Blocks {
                blocks: Blocks::new(spec, epoch),
                current: u64::MAX,
                permutation: Vec::new(),
            },
            ShuffleMode::Full => Shuffle::Full(Permutation::new(total, spec, epoch)),
        };
        EpochOrder {
            shards,
            starts,
            shuffle,
        }
    }

    /// Samples of the epoch.
    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `(shard, sample within the shard)` at a position; `None` at the end of the epoch.
    pub fn at(&mut self, position: u64) -> Option<(u32, u32)> {
        let len = self.len();
        if position >= len {
            return None;
        }
        let sample = match &mut self.shuffle {
            Shuffle::Stored => position,
            Shuffle::Full(permutation) => permutation.at(position),
            Shuffle::Blocks {
                blocks,
                current,
                permutation,
            } => {
                let (block, start) = blocks.block_of(position);
                if *current != block {
                    let samples = blocks.len_of(block).min(len - start);
                    *permutation = blocks.permutation(block, samples as usize);
                    *current = block;
                }
                start + u64::from(permutation[(position - start) as usize])
            }
        };
        let shard = self.starts.partition_point(|&start| start <= sample) - 1;
        Some((self.shards[shard], (sample - self.starts[shard]) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::super::shards::tests::spec;
    use super::*;

    #[test]
    fn every_mode_visits_every_sample_once() {
        let counts = [7, 0, 30, 1, 12, 0];
        let mut all: Vec<(u32, u32)> = Vec::new();
        for (shard, &count) in counts.iter().enumerate() {
            all.extend((0..count).map(|sample| (shard as u32, sample)));
        }
        for shuffle in ShuffleMode::ALL {
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let mut order = EpochOrder::new(&counts, &spec(4, shuffle, 9), epoch);
                assert_eq!(order.len(), 50);
                let positions: Vec<_> = (0..50)
                    .map(|position| order.at(position).unwrap())
                    .collect();
                assert_eq!(order.at(50), None);
                // Any position by itself, in any order.
                assert!((0..50)
                    .rev()
                    .all(|p| order.at(p) == Some(positions[p as usize])));
                let mut sorted = positions.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, all, "{shuffle:?}");
                orders.push(positions);
            }
            match shuffle {
                ShuffleMode::None => assert!(orders.iter().all(|order| *order == all)),
                _ => assert!(orders[0] != orders[1] && orders[1] != orders[2]),
            }
        }
        assert!(EpochOrder::new(&[], &spec(4, ShuffleMode::Full, 9), 0).is_empty());
    }

    #[test]
    fn a_block_reaches_no_further_than_its_length() {
        let mut stored = EpochOrder::new(&[500, 500], &spec(4, ShuffleMode::Shards, 0), 1);
        let mut blocks = EpochOrder::new(&[500, 500], &spec(4, ShuffleMode::Buffer, 20), 1);
        let place_of: std::collections::HashMap<_, u64> = (0..1000)
            .map(|position| (stored.at(position), position))
            .collect();
        for position in 0..1000 {
            assert!(place_of[&blocks.at(position)].abs_diff(position) < 20);
        }
    }
}
