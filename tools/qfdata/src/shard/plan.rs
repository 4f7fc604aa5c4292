//! How large a shard becomes, and in which order samples come.

use qf_pipeline::write::{tar_sample_bytes, ShardFormat, ShardSample, TAR_END_BYTES};
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

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

/// Bytes of an uncompressed shard that belong to no sample.
pub(super) fn shard_bytes(format: ShardFormat) -> u64 {
    match format {
        ShardFormat::Arrow => ARROW_SHARD_BYTES,
        _ => TAR_END_BYTES,
    }
}

/// Bytes of the sample in an uncompressed shard; exact for tar names of up to 100 bytes, at most this
/// otherwise.
pub(super) fn stored_bytes(sample: &ShardSample, format: ShardFormat) -> u64 {
    let name_bytes = sample.key.len() + ".json".len();
    let image_bytes = sample.image.len() as u64;
    let texts: usize = sample.captions.iter().map(String::len).sum();
    let caption_bytes = (texts + sample.captions.len().saturating_sub(1)) as u64;
    if format == ShardFormat::Arrow {
        let content_bytes = image_bytes
            .saturating_add(caption_bytes)
            .saturating_add(4 * sample.captions.len() as u64)
            .saturating_add(name_bytes as u64);
        return (ARROW_ROW_BYTES + content_bytes / ARROW_HEADER_SHARE)
            .saturating_add(content_bytes);
    }
    let mut members = vec![image_bytes];
    members.extend(sample.text_member.then_some(caption_bytes));
    members.extend(sample.json.as_ref().map(|json| json.len() as u64));
    members.extend(
        sample
            .members
            .iter()
            .map(|(_, content)| content.len() as u64),
    );
    let longest = sample.members.iter().map(|(name, _)| name.len() + 1).max();
    let name_bytes = name_bytes.max(sample.key.len() + longest.unwrap_or(0));
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
