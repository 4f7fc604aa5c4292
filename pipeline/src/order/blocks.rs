//! Shuffling within reach: blocks of consecutive samples, each permuted by itself.

use super::draw::{below, generator, shuffled, Purpose};
use super::OrderSpec;

/// How an epoch's samples are cut into blocks, and the order within each.
///
/// The first block is shorter by a random amount, so that the same samples do not share a block in
/// every epoch. A position's block is known without reading what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    spec: OrderSpec,
    epoch: u64,
    first: u64,
}

impl Blocks {
    /// The blocks of an epoch.
    pub fn new(spec: &OrderSpec, epoch: u64) -> Blocks {
        let size = spec.block_samples.max(1);
        let mut lengths = generator(spec, epoch, Purpose::Blocks, 0);
        Blocks {
            spec: OrderSpec {
                block_samples: size,
                ..*spec
            },
            epoch,
            first: 1 + below(&mut lengths, size),
        }
    }

    /// The block of a position, and the first position of that block.
    pub fn block_of(&self, position: u64) -> (u64, u64) {
        let size = self.spec.block_samples;
        match position.checked_sub(self.first) {
            None => (0, 0),
            Some(beyond) => (1 + beyond / size, self.first + beyond / size * size),
        }
    }

    /// Samples of a block, unless the epoch ends in it.
    pub fn len_of(&self, block: u64) -> u64 {
        match block {
            0 => self.first,
            _ => self.spec.block_samples,
        }
    }

    /// The order of a block that holds `len` samples: which of them comes first, second, …
    pub fn permutation(&self, block: u64, len: usize) -> Vec<u32> {
        let mut stream = generator(&self.spec, self.epoch, Purpose::Blocks, block + 1);
        shuffled(len, &mut stream)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shards::tests::spec;
    use super::super::ShuffleMode;
    use super::*;

    #[test]
    fn blocks_cover_every_place_once() {
        for (size, epoch) in [(1, 0), (2, 1), (7, 0), (7, 1), (100, 3)] {
            let blocks = Blocks::new(&spec(5, ShuffleMode::Buffer, size), epoch);
            let (mut position, mut block) = (0, 0);
            while position < 500 {
                let len = blocks.len_of(block);
                assert!((1..=size).contains(&len));
                for within in 0..len {
                    assert_eq!(blocks.block_of(position + within), (block, position));
                }
                let mut order = blocks.permutation(block, len as usize);
                order.sort_unstable();
                assert!(order.iter().copied().eq(0..len as u32));
                position += len;
                block += 1;
            }
        }
        // No block at all is a block of one.
        assert_eq!(
            Blocks::new(&spec(5, ShuffleMode::Buffer, 0), 0).len_of(9),
            1
        );
    }

    #[test]
    fn epochs_are_cut_differently_and_blocks_ordered_differently() {
        let spec = spec(5, ShuffleMode::Buffer, 1000);
        let blocks = |epoch| Blocks::new(&spec, epoch);
        let firsts: std::collections::HashSet<u64> =
            (0..20).map(|epoch| blocks(epoch).len_of(0)).collect();
        assert!(firsts.len() > 15, "{firsts:?}");
        assert_ne!(
            blocks(0).permutation(1, 1000),
            blocks(0).permutation(2, 1000)
        );
        assert_ne!(
            blocks(0).permutation(1, 1000),
            blocks(1).permutation(1, 1000)
        );
    }

    /// The order is part of the format of a saved run: it must not change between versions.
    #[test]
    fn blocks_are_stable_across_versions() {
        let blocks = Blocks::new(&spec(42, ShuffleMode::Buffer, 8), 3);
        let order = blocks.permutation(1, 8);
        assert_eq!(
            (blocks.len_of(0), order.as_slice()),
            (GOLDEN.0, &GOLDEN.1[..])
        );
    }

    const GOLDEN: (u64, [u32; 8]) = (8, [3, 5, 0, 6, 1, 2, 4, 7]);
}
