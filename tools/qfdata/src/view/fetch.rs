//! Single samples, read once more.

use std::collections::BTreeMap;

use qf_pipeline::index::{read_samples, ShardIndex};
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::{EncodedSample, LoaderConfig, ShardError};

/// Position of a shard in the list, and of a sample in the shard.
pub(super) type Place = (u32, u32);

/// Reads some samples, of indexed shards by their index, of others from the beginning of the shard. What cannot
/// be read any more is missing in the result.
pub(super) fn samples(
    shards: &[ShardLocation],
    places: &[Place],
    config: &LoaderConfig,
    stop: &Stop,
) -> BTreeMap<Place, EncodedSample> {
    let mut by_shard: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (shard, sample) in places {
        by_shard.entry(*shard).or_default().push(*sample);
    }
    let mut found = BTreeMap::new();
    for (index, mut wanted) in by_shard {
        wanted.sort_unstable();
        wanted.dedup();
        let Some(shard) = shards.get(index as usize) else {
            continue;
        };
        let mut keep = |sample: EncodedSample| {
            found.insert((index, sample.id.sample_index), sample);
        };
        if let Err(error) = of_shard(shard, index, &wanted, config, stop, &mut keep) {
            log::info!("{error}");
        }
    }
    found
}

fn of_shard(
    shard: &ShardLocation,
    index: u32,
    wanted: &[u32],
    config: &LoaderConfig,
    stop: &Stop,
    keep: &mut dyn FnMut(EncodedSample),
) -> Result<(), ShardError> {
    let options = ReadOptions {
        needs_captions: false,
        ..config.read_options()
    };
    let sidecar = ShardIndex::open(shard, stop).ok().flatten();
    if let Some(sidecar) = sidecar.filter(|sidecar| sidecar.access().is_some()) {
        let mut visit = |_, sample: Result<EncodedSample, _>| {
            sample.into_iter().for_each(&mut *keep);
            true
        };
        return read_samples(
            shard,
            index,
            &sidecar,
            wanted,
            &options,
            &NoObserver,
            stop,
            &mut visit,
        );
    }
    let last = wanted.last().copied().unwrap_or(0);
    let mut next = 0;
    let mut visit = |sample: Result<EncodedSample, _>| {
        let position = next;
        next += 1;
        if wanted.binary_search(&position).is_ok() {
            sample.into_iter().for_each(&mut *keep);
        }
        position < last
    };
    read_shard(shard, index, &options, &NoObserver, stop, &mut visit).map(|_| ())
}
