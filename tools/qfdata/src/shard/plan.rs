//! Decides which sample goes into which shard, before anything is written.

use std::ops::Range;

use qf_pipeline::write::{tar_sample_bytes, ShardFormat, TAR_END_BYTES};
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::input::Planned;

/// Bytes of an Arrow shard that belong to no row: schema and end of stream, rounded up.
const ARROW_SHARD_BYTES: u64 = 4096;

/// Bytes of an Arrow row beyond its contents: offsets, validity, and its share of the header of a
/// record batch that is full (100 rows), rounded up.
const ARROW_ROW_BYTES: u64 = 128;

/// A record batch that is closed early, at 32 MiB, has its header for so many bytes of content at
/// least; a header takes below 4 KiB.
const ARROW_HEADER_SHARE: u64 = 4096;

/// The longest member name that every tar header holds.
const TAR_NAME_BYTES: usize = 100;

/// Bounds of a shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Samples.
    pub(super) max_count: u64,
    /// Uncompressed bytes, container included.
    pub(super) max_bytes: u64,
}

/// Cuts the samples into runs, one a shard. A sample that is over `max_bytes` by itself gets a shard
/// of its own.
pub(super) fn cut(samples: &[Planned], format: ShardFormat, limits: Limits) -> Vec<Range<usize>> {
    let sizes: Vec<u64> = samples.iter().map(|s| stored_bytes(s, format)).collect();
    let shard_bytes = match format {
        ShardFormat::Arrow => ARROW_SHARD_BYTES,
        _ => TAR_END_BYTES,
    };
    cut_sizes(&sizes, shard_bytes, limits)
}

fn cut_sizes(sizes: &[u64], shard_bytes: u64, limits: Limits) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let mut start = 0;
    let mut bytes = shard_bytes;
    for (index, &size) in sizes.iter().enumerate() {
        let grown = bytes.saturating_add(size);
        let full = (index - start) as u64 >= limits.max_count || grown > limits.max_bytes;
        if full && index > start {
            shards.push(start..index);
            start = index;
            bytes = shard_bytes.saturating_add(size);
        } else {
            bytes = grown;
        }
    }
    if start < sizes.len() {
        shards.push(start..sizes.len());
    }
    shards
}

/// Bytes of the sample in an uncompressed shard; exact for tar names of up to 100 bytes, at most this
/// otherwise.
fn stored_bytes(sample: &Planned, format: ShardFormat) -> u64 {
    let name_bytes = sample.candidate.key.len() + ".json".len();
    if format == ShardFormat::Arrow {
        let content_bytes = sample
            .image_bytes
            .saturating_add(sample.caption_bytes)
            .saturating_add(4 * sample.captions as u64)
            .saturating_add(name_bytes as u64);
        return (ARROW_ROW_BYTES + content_bytes / ARROW_HEADER_SHARE)
            .saturating_add(content_bytes);
    }
    let mut members = vec![sample.image_bytes];
    members.extend(sample.has_text_member().then_some(sample.caption_bytes));
    members.extend(sample.json_bytes);
    if name_bytes > TAR_NAME_BYTES {
        // Each member is preceded by one that holds its name.
        members.extend(vec![name_bytes as u64 + 1; members.len()]);
    }
    tar_sample_bytes(&members)
}

/// Fisher–Yates with ChaCha8: the same order for the same seed everywhere.
pub(super) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for last in (1..items.len()).rev() {
        // Multiply-shift; the bias is below 2^-32 for any list that fits in memory.
        let drawn = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, drawn as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts() {
        let check = |sizes: &[u64], max_count, max_bytes, expected: &[Range<usize>]| {
            let limits = Limits {
                max_count,
                max_bytes,
            };
            assert_eq!(cut_sizes(sizes, 10, limits), expected, "{sizes:?}");
        };
        check(&[], 3, 100, &[]);
        check(&[1; 7], 3, 100, &[0..3, 3..6, 6..7]);
        check(&[1; 6], 3, 100, &[0..3, 3..6]);
        check(&[45; 5], 9, 100, &[0..2, 2..4, 4..5]);
        check(&[500, 5, 500, 5, 5], 9, 100, &[0..1, 1..2, 2..3, 3..5]);
        check(&[u64::MAX, u64::MAX], 9, 100, &[0..1, 1..2]);
        check(&[1, 1], 1, 1, &[0..1, 1..2]);
    }

    #[test]
    fn shuffling_keeps_every_item_and_depends_on_the_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            shuffle(&mut items, seed);
            items
        };
        assert_eq!(shuffled(1), shuffled(1));
        assert_ne!(shuffled(1), shuffled(2));
        let mut sorted = shuffled(1);
        sorted.sort();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
