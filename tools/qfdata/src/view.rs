//! `qfdata view`: a data set to look at, as a page or on localhost.

mod charts;
mod crops;
mod fetch;
mod near;
mod page;
mod picture;
mod seen;
mod serve;
mod store;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{bail, Context};
use clap::Args;
use qf_cli::output::{say, InPart};
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::augment::SampleRng;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;

use crate::data::{settings, CaptionLinesArg, ListedShards};
use crate::inspect::codes;
use crate::inspect::doubles::Doubles;
use crate::inspect::{inspect, Event, InspectOptions};
use crate::interrupt::Interrupt;
use crate::progress;
use crate::stats::Tally;
use picture::SHEET_SIDE;
use seen::Seen;

/// Look at a data set: contact sheet, histograms, problems, crops, near doubles.
///
/// The page is one file that needs no network and runs no script. All samples are read for its numbers; those
/// on the sheet are drawn at random. --serve shows all samples page by page, with search and filters.
#[derive(Args)]
pub(crate) struct ViewArgs {
    #[command(flatten)]
    shards: ListedShards,

    #[command(flatten)]
    lines: CaptionLinesArg,

    /// Page to write
    #[arg(long, default_value = "view.html", value_name = "FILE")]
    out: PathBuf,

    /// Serve pages at this address of this machine instead of writing one
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:8400")]
    serve: Option<SocketAddr>,

    /// Samples on the contact sheet
    #[arg(long, default_value_t = 48, value_name = "SAMPLES", value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,

    /// Samples of which eight training crops are shown
    #[arg(long, default_value_t = 6, value_name = "SAMPLES")]
    crops: usize,

    /// Near doubles: perceptual hashes (64 bits) that differ in at most this many
    #[arg(long, default_value_t = 6, value_name = "BITS", value_parser = clap::value_parser!(u32).range(0..=16))]
    near: u32,

    /// Seed of the choice of samples, and of crops as in a run
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// vocab.txt or tokenizer.json [default: none; token counts are not shown]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Threads that decode [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print no line about the page
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &ViewArgs) -> anyhow::Result<()> {
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    let config = settings(
        args.lines.over(args.shards.config()),
        &shards,
        &interrupt.stop(),
    );
    let config = LoaderConfig {
        seed: args.seed,
        ..config
    };
    let tally = Tally::open(&config, args.tokenizer.as_deref(), config.text_len)?;
    if let Some(address) = args.serve {
        return serve::run(address, shards, (config, args.threads), tally, &interrupt);
    }
    if args.out.is_dir() {
        bail!("--out {} is a folder: name a file", args.out.display());
    }
    let mut seen = look(args, &shards, &config, tally, &interrupt)?;
    let crops = crops::draw(&shards, &seen.sheet, args.crops, &config, &interrupt)?;
    let near = near::groups(&shards, std::mem::take(&mut seen.near), &config, &interrupt)?;
    let html = page::html(&mut seen, &crops, &near, &config)?;
    let mut file = AtomicFile::create(&args.out)?;
    file.write_all(html.as_bytes())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    file.commit()?;
    if !args.quiet {
        let samples = counted(seen.tally.samples, "sample", "samples");
        let shards = counted(seen.shards as u64, "shard", "shards");
        say(format_args!(
            "{}: {samples} of {shards}",
            args.out.display()
        ))?;
    }
    match seen.unreadable_shards {
        0 => Ok(()),
        count => {
            let shards = counted(count, "shard", "shards");
            Err(InPart(format!("{shards} could not be read to the end")).into())
        }
    }
}

/// Reads everything, and keeps what the page shows.
fn look(
    args: &ViewArgs,
    shards: &[ShardLocation],
    config: &LoaderConfig,
    tally: Tally,
    interrupt: &Interrupt,
) -> anyhow::Result<Seen> {
    let options = InspectOptions {
        keep_side: SHEET_SIDE,
        perceptual: true,
        ..InspectOptions::new(config.clone(), args.threads)
    };
    let mut seen = Seen {
        shards: shards.len(),
        unreadable_shards: 0,
        tally,
        findings: BTreeMap::new(),
        sheet: Vec::new(),
        near: Vec::new(),
    };
    let mut doubles = Doubles::new(Some(args.near))?;
    // Every sample has the same chance of being on the sheet (reservoir sampling).
    let mut rng = SampleRng::new(args.seed, 0, 0, 0);
    let bar = progress::bar("looking", shards.len());
    inspect(shards, &options, &interrupt.stop(), &mut |event| {
        interrupt.check()?;
        let mut findings = Vec::new();
        match event {
            Event::Sample(facts) => {
                seen.tally.add(&facts)?;
                doubles.add(&facts)?;
                findings.extend(facts.findings.iter().map(|finding| finding.code.id));
                let count = usize::from(args.count);
                let place = match seen.sheet.len() < count {
                    true => seen.sheet.len(),
                    false => rng.below(seen.tally.samples) as usize,
                };
                match seen.sheet.get_mut(place) {
                    Some(old) => *old = *facts,
                    None if place < count => seen.sheet.push(*facts),
                    None => {}
                }
            }
            Event::ShardEnd(end) => {
                bar.inc(1);
                seen.unreadable_shards += u64::from(!end.is_whole);
                findings.extend(end.findings.iter().map(|finding| finding.code.id));
            }
        }
        for id in findings {
            *seen.findings.entry(id).or_default() += 1;
        }
        Ok(true)
    })?;
    interrupt.check()?;
    bar.finish_and_clear();
    if seen.tally.samples == 0 {
        bail!("the shards hold no sample; `qfdata verify` says why");
    }
    seen.sheet
        .sort_by_key(|facts| (facts.id.shard_index, facts.id.sample_index));
    doubles.for_each(&mut |double| {
        *seen.findings.entry(double.code.id).or_default() += 1;
        if double.code == &codes::NEAR_DOUBLE && seen.near.len() < near::MAX_PAIRS {
            seen.near.push(double);
        }
        Ok(())
    })?;
    Ok(seen)
}
