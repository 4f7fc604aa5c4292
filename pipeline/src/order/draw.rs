//! Random numbers of an order.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::OrderSpec;

/// What a generator is for; keeps the streams of one epoch independent.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Shards = 1,
    Blocks = 2,
    Full = 3,
}

pub(super) fn generator(spec: &OrderSpec, epoch: u64, purpose: Purpose, stream: u64) -> ChaCha8Rng {
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
pub(super) fn below(generator: &mut ChaCha8Rng, bound: u64) -> u64 {
    // Lemire's method: the high word of a 64x64-bit product, rejecting the uneven remainder.
    loop {
        let product = u128::from(generator.next_u64()) * u128::from(bound);
        if (product as u64) >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

/// Fisher and Yates' shuffle of `0..count`.
pub(super) fn shuffled(count: usize, generator: &mut ChaCha8Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    for last in (1..order.len()).rev() {
        let other = below(generator, last as u64 + 1) as usize;
        order.swap(last, other);
    }
    order
}
