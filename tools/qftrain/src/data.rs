//! The data sets of a run, and where its shards are.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail, Context};
use qf_model::train::{RemoteConfig, TrainConfig};
use qf_pipeline::loader::{DataSet, Loader, LoaderState, World};
use qf_pipeline::remote::{CacheOptions, RemoteOptions};
use qf_pipeline::source::{resolve_shards_with, ShardLocation, ShardSpec};
use qf_pipeline::PipelineError;

use qf_cli::output::remark;

/// Says what a loader that began takes captions and images from.
pub(crate) fn note(loader: &Loader) {
    loader
        .notes()
        .for_each(|note| remark(format_args!("{note}")));
}

/// How remote shards are reached: credentials and endpoints are those of this process's environment.
fn remote(config: &RemoteConfig) -> RemoteOptions {
    let mut options = RemoteOptions::from_vars(std::env::vars_os());
    options.outage = Duration::from_secs(config.outage_secs);
    options.cache = config.cache.clone().map(|dir| CacheOptions {
        dir,
        max_bytes: config.cache_bytes,
    });
    options
}

/// The shards that specifications name.
pub(crate) fn resolve(
    specs: &[ShardSpec],
    config: &RemoteConfig,
) -> anyhow::Result<Vec<ShardLocation>> {
    let specs: Vec<&str> = specs.iter().map(ShardSpec::expose).collect();
    resolve_shards_with(&specs, &remote(config)).map_err(|error| match &error {
        PipelineError::NoShards { .. } if specs.iter().all(|spec| !spec.contains("://")) => {
            anyhow!(
                "{error}; `qfdata shard photos/ --out shards/photos` packs a folder of photographs"
            )
        }
        _ => error.into(),
    })
}

/// The data sets to train on.
pub(crate) fn data_sets(config: &TrainConfig) -> anyhow::Result<Vec<DataSet>> {
    match (config.shards.is_empty(), config.mix.is_empty()) {
        (true, true) => bail!(
            "no shards; give --shards, e.g. --shards 'shards/photos-*.tar', or a folder of photographs: \
             --shards photos/"
        ),
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

/// Shards that are trained on and validated on too, by their names in `held_out`.
fn shared_shards<'a>(training: &[ShardLocation], held_out: &'a [ShardLocation]) -> Vec<&'a str> {
    // A file by itself, whatever path or link leads to it.
    let identity = |shard: &ShardLocation| match shard.path() {
        Some(path) => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        None => PathBuf::from(&*shard.name),
    };
    let training: HashSet<PathBuf> = training.iter().map(identity).collect();
    let held_out = held_out.iter();
    let shared = held_out.filter(|shard| training.contains(&identity(shard)));
    shared.map(|shard| &*shard.name).collect()
}

/// Warns where validation sees shards that are trained on.
pub(crate) fn warn_of_shared_shards(training: &[ShardLocation], held_out: &[ShardLocation]) {
    /// Names in the message, at most.
    const SHOWN: usize = 3;
    let shared = shared_shards(training, held_out);
    if shared.is_empty() {
        return;
    }
    let more = match shared.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", {more} more"),
    };
    log::warn!(
        "{} of {} validation shards are trained on too ({}{more}): their figures say nothing of unseen \
         images; hold some shards out",
        shared.len(),
        held_out.len(),
        shared[..shared.len().min(SHOWN)].join(", ")
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_itself_by_any_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a.tar", "b.tar", "c.tar"] {
            std::fs::write(at(name), b"").unwrap();
        }
        std::os::unix::fs::symlink(at("b.tar"), at("held.tar")).unwrap();
        std::fs::create_dir(at("x")).unwrap();
        let shards = |names: &[&str]| -> Vec<_> {
            let paths = names.iter().map(|name| at(name));
            paths.map(ShardLocation::local).collect()
        };
        let training = shards(&["a.tar", "b.tar", "gone.tar"]);
        let check = |held_out: &[&str], expected: &[&str]| {
            let held_out = shards(held_out);
            let expected: Vec<_> = expected
                .iter()
                .map(|name| at(name).display().to_string())
                .collect();
            assert_eq!(shared_shards(&training, &held_out), expected);
        };
        check(&["c.tar"], &[]);
        check(&["c.tar", "a.tar"], &["a.tar"]);
        check(
            &["held.tar", "x/../a.tar", "gone.tar"],
            &["held.tar", "x/../a.tar", "gone.tar"],
        );
    }
}
