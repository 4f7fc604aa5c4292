//! The data sets of a run, and where its shards are.

use anyhow::{bail, Context};
use qf_model::train::{RemoteConfig, TrainConfig};
use qf_pipeline::loader::{DataSet, LoaderState, World};
use qf_pipeline::remote::{CacheOptions, RemoteOptions};
use qf_pipeline::source::{resolve_shards_with, ShardLocation};

use crate::output::remark;

/// How remote shards are reached: credentials and endpoints are those of this process's environment.
fn remote(config: &RemoteConfig) -> RemoteOptions {
    let mut options = RemoteOptions::from_vars(std::env::vars_os());
    options.retries = config.retries;
    options.cache = config.cache.clone().map(|dir| CacheOptions {
        dir,
        max_bytes: config.cache_bytes,
    });
    options
}

/// The shards that specifications name.
pub(crate) fn resolve(
    specs: &[String],
    config: &RemoteConfig,
) -> anyhow::Result<Vec<ShardLocation>> {
    Ok(resolve_shards_with(specs, &remote(config))?)
}

/// The data sets to train on.
pub(crate) fn data_sets(config: &TrainConfig) -> anyhow::Result<Vec<DataSet>> {
    match (config.shards.is_empty(), config.mix.is_empty()) {
        (true, true) => {
            bail!("no shards; give --shards, e.g. --shards 'shards/photos-*.tar'");
        }
        (false, false) => bail!(
            "both shards and mix are set; leave one out (on the command line --shards and --mix, in \
             the file `shards` and `[[mix]]`)"
        ),
        (false, true) => Ok(vec![DataSet::only(resolve(&config.shards, &config.remote)?)]),
        (true, false) => {
            let sets = config.mix.iter().map(|set| {
                let shards = resolve(&set.shards, &config.remote);
                Ok(DataSet {
                    name: set.name.clone(),
                    weight: set.weight,
                    shards: shards.with_context(|| format!("data set `{}`", set.name))?,
                })
            });
            sets.collect()
        }
    }
}

/// All shards of all sets.
pub(crate) fn all_shards(sets: &[DataSet]) -> Vec<ShardLocation> {
    sets.iter().flat_map(|set| set.shards.clone()).collect()
}

/// Shares a saved run's global batch among the present ranks, unless the user chose a batch size.
pub(crate) fn share_batch(
    config: &mut TrainConfig,
    state: &LoaderState,
    world: World,
    is_chosen: bool,
) -> anyhow::Result<()> {
    let saved = usize::try_from(state.order.global_batch)?;
    let now = config.data.batch_size.saturating_mul(world.size() as usize);
    if saved == now || is_chosen {
        return Ok(()); // The loader compares both.
    }
    config.data.batch_size = world.share_of(saved).context("--resume")?;
    if world.rank() == 0 {
        remark(format_args!(
            "batch size: {} images on each of {} ranks, to go on with {saved} of all",
            config.data.batch_size,
            world.size()
        ));
    }
    Ok(())
}
