//! `qfdata profile`: how fast the loader delivers, and what limits it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clap::Args;
use qf_pipeline::augment::normalise_batch;
use qf_pipeline::decode::DecodeQuality;
use qf_pipeline::loader::{
    queue_table, stage_table, Counters, DataSet, Loader, LoaderReport, SettingNames,
};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::process::{cpu_time, peak_rss_bytes};
use qf_pipeline::text::{CaptionTokenizer, VocabularyOptions};
use qf_pipeline::trace::{Trace, TraceLimits, TraceSummary};
use qf_pipeline::vocabulary::vocabulary_from_shards;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;
use serde::Serialize;

use crate::data::{with_data, CaptionLinesArg, DataArgs};
use crate::interrupt::Interrupt;
use crate::order::parse_shuffle;
use qf_cli::output::{remark, say};

/// Captions that a vocabulary is trained from when none is given.
const VOCABULARY_CAPTIONS: u64 = 20_000;

/// Time before what is measured: threads start, queues fill.
const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct ProfileArgs {
    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    lines: CaptionLinesArg,

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

    /// Measure at 1, 2, 4, ... threads up to --threads; what is said of stages is of the last
    #[arg(long)]
    scaling: bool,

    /// Write what each thread and queue did in the measured seconds, for Perfetto (ui.perfetto.dev)
    /// and chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

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
    /// Megabytes a second that came from the shards, as they are stored.
    read_mb_per_s: f64,
    bottleneck: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scaling: Vec<ScalingRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<TraceWritten>,
    counters: Counters,
    /// Of the measured seconds.
    #[serde(flatten)]
    loader: LoaderReport,
}

/// The rate at one number of threads.
#[derive(Serialize)]
struct ScalingRow {
    threads: usize,
    images_per_s: f64,
    images_per_cpu_s: f64,
    /// Times the images per second of one thread.
    speed_up: f64,
    /// Speed-up per thread.
    efficiency: f64,
}

#[derive(Serialize)]
struct TraceWritten {
    path: PathBuf,
    events: u64,
    dropped: u64,
}

/// What the settings of the loader are called here.
const OPTIONS: SettingNames = SettingNames {
    threads: "--threads",
    io_threads: "--io-threads",
    decode_fast: "--decode-quality fast",
    cache: "--cache",
};

pub(crate) fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    if !(args.seconds > 0.0 && args.seconds <= 86_400.0) {
        bail!(
            "--seconds {}: must be above 0 and at most a day",
            args.seconds
        );
    }
    let sets = args.data.resolve()?;
    let config = LoaderConfig {
        max_bad_share: 1.0,
        threads: args.threads,
        io_threads: args.io_threads,
        batch_size: args.batch_size,
        image_size: args.image_size,
        epochs: 0,
        shuffle: args.shuffle,
        decode_quality: args.decode_quality.unwrap_or_default(),
        ..args.lines.over(args.data.config())
    };
    config.validate()?;
    // Caught from before there is a file to remove.
    let interrupt = Interrupt::install()?;
    // Before anything is measured: a file that cannot be written should not cost a minute.
    let trace = match &args.trace {
        Some(path) => Some(Trace::create(path, TraceLimits::default()).context("--trace")?),
        None => None,
    };
    let profile = profile(args, sets, config, interrupt.clone(), trace.as_ref());
    // Reads that it ended are no errors.
    let profile = profile.and_then(|profile| interrupt.check().map(|()| profile));
    let profile = profile.or_else(|error| interrupt.check().and(Err(error)));
    if let (Some(trace), Err(_)) = (&trace, &profile) {
        // Threads of the loader may still hold it.
        trace.discard();
    }
    let profile = profile?;
    if args.json {
        say(format_args!("{}", serde_json::to_string(&profile)?))
    } else {
        print(&profile)
    }
}

fn profile(
    args: &ProfileArgs,
    sets: Vec<DataSet>,
    config: LoaderConfig,
    interrupt: Interrupt,
    trace: Option<&Trace>,
) -> anyhow::Result<Profile> {
    let tokenizer = tokenizer(args, &sets, &config, &interrupt)?;
    let shards = sets.iter().map(|set| set.shards.len()).sum();
    let most = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let counts = match args.scaling {
        true => thread_counts(most),
        false => vec![most],
    };
    let bench = Bench {
        sets,
        config,
        tokenizer,
        interrupt,
        to_f32: args.f32,
        time: Duration::from_secs_f64(args.seconds),
        noted: AtomicBool::new(false),
    };
    let mut runs = Vec::new();
    for threads in counts {
        let trace = trace.filter(|_| threads == most);
        runs.push((threads, bench.measure(threads, trace)?));
    }
    let scaling = match args.scaling {
        true => scaling_rows(&runs),
        false => Vec::new(),
    };
    let Some((_, last)) = runs.pop() else {
        bail!("nothing was measured; this is a bug");
    };
    let trace = match trace {
        Some(trace) => Some(trace_written(trace.finish().context("--trace")?)),
        None => None,
    };
    let read = last.report.stages.iter().find(|stage| stage.name == "read");
    let read_bytes = read.map_or(0, |stage| stage.bytes);
    Ok(Profile {
        images_per_s: last.images_per_s(),
        images_per_cpu_s: last.images_per_cpu_s(),
        peak_rss_mb: peak_rss_bytes().unwrap_or(0) as f64 / 1e6,
        images: last.images,
        seconds: last.wall.as_secs_f64(),
        cpu_seconds: last.cpu.as_secs_f64(),
        batch_size: args.batch_size,
        image_size: args.image_size,
        shards,
        read_mb_per_s: read_bytes as f64 / 1e6 / last.wall.as_secs_f64(),
        bottleneck: last.report.bottleneck_as(&OPTIONS),
        scaling,
        trace,
        counters: last.counters,
        loader: last.report,
    })
}

/// What is measured again for each number of threads.
struct Bench {
    sets: Vec<DataSet>,
    config: LoaderConfig,
    tokenizer: Arc<CaptionTokenizer>,
    interrupt: Interrupt,
    to_f32: bool,
    time: Duration,
    /// Whether it was said what the data is taken from.
    noted: AtomicBool,
}

struct Measured {
    images: u64,
    wall: Duration,
    cpu: Duration,
    counters: Counters,
    report: LoaderReport,
}

impl Measured {
    fn images_per_s(&self) -> f64 {
        self.images as f64 / self.wall.as_secs_f64()
    }

    fn images_per_cpu_s(&self) -> f64 {
        self.images as f64 / self.cpu.as_secs_f64().max(1e-9)
    }
}

impl Bench {
    /// Runs a loader with this many threads, and records the measured time.
    fn measure(&self, threads: usize, trace: Option<&Trace>) -> anyhow::Result<Measured> {
        let config = LoaderConfig {
            threads,
            ..self.config.clone()
        };
        let record = |on: bool| {
            if let Some(trace) = trace {
                trace.set_recording(on);
            }
        };
        record(false);
        let builder = with_data(Loader::builder(config), self.sets.clone());
        let tokenizer = self.tokenizer.clone();
        let stop = self.interrupt.stop();
        let builder = builder.trace(trace.cloned()).stop(&stop);
        let mut loader = builder.batches(tokenizer)?;
        if !self.noted.swap(true, Ordering::Relaxed) {
            loader
                .notes()
                .for_each(|note| remark(format_args!("{note}")));
        }
        let mut floats = Vec::new();
        self.take(&mut loader, WARM_UP, &mut floats)?;
        let before = loader.report();
        let cpu_before = cpu_time();
        record(true);
        let (images, wall) = self.take(&mut loader, self.time, &mut floats)?;
        record(false);
        let cpu = match (cpu_before, cpu_time()) {
            (Some(before), Some(after)) => after.saturating_sub(before),
            _ => bail!("this system does not tell the CPU time of a process"),
        };
        Ok(Measured {
            images,
            wall,
            cpu,
            counters: loader.state().counters.clone(),
            report: loader.report().since(&before),
        })
    }

    /// Takes batches for so long; the images, and how long it was.
    fn take(
        &self,
        loader: &mut Loader,
        limit: Duration,
        floats: &mut Vec<f32>,
    ) -> anyhow::Result<(u64, Duration)> {
        let start = Instant::now();
        let mut images = 0;
        // The loader goes round and round: it ends only with an error.
        while let Some(batch) = loader.next_batch()? {
            self.interrupt.check()?;
            images += batch.batch_size as u64;
            if self.to_f32 {
                let pixels = batch.pixels();
                floats.resize(pixels.as_bytes().len(), 0.0);
                normalise_batch(pixels, floats);
                std::hint::black_box(&floats);
            }
            if start.elapsed() >= limit {
                break;
            }
        }
        Ok((images, start.elapsed()))
    }
}

/// 1, 2, 4, ... and `most`.
fn thread_counts(most: usize) -> Vec<usize> {
    let powers = (0..usize::BITS).map(|exponent| 1usize << exponent);
    let mut counts: Vec<usize> = powers.take_while(|threads| *threads < most).collect();
    counts.push(most);
    counts
}

fn scaling_rows(runs: &[(usize, Measured)]) -> Vec<ScalingRow> {
    let one = runs.first().map_or(0.0, |(_, run)| run.images_per_s());
    let row = |(threads, run): &(usize, Measured)| {
        let speed_up = run.images_per_s() / one.max(1e-9);
        ScalingRow {
            threads: *threads,
            images_per_s: run.images_per_s(),
            images_per_cpu_s: run.images_per_cpu_s(),
            speed_up,
            efficiency: speed_up / *threads as f64,
        }
    };
    runs.iter().map(row).collect()
}

fn trace_written(summary: TraceSummary) -> TraceWritten {
    TraceWritten {
        events: summary.events,
        dropped: summary.dropped(),
        path: summary.path,
    }
}

pub(crate) fn parse_quality(text: &str) -> Result<DecodeQuality, String> {
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
    interrupt: &Interrupt,
) -> anyhow::Result<Arc<CaptionTokenizer>> {
    if let Some(path) = &args.tokenizer {
        return Ok(Arc::new(CaptionTokenizer::from_file(path)?));
    }
    let options = VocabularyOptions::default();
    let shards: Vec<_> = sets.iter().flat_map(|set| set.shards.clone()).collect();
    let stop = interrupt.stop();
    let trained = vocabulary_from_shards(&shards, config, &options, VOCABULARY_CAPTIONS, &stop)?;
    Ok(Arc::new(CaptionTokenizer::from_vocab(trained.entries)?))
}

fn print(profile: &Profile) -> anyhow::Result<()> {
    say(format_args!(
        "{} of {} in {:.1} s: {:.1} images/s, {:.1} images per CPU second, peak {:.0} MB",
        counted(profile.images, "image", "images"),
        counted(profile.shards as u64, "shard", "shards"),
        profile.seconds,
        profile.images_per_s,
        profile.images_per_cpu_s,
        profile.peak_rss_mb
    ))?;
    let stages = stage_table(&profile.loader.stages);
    let queues = queue_table(&profile.loader.queues);
    say(format_args!("{stages}{}", queues.trim_end()))?;
    say(format_args!(
        "read from shards: {:.2} MB/s",
        profile.read_mb_per_s
    ))?;
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
    if !profile.scaling.is_empty() {
        say(format_args!(
            "{:>8} {:>10} {:>14} {:>10} {:>12}",
            "threads", "images/s", "images/CPU s", "speed-up", "efficiency"
        ))?;
    }
    for row in &profile.scaling {
        say(format_args!(
            "{:>8} {:>10.1} {:>14.1} {:>10.2} {:>10.0} %",
            row.threads,
            row.images_per_s,
            row.images_per_cpu_s,
            row.speed_up,
            100.0 * row.efficiency
        ))?;
    }
    if let Some(trace) = &profile.trace {
        let left_out = match trace.dropped {
            0 => String::new(),
            dropped => format!(", {dropped} left out"),
        };
        say(format_args!(
            "trace: {} ({}{left_out}); open it with https://ui.perfetto.dev",
            trace.path.display(),
            counted(trace.events, "event", "events")
        ))?;
    }
    say(format_args!("bottleneck: {}", profile.bottleneck))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_threads_end_with_the_last() {
        for (most, counts) in [
            (1, &[1][..]),
            (2, &[1, 2]),
            (3, &[1, 2, 3]),
            (8, &[1, 2, 4, 8]),
            (12, &[1, 2, 4, 8, 12]),
        ] {
            assert_eq!(thread_counts(most), counts);
        }
    }
}
