//! A permutation of any number of things that takes no memory.

use rand_chacha::rand_core::RngCore;

use super::draw::{generator, Purpose};
use super::OrderSpec;

const ROUNDS: usize = 8;

/// A random permutation of `0..len`, evaluated at any position by itself.
///
/// A balanced Feistel network over the next power of four, walked until it falls within `len`
/// (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): below four steps on average.
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of an epoch's `len` samples.
    pub fn new(len: u64, spec: &OrderSpec, epoch: u64) -> Permutation {
        let mut keys = generator(spec, epoch, Purpose::Full, 0);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|_| keys.next_u64()),
        }
    }

    /// What stands at `position`; `position` itself beyond the length.
    pub fn at(&self, position: u64) -> u64 {
        if position >= self.len {
            return position;
        }
        let mut value = position;
        loop {
            value = self.encrypt(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            let mixed = left ^ (mix(right ^ key) & mask);
            left = right;
            right = mixed;
        }
        (left << self.half_bits) | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::shards::tests::spec;
    use super::super::ShuffleMode;
    use super::*;

    fn permutation(len: u64, seed: u64, epoch: u64) -> Permutation {
        Permutation::new(len, &spec(seed, ShuffleMode::Full, 0), epoch)
    }

    #[test]
    fn every_length_is_permuted() {
        for len in (0..70).chain([255, 256, 257, 1000, 4097]) {
            let order = permutation(len, 3, len);
            let mut seen: Vec<u64> = (0..len).map(|position| order.at(position)).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..len), "{len}");
        }
        let large = permutation(u64::from(u32::MAX) * 7, 1, 0);
        assert!((0..1000).all(|position| large.at(position) < u64::from(u32::MAX) * 7));
        assert_eq!(permutation(0, 1, 0).at(3), 3);
    }

    /// Of five things, over many epochs: each stands equally often at each position, and each pair in
    /// either order.
    #[test]
    fn small_permutations_are_fair() {
        const EPOCHS: u64 = 20_000;
        let mut counts = [[0u32; 5]; 5];
        let mut before = [[0u32; 5]; 5];
        for epoch in 0..EPOCHS {
            let order = permutation(5, 9, epoch);
            let positions: Vec<usize> =
                (0..5).map(|position| order.at(position) as usize).collect();
            for (position, &thing) in positions.iter().enumerate() {
                counts[position][thing] += 1;
                for &later in &positions[position + 1..] {
                    before[thing][later] += 1;
                }
            }
        }
        // 4,000 expected, standard deviation 57; 10,000 expected, standard deviation 71.
        for row in counts {
            assert!(
                row.iter().all(|count| count.abs_diff(4_000) < 285),
                "{counts:?}"
            );
        }
        for (a, row) in before.iter().enumerate() {
            for (b, count) in row.iter().enumerate().filter(|(b, _)| *b != a) {
                assert!(count.abs_diff(10_000) < 355, "{a} before {b}: {count}");
            }
        }
    }

    /// Neighbours are torn apart: the gaps of a large permutation look uniform.
    #[test]
    fn neighbours_are_independent() {
        let len = 100_003u64;
        let order = permutation(len, 2, 0);
        let mut eighths = [0u32; 8];
        for position in 0..len - 1 {
            let gap = (order.at(position + 1) + len - order.at(position)) % len;
            eighths[(gap * 8 / len) as usize] += 1;
        }
        // 12,500 expected, standard deviation 105.
        assert!(
            eighths.iter().all(|count| count.abs_diff(12_500) < 525),
            "{eighths:?}"
        );
    }

    /// The order is part of the format of a saved run: it must not change between versions.
    #[test]
    fn the_permutation_is_stable_across_versions() {
        let order = permutation(10, 42, 3);
        let positions: Vec<u64> = (0..10).map(|position| order.at(position)).collect();
        assert_eq!(positions, GOLDEN);
    }

    const GOLDEN: [u64; 10] = [8, 0, 6, 5, 3, 4, 9, 1, 2, 7];
}
