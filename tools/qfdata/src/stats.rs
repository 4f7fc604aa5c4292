//! `qfdata stats`: a data set in numbers.

mod spread;
mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use qf_cli::output::{remark, say, InPart};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::words::counted;
use serde::Serialize;

use crate::data::{settings, CaptionLinesArg, ListedShards};
use crate::inspect::codes;
use crate::inspect::doubles::Doubles;
use crate::inspect::{inspect, Event, InspectOptions};
use crate::interrupt::Interrupt;
use crate::{progress, size};
pub(crate) use spread::{Spread, Summary};
pub(crate) use tally::Tally;

/// Count samples, sizes, captions, formats, scripts and doubles.
///
/// Everything is read once; of images the headers are decoded. Quantiles of numbers above 128 are at most
/// 1.6 % low.
#[derive(Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    shards: ListedShards,

    #[command(flatten)]
    lines: CaptionLinesArg,

    /// vocab.txt or tokenizer.json, to count tokens [default: none; words are counted]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Token ids per caption, padding included: what is beyond is cut off
    #[arg(long, default_value_t = 32, value_name = "TOKENS")]
    text_len: usize,

    /// Threads [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report {
    shards: usize,
    unreadable_shards: usize,
    /// Shards by container and compression.
    shard_formats: BTreeMap<&'static str, u64>,
    shard_bytes: u64,
    samples: u64,
    bad_samples: u64,
    /// Samples with an error, by the code of the first.
    bad: BTreeMap<&'static str, u64>,
    image_bytes: u64,
    formats: BTreeMap<&'static str, u64>,
    traits: BTreeMap<&'static str, u64>,
    width: Option<Summary>,
    height: Option<Summary>,
    shorter_side: Option<Summary>,
    aspect: Option<Summary>,
    megapixels: Option<Summary>,
    bytes_per_image: Option<Summary>,
    captions: u64,
    captions_per_sample: Option<Summary>,
    words: Option<Summary>,
    characters: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    captions_cut: Option<u64>,
    scripts: BTreeMap<&'static str, u64>,
    doubles: DoubleCounts,
}

#[derive(Default, Serialize)]
struct DoubleCounts {
    /// Samples whose key another shard has.
    keys: u64,
    /// Samples whose image is there before, with other captions.
    images: u64,
    /// Samples that are there before.
    samples: u64,
}

pub(crate) fn run(args: &StatsArgs) -> anyhow::Result<()> {
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    let config = settings(
        args.lines.over(args.shards.config()),
        &shards,
        &interrupt.stop(),
    );
    let mut tally = Tally::open(&config, args.tokenizer.as_deref(), args.text_len)?;
    let options = InspectOptions {
        decode: false,
        ..InspectOptions::new(config, args.threads)
    };
    let mut doubles = Doubles::new(None)?;
    let mut shard_formats = BTreeMap::new();
    let mut errors = Vec::new();
    let bar = progress::bar("counting", shards.len());
    inspect(&shards, &options, &interrupt.stop(), &mut |event| {
        interrupt.check()?;
        match event {
            Event::Sample(facts) => {
                tally.add(&facts)?;
                doubles.add(&facts)?;
            }
            Event::ShardEnd(end) => {
                bar.inc(1);
                if let Some(format) = end.format {
                    *shard_formats.entry(format.extension()).or_default() += 1;
                }
                if !end.is_whole {
                    errors.extend(end.findings);
                }
            }
        }
        Ok(true)
    })?;
    interrupt.check()?;
    bar.finish_and_clear();
    let mut unreadable_shards = 0;
    for error in errors
        .iter()
        .filter(|found| found.severity == codes::Severity::Error)
    {
        unreadable_shards += 1;
        remark(format_args!(
            "{} {}: {}",
            error.code.id, error.shard, error.message
        ));
    }
    let shard_bytes = total_bytes(&shards, &interrupt);
    let report = report(
        &tally,
        (shards.len(), unreadable_shards),
        (shard_formats, shard_bytes),
        doubles,
    )?;
    match args.json {
        true => say(format_args!("{}", serde_json::to_string(&report)?))?,
        false => print(&report)?,
    }
    if tally.samples == 0 {
        bail!("the shards hold no sample");
    }
    match unreadable_shards {
        0 => Ok(()),
        count => {
            let shards = counted(count as u64, "shard", "shards");
            Err(InPart(format!("{shards} could not be read to the end")).into())
        }
    }
}

fn total_bytes(shards: &[ShardLocation], interrupt: &Interrupt) -> u64 {
    let stop = interrupt.stop();
    let sizes = shards
        .iter()
        .filter_map(|shard| shard.size(&stop).ok().flatten());
    sizes.sum()
}

fn report(
    tally: &Tally,
    (shards, unreadable_shards): (usize, usize),
    (shard_formats, shard_bytes): (BTreeMap<&'static str, u64>, u64),
    found: Doubles,
) -> anyhow::Result<Report> {
    let mut doubles = DoubleCounts::default();
    found.for_each(&mut |double| {
        let counter = match double.code.id {
            id if id == codes::DOUBLE_KEY.id => &mut doubles.keys,
            id if id == codes::DOUBLE_IMAGE.id => &mut doubles.images,
            _ => &mut doubles.samples,
        };
        *counter += 1;
        Ok(())
    })?;
    Ok(Report {
        shards,
        unreadable_shards,
        shard_formats,
        shard_bytes,
        samples: tally.samples,
        bad_samples: tally.bad_samples,
        bad: tally.bad.clone(),
        image_bytes: tally.total_image_bytes,
        formats: tally.formats.clone(),
        traits: tally.traits.clone(),
        width: tally.width.summary(1.0),
        height: tally.height.summary(1.0),
        shorter_side: tally.shorter_side.summary(1.0),
        aspect: tally.aspect.summary(1000.0),
        megapixels: tally.pixels.summary(1000.0),
        bytes_per_image: tally.image_bytes.summary(1.0),
        captions: tally.words.count(),
        captions_per_sample: tally.captions_per_sample.summary(1.0),
        words: tally.words.summary(1.0),
        characters: tally.characters.summary(1.0),
        tokens: tally.tokens.summary(1.0),
        captions_cut: (tally.tokens.count() > 0).then_some(tally.cut_captions),
        scripts: tally.scripts.clone(),
        doubles,
    })
}

fn print(report: &Report) -> anyhow::Result<()> {
    say(format_args!(
        "{}, {}; {}, {} of them bad",
        counted(report.shards as u64, "shard", "shards"),
        size::display(report.shard_bytes),
        counted(report.samples, "sample", "samples"),
        report.bad_samples
    ))?;
    let counts = |counts: &BTreeMap<&'static str, u64>| {
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let named: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        named.join(", ")
    };
    for (name, list) in [
        ("shards", &report.shard_formats),
        ("bad", &report.bad),
        ("images", &report.formats),
        ("of them", &report.traits),
        ("scripts", &report.scripts),
    ] {
        if !list.is_empty() {
            say(format_args!("{name:<20} {}", counts(list)))?;
        }
    }
    let DoubleCounts {
        keys,
        images,
        samples,
    } = &report.doubles;
    say(format_args!(
        "{:<20} keys {keys}, images with other captions {images}, whole samples {samples}",
        "doubles"
    ))?;
    say(format_args!(
        "{:<20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "min", "5 %", "25 %", "median", "75 %", "95 %", "max", "mean"
    ))?;
    for (name, summary) in [
        ("width", &report.width),
        ("height", &report.height),
        ("shorter side", &report.shorter_side),
        ("width / height", &report.aspect),
        ("megapixels", &report.megapixels),
        ("bytes per image", &report.bytes_per_image),
        ("captions per sample", &report.captions_per_sample),
        ("words per caption", &report.words),
        ("characters", &report.characters),
        ("tokens per caption", &report.tokens),
    ] {
        if let Some(summary) = summary {
            print_summary(name, summary)?;
        }
    }
    if let Some(cut) = report.captions_cut {
        say(format_args!(
            "{:<20} {cut} of {} captions",
            "cut at --text-len", report.captions
        ))?;
    }
    Ok(())
}

fn print_summary(name: &str, summary: &Summary) -> anyhow::Result<()> {
    let Summary {
        min,
        p5,
        p25,
        median,
        p75,
        p95,
        max,
        mean,
    } = *summary;
    let number = |value: f64| match value {
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    };
    let cells: Vec<String> = [min, p5, p25, median, p75, p95, max, mean]
        .iter()
        .map(|value| format!("{:>9}", number(*value)))
        .collect();
    say(format_args!("{name:<20} {}", cells.join(" ")))
}
