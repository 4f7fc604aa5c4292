//! The random numbers of one sample.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Keeps these streams apart from any other use of the same seed.
const DOMAIN: &[u8; 8] = b"qfsample";

/// Random numbers of one visit of one sample.
///
/// A ChaCha8 stream whose key is (seed, epoch, shard, sample): the streams of different samples
/// are independent, and what a sample draws depends on nothing else, so the number of worker
/// threads cannot change the data. All draws are defined here in terms of the 64-bit outputs;
/// the stream is the same on every machine and is not to change between versions.
#[derive(Clone, Debug)]
pub struct SampleRng(ChaCha8Rng);

impl SampleRng {
    /// The stream of sample `sample_index` of shard `shard_index` in pass `epoch` of a run.
    pub fn new(seed: u64, epoch: u64, shard_index: u32, sample_index: u32) -> SampleRng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        key[16..20].copy_from_slice(&shard_index.to_le_bytes());
        key[20..24].copy_from_slice(&sample_index.to_le_bytes());
        key[24..].copy_from_slice(DOMAIN);
        SampleRng(ChaCha8Rng::from_seed(key))
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        (self.next_u64() >> 11) as f64 * STEP
    }

    /// Uniform between `low` and `high`.
    pub fn uniform_range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform among `0..n`, without bias (multiply and reject: D. Lemire, "Fast random integer
    /// generation in an interval", 2019). Zero for `n = 0`.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let rejected = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= rejected {
                return (product >> 64) as u64;
            }
        }
    }

    /// True with this probability.
    pub fn coin(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stream is part of the format: a run resumed by a later version must draw the same.
    #[test]
    fn first_values_never_change() {
        let mut rng = SampleRng::new(1, 2, 3, 4);
        let bits: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(bits, GOLDEN_BITS);
        let mut rng = SampleRng::new(0, 0, 0, 0);
        let uniform = [rng.uniform(), rng.uniform_range(-1.0, 1.0)];
        assert_eq!(uniform, GOLDEN_UNIFORM);
        let below: Vec<u64> = (0..6).map(|_| rng.below(10)).collect();
        assert_eq!(below, GOLDEN_BELOW);
    }

    const GOLDEN_BITS: [u64; 3] = [
        10650761518438476676,
        15580610438171716512,
        13169838143579824443,
    ];
    const GOLDEN_UNIFORM: [f64; 2] = [0.15120540699636187, -0.8328226759481876];
    const GOLDEN_BELOW: [u64; 6] = [1, 2, 4, 0, 6, 0];

    #[test]
    fn streams_differ_by_every_part_of_the_key() {
        let first =
            |key: (u64, u64, u32, u32)| SampleRng::new(key.0, key.1, key.2, key.3).next_u64();
        let keys = [
            (0, 0, 0, 0),
            (1, 0, 0, 0),
            (1 << 63, 0, 0, 0),
            (0, 1, 0, 0),
            (0, 1 << 63, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 1 << 31, 0),
            (0, 0, 0, 1),
            (0, 0, 0, 1 << 31),
        ];
        let mut values: Vec<u64> = keys.into_iter().map(first).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), keys.len());
    }

    #[test]
    fn draws_are_uniform() {
        let mut rng = SampleRng::new(5, 0, 0, 0);
        let mut counts = [0f64; 7];
        let mut heads = 0;
        let mut sum = 0.0;
        const DRAWS: usize = 70_000;
        for _ in 0..DRAWS {
            counts[rng.below(7) as usize] += 1.0;
            heads += usize::from(rng.coin(0.25));
            let value = rng.uniform();
            assert!((0.0..1.0).contains(&value));
            sum += value;
        }
        let chi2: f64 = counts
            .iter()
            .map(|c| (c - 10_000.0f64).powi(2) / 10_000.0)
            .sum();
        assert!(chi2 < 22.5, "{chi2} (p = 0.001 at 6 degrees of freedom)");
        assert!(
            (heads as f64 / DRAWS as f64 - 0.25).abs() < 0.006,
            "{heads}"
        );
        assert!((sum / DRAWS as f64 - 0.5).abs() < 0.004, "{sum}");
        // A range that 2⁶⁴ is far from a multiple of: the middle third is as likely as the others.
        let n = 3 << 62;
        let middle = (0..9000)
            .filter(|_| (1 << 62..2 << 62).contains(&rng.below(n)))
            .count();
        assert!((2820..3180).contains(&middle), "{middle}");
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
        assert!(!rng.coin(0.0) && rng.coin(1.0));
        // Among the multiples of 2⁻⁵³ in [0, 1), a share of p lies below p, and p itself does not.
        let next = rng.clone().uniform();
        assert!(rng.clone().coin(next + f64::EPSILON) && !rng.coin(next));
    }
}
