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
