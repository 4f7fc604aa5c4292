//! Which shards a command works on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use qf_pipeline::captions::CaptionLines;
use qf_pipeline::loader::{DataSet, LoaderBuilder};
use qf_pipeline::remote::{CacheOptions, RemoteOptions};
use qf_pipeline::source::{resolve_shards_with, ShardLocation};
use qf_pipeline::stop::Stop;
use qf_pipeline::survey::Survey;
use qf_pipeline::LoaderConfig;

use crate::size;

/// Shards of one data set.
#[derive(Args)]
pub(crate) struct ShardsArg {
    /// Shards: files, globs, {000..012} ranges, s3://, gs://, az://, https://; several allowed
    #[arg(long, num_args = 1.., required = true, value_name = "SHARDS")]
    shards: Vec<String>,

    #[command(flatten)]
    reading: ReadArgs,

    #[command(flatten)]
    remote: RemoteArgs,
}

impl ShardsArg {
    /// Default settings of a loader, with what was said of shards.
    pub(crate) fn config(&self) -> LoaderConfig {
        self.reading.config()
    }

    pub(crate) fn resolve(&self) -> anyhow::Result<Vec<ShardLocation>> {
        Ok(resolve_shards_with(&self.shards, &self.remote.options()?)?)
    }
}

/// Shards to look at, with or without `--shards`.
#[derive(Args)]
pub(crate) struct ListedShards {
    /// Shards: files, globs, {000..012} ranges, s3://, gs://, az://, https://; several allowed
    #[arg(
        required_unless_present = "shards",
        conflicts_with = "shards",
        value_name = "SHARDS"
    )]
    listed: Vec<String>,

    /// Shards, as in the other commands
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    shards: Vec<String>,

    #[command(flatten)]
    reading: ReadArgs,

    #[command(flatten)]
    remote: RemoteArgs,
}

impl ListedShards {
    /// Default settings of a loader, with what was said of shards.
    pub(crate) fn config(&self) -> LoaderConfig {
        self.reading.config()
    }

    pub(crate) fn resolve(&self) -> anyhow::Result<Vec<ShardLocation>> {
        let shards = match self.listed.is_empty() {
            true => &self.shards,
            false => &self.listed,
        };
        Ok(resolve_shards_with(shards, &self.remote.options()?)?)
    }
}

/// One data set, or a mixture.
#[derive(Args)]
pub(crate) struct DataArgs {
    /// Shards: files, globs, {000..012} ranges, s3://, gs://, az://, https://; several allowed
    #[arg(
        long,
        num_args = 1..,
        required_unless_present = "mix",
        conflicts_with = "mix",
        value_name = "SHARDS"
    )]
    shards: Vec<String>,

    /// A data set of a mixture, e.g. coco:0.7='coco-*.tar'; give one for each
    #[arg(long, value_name = "NAME:WEIGHT=SHARDS")]
    mix: Vec<String>,

    #[command(flatten)]
    reading: ReadArgs,

    #[command(flatten)]
    remote: RemoteArgs,
}

impl DataArgs {
    /// Default settings of a loader, with what was said of shards.
    pub(crate) fn config(&self) -> LoaderConfig {
        self.reading.config()
    }

    pub(crate) fn is_mixture(&self) -> bool {
        !self.mix.is_empty()
    }

    pub(crate) fn resolve(&self) -> anyhow::Result<Vec<DataSet>> {
        data_sets(&self.shards, &self.mix, &self.remote.options()?)
    }
}

/// How the samples of shards are read.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReadArgs {
    /// Column of Arrow shards, or extension in tar shards, with the images [default: found by name]
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,

    /// Column of Arrow shards, extension in tar shards, or field of their .json, with the captions
    /// [default: found by name: txt, caption, text, ...]
    #[arg(long, value_name = "NAME")]
    caption_column: Option<String>,

    /// Largest window of a zstd frame, as a power of two of bytes; as `zstd --long=LOG` [default: 27]
    #[arg(long, value_name = "LOG", value_parser = clap::value_parser!(u32).range(10..=31))]
    max_zstd_window_log: Option<u32>,
}

impl ReadArgs {
    /// Default settings of a loader, with these.
    pub(crate) fn config(&self) -> LoaderConfig {
        self.over(LoaderConfig::default())
    }

    /// These settings, with what was given here.
    pub(crate) fn over(&self, config: LoaderConfig) -> LoaderConfig {
        let ReadArgs {
            image_column,
            caption_column,
            max_zstd_window_log,
        } = self.clone();
        LoaderConfig {
            image_column: image_column.or(config.image_column),
            caption_column: caption_column.or(config.caption_column),
            max_zstd_window_log: max_zstd_window_log.unwrap_or(config.max_zstd_window_log),
            ..config
        }
    }
}

/// How texts become captions, for commands that show or use them.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CaptionLinesArg {
    /// What a .txt holds: each (line is a caption) or one [default: by the first samples]
    #[arg(long, value_name = "each|one")]
    caption_lines: Option<CaptionLines>,
}

impl CaptionLinesArg {
    /// These settings, with what was given here.
    pub(crate) fn over(self, config: LoaderConfig) -> LoaderConfig {
        LoaderConfig {
            caption_lines: self.caption_lines.or(config.caption_lines),
            ..config
        }
    }
}

/// One data set, a mixture, or image files.
#[derive(Args)]
pub(crate) struct InputArgs {
    /// Shards (files, globs, {000..012} ranges, URLs), or image files and folders of them
    #[arg(
        required_unless_present_any = ["shards", "mix"],
        conflicts_with_all = ["shards", "mix"],
        value_name = "SHARDS|IMAGES"
    )]
    inputs: Vec<String>,

    /// Shards, as in the other commands
    #[arg(long, num_args = 1.., conflicts_with = "mix", value_name = "SHARDS")]
    shards: Vec<String>,

    /// A data set of a mixture, e.g. coco:0.7='coco-*.tar'; give one for each
    #[arg(long, value_name = "NAME:WEIGHT=SHARDS")]
    mix: Vec<String>,

    #[command(flatten)]
    reading: ReadArgs,

    #[command(flatten)]
    remote: RemoteArgs,
}

impl InputArgs {
    /// These settings, with what was said of shards.
    pub(crate) fn over(&self, config: LoaderConfig) -> LoaderConfig {
        self.reading.over(config)
    }

    pub(crate) fn is_mixture(&self) -> bool {
        !self.mix.is_empty()
    }

    /// Files and folders of this machine among the arguments without an option: they may be images.
    pub(crate) fn local_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for input in &self.inputs {
            if Path::new(input).is_dir() {
                paths.push(PathBuf::from(input));
            } else if !input.contains("://") {
                let found = resolve_shards_with(&[input], &RemoteOptions::default())?;
                paths.extend(
                    found
                        .iter()
                        .filter_map(ShardLocation::path)
                        .map(Path::to_owned),
                );
            }
        }
        Ok(paths)
    }

    /// The data sets, where the arguments are no images.
    pub(crate) fn resolve(&self) -> anyhow::Result<Vec<DataSet>> {
        let shards = match self.inputs.is_empty() {
            true => &self.shards,
            false => &self.inputs,
        };
        data_sets(shards, &self.mix, &self.remote.options()?)
    }
}

fn data_sets(
    shards: &[String],
    mix: &[String],
    options: &RemoteOptions,
) -> anyhow::Result<Vec<DataSet>> {
    if mix.is_empty() {
        let shards = resolve_shards_with(shards, options)?;
        return Ok(vec![DataSet::only(shards)]);
    }
    let sets = mix.iter().map(|set| DataSet::from_spec(set, options));
    Ok(sets.collect::<Result<_, _>>()?)
}

/// How the captions of the data set are read: as by a run, the first samples decide.
pub(crate) fn settings(
    config: LoaderConfig,
    shards: &[ShardLocation],
    stop: &Stop,
) -> LoaderConfig {
    let lines = config
        .caption_lines
        .unwrap_or_else(|| Survey::of(shards, &config, stop).caption_lines());
    LoaderConfig {
        caption_lines: Some(lines),
        ..config
    }
}

/// Gives a loader its data sets.
pub(crate) fn with_data(builder: LoaderBuilder, sets: Vec<DataSet>) -> LoaderBuilder {
    sets.into_iter().fold(builder, LoaderBuilder::data_set)
}

#[derive(Args)]
struct RemoteArgs {
    /// Keep remote shards in this folder
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,

    /// Greatest size of that folder: 500GB, 1TiB
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "100GB",
        value_parser = size::parse,
        requires = "cache"
    )]
    cache_size: u64,

    /// Seconds that a server may go without answering
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=604_800)
    )]
    outage_secs: u64,
}

impl RemoteArgs {
    /// Credentials and endpoints are those of this process's environment.
    fn options(&self) -> anyhow::Result<RemoteOptions> {
        let mut options = RemoteOptions::from_vars(std::env::vars_os());
        if self.cache.is_some() && self.cache_size == 0 {
            bail!("--cache-size 0 holds no shard");
        }
        options.outage = Duration::from_secs(self.outage_secs);
        options.cache = self.cache.clone().map(|dir| CacheOptions {
            dir,
            max_bytes: self.cache_size,
        });
        Ok(options)
    }
}
