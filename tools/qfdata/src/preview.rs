//! `qfdata preview`: a batch as the model sees it, to look at.

mod args;
mod describe;
mod files;
mod grid;
mod npy;
mod outputs;
mod page;
mod request;
mod shards;
mod shown;
mod text;

use std::path::Path;

use qf_pipeline::config::Processing;
use serde::Serialize;

use crate::interrupt::Interrupt;
pub(crate) use args::PreviewArgs;
use describe::{passed_over, title};
use grid::{Grid, Layout};
use outputs::{check_outputs, write_outputs};
use qf_cli::output::say;
use request::{request, Request};
use shown::{Sample, Shown, Skipped};

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    npy: Option<&'a Path>,
    images: usize,
    image_size: usize,
    processing: Processing,
    seed: u64,
    epoch: u64,
    batch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<&'a Path>,
    grid: &'a Layout,
    samples: &'a [Sample],
    skipped: &'a [Skipped],
    /// Further ones, too many to be named.
    unnamed: u64,
}

pub(crate) fn run(args: &PreviewArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let paths = args.data.local_files()?;
    check_outputs(args, &paths)?;
    let files = files::image_files(&paths)?;
    let request = request(args, files.as_ref().map(Vec::len))?;
    let shown = match files {
        Some(files) => files::show(&request, &files, &interrupt)?,
        None => shards::show(&request, args.data.resolve()?, &interrupt)?,
    };
    let title = title(&request, &shown);
    let grid = grid::draw(&shown, &title, args.columns)?;
    write_outputs(args, &request, &shown, (&title, &grid))?;
    if args.json {
        let report = report(args, &request, &shown, &grid);
        return say(format_args!("{}", serde_json::to_string(&report)?));
    }
    print(args, &request, &shown, &title)
}

fn report<'a>(
    args: &'a PreviewArgs,
    request: &'a Request,
    shown: &'a Shown,
    grid: &'a Grid,
) -> Report<'a> {
    Report {
        out: &args.out,
        html: args.html.as_deref(),
        npy: args.npy.as_deref(),
        images: shown.samples.len(),
        image_size: shown.image_size(),
        processing: request.config.processing,
        seed: request.config.seed,
        epoch: request.epoch,
        batch: request.batch,
        tokenizer: request.tokenizer.as_deref(),
        grid: &grid.layout,
        samples: &shown.samples,
        skipped: &shown.skipped,
        unnamed: shown.unnamed,
    }
}

fn print(args: &PreviewArgs, request: &Request, shown: &Shown, title: &str) -> anyhow::Result<()> {
    say(format_args!("{}: {title}", args.out.display()))?;
    for path in [&args.html, &args.npy].into_iter().flatten() {
        say(format_args!("{}", path.display()))?;
    }
    if request.tokenizer.is_none() {
        say(format_args!("token ids are shown with --tokenizer FILE"))?;
    }
    if shown.skipped_count() > 0 {
        say(format_args!("{}:", passed_over(shown.skipped_count())))?;
    }
    for bad in &shown.skipped {
        say(format_args!("  {bad}"))?;
    }
    match shown.unnamed {
        0 => Ok(()),
        more => say(format_args!("  and {more} more")),
    }
}
