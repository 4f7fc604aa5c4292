//! `qfdata profile`: how fast the loader delivers, and what limits it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use qf_pipeline::augment::normalise_batch;
use qf_pipeline::decode::DecodeQuality;
use qf_pipeline::loader::{queue_table, stage_table, Counters, DataSet, Loader, LoaderReport};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::process::{cpu_time, peak_rss_bytes};
use qf_pipeline::text::{CaptionTokenizer, VocabularyOptions};
use qf_pipeline::vocabulary::vocabulary_from_shards;
use qf_pipeline::LoaderConfig;
use serde::Serialize;

use crate::data::{with_data, DataArgs};
use crate::interrupt::Interrupt;
use crate::order::parse_shuffle;
use crate::output::say;

/// Captions that a vocabulary is trained from when none is given.
const VOCABULARY_CAPTIONS: u64 = 20_000;

#[derive(Args)]
pub(crate) struct ProfileArgs {
    #[command(flatten)]
    data: DataArgs,

    /// Threads that decode, augment and tokenise [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,

    /// Threads that read and decompress [default: 2, or 8 where shards are remote]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    io_threads: usize,

    /// How samples are shuffled: none, shards, buffer or full
    #[arg(long, default_value = "buffer", value_parser = parse_shuffle)]
    shuffle: ShuffleMode,

    /// Seconds to measure, after a second of warm-up
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,

    /// Images per batch
    #[arg(long, default_value_t = 16)]
    batch_size: usize,

    /// Side of the square images, pixels
    #[arg(long, default_value_t = 224)]
    image_size: usize,

    /// vocab.txt or tokenizer.json [default: a vocabulary trained from the first captions]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// JPEG decoding: exact, balanced or fast [default: balanced]
    #[arg(long, value_name = "MODE", value_parser = parse_quality)]
    decode_quality: Option<DecodeQuality>,

    /// Also normalise each batch to f32, as training does it on the device
    #[arg(long)]
    f32: bool,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Profile {
    images_per_s: f64,
    images_per_cpu_s: f64,
    peak_rss_mb: f64,
    images: u64,
    seconds: f64,
    cpu_seconds: f64,
    batch_size: usize,
    image_size: usize,
    shards: usize,
    bottleneck: String,
    counters: Counters,
    #[serde(flatten)]
    loader: LoaderReport,
}

pub(crate) fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    if !(args.seconds > 0.0 && args.seconds <= 86_400.0) {
        bail!(
            "--seconds {}: must be above 0 and at most a day",
            args.seconds
        );
    }
    let sets = args.data.resolve()?;
    let config = LoaderConfig {
        threads: args.threads,
        io_threads: args.io_threads,
        batch_size: args.batch_size,
        image_size: args.image_size,
        epochs: 0,
        shuffle: args.shuffle,
        decode_quality: args.decode_quality.unwrap_or_default(),
        ..LoaderConfig::default()
    };
    config.validate()?;
    let tokenizer = tokenizer(args, &sets, &config)?;
    let num_shards = sets.iter().map(|set| set.shards.len()).sum();
    let interrupt = Interrupt::install()?;
    let mut loader = with_data(Loader::builder(config), sets).batches(tokenizer)?;
    let mut floats = Vec::new();
    let mut take = |limit: Duration| -> anyhow::Result<(u64, Duration)> {
        let start = Instant::now();
        let mut images = 0;
        // The loader goes round and round: it ends only with an error.
        while let Some(batch) = loader.next_batch()? {
            interrupt.check()?;
            images += batch.batch_size as u64;
            if args.f32 {
                floats.resize(batch.pixels().len(), 0.0);
                normalise_batch(batch.pixels(), batch.image_size, &mut floats);
                std::hint::black_box(&floats);
            }
            if start.elapsed() >= limit {
                break;
            }
        }
        Ok((images, start.elapsed()))
    };
    take(Duration::from_secs(1))?;
    let cpu_before = cpu_time();
    let (images, wall) = take(Duration::from_secs_f64(args.seconds))?;
    let cpu_secs = match (cpu_before, cpu_time()) {
        (Some(before), Some(after)) => after.saturating_sub(before).as_secs_f64(),
        _ => bail!("this system does not tell the CPU time of a process"),
    };
    let report = loader.report();
    let profile = Profile {
        images_per_s: images as f64 / wall.as_secs_f64(),
        images_per_cpu_s: images as f64 / cpu_secs.max(1e-9),
        peak_rss_mb: peak_rss_bytes().unwrap_or(0) as f64 / 1e6,
        images,
        seconds: wall.as_secs_f64(),
        cpu_seconds: cpu_secs,
        batch_size: args.batch_size,
        image_size: args.image_size,
        shards: num_shards,
        bottleneck: report.bottleneck(),
        counters: loader.state().counters.clone(),
        loader: report,
    };
    if args.json {
        say(format_args!("{}", serde_json::to_string(&profile)?))
    } else {
        print(&profile)
    }
}

fn parse_quality(text: &str) -> Result<DecodeQuality, String> {
    match text {
        "exact" => Ok(DecodeQuality::Exact),
        "balanced" => Ok(DecodeQuality::Balanced),
        "fast" => Ok(DecodeQuality::Fast),
        _ => Err("expected exact, balanced or fast".into()),
    }
}

fn tokenizer(
    args: &ProfileArgs,
    sets: &[DataSet],
    config: &LoaderConfig,
) -> anyhow::Result<Arc<CaptionTokenizer>> {
    if let Some(path) = &args.tokenizer {
        return Ok(Arc::new(CaptionTokenizer::from_file(path)?));
    }
    let options = VocabularyOptions::default();
    let shards: Vec<_> = sets.iter().flat_map(|set| set.shards.clone()).collect();
    let trained = vocabulary_from_shards(&shards, config, &options, VOCABULARY_CAPTIONS)?;
    Ok(Arc::new(CaptionTokenizer::from_vocab(trained.entries)?))
}

fn print(profile: &Profile) -> anyhow::Result<()> {
    say(format_args!(
        "{} images of {} shards in {:.1} s: {:.1} images/s, {:.1} images per CPU second, peak {:.0} MB",
        profile.images,
        profile.shards,
        profile.seconds,
        profile.images_per_s,
        profile.images_per_cpu_s,
        profile.peak_rss_mb
    ))?;
    // The loader's own meters include the warm-up.
    let stages = stage_table(&profile.loader.stages);
    let queues = queue_table(&profile.loader.queues);
    say(format_args!("{stages}{}", queues.trim_end()))?;
    let Counters {
        read,
        delivered,
        dropped_last,
        ..
    } = &profile.counters;
    say(format_args!(
        "samples: {read} read = {delivered} delivered + {} skipped + {dropped_last} left over",
        profile.counters.skipped_total()
    ))?;
    for (reason, count) in &profile.counters.skipped {
        say(format_args!("  skipped as {reason}: {count}"))?;
    }
    say(format_args!("bottleneck: {}", profile.bottleneck))
}
