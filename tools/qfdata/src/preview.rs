//! `qfdata preview`: a batch as the model sees it, to look at.

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

use std::path::{Path, PathBuf};

use clap::Args;
use qf_pipeline::config::Processing;
use qf_pipeline::decode::DecodeQuality;
use qf_pipeline::order::ShuffleMode;
use serde::Serialize;

use crate::data::{CaptionLinesArg, InputArgs};
use crate::interrupt::Interrupt;
use crate::order::parse_shuffle;
use crate::profile::parse_quality;
use describe::{passed_over, title};
use grid::{Grid, Layout};
use outputs::{check_outputs, write_outputs};
use qf_cli::output::say;
use request::{request, Request};
use shown::{Sample, Shown, Skipped};

/// Show a batch as the model sees it: a picture, a page, an array.
///
/// The pixels, captions and token ids are those of the loader's own batch, after the training transform
/// or, with --eval, the evaluation transform. Image files, and folders of them, take the same path, with
/// the captions of a .txt or .json beside each. Files that exist are replaced.
#[derive(Args)]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    data: InputArgs,

    #[command(flatten)]
    lines: CaptionLinesArg,

    /// PNG to write: the images in a grid, with key, caption and tokens
    #[arg(long, default_value = "preview.png", value_name = "FILE")]
    out: PathBuf,

    /// Write a page too: one file, to be opened in any browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write the pixels too, as NumPy array [B, 3, S, S] of u8, RGB, before normalisation
    #[arg(long, value_name = "FILE")]
    npy: Option<PathBuf>,

    /// Evaluation transform (the whole image, resized), all captions, stored order
    #[arg(long)]
    eval: bool,

    /// Take the `data` settings of a run: its config.toml, or a file of configs/; a tokenizer beside it is used
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// vocab.txt or tokenizer.json [default: none; token ids are not shown]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Images per batch [default: 16; of image files all, up to 64]
    #[arg(long, value_name = "IMAGES")]
    batch_size: Option<usize>,

    /// Which batch of the epoch, from 0; those before it are read, too
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    batch: u64,

    /// Which epoch, from 0
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..1 << 32))]
    epoch: u64,

    /// Seed of order, crops and captions [default: 42]
    #[arg(long)]
    seed: Option<u64>,

    /// Side of the square images, pixels [default: 224]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,

    /// Token ids per caption, padding included [default: 32]
    #[arg(long, value_name = "TOKENS")]
    text_len: Option<usize>,

    /// How samples are shuffled: none, shards, buffer or full [default: buffer; none with --eval]
    #[arg(long, value_parser = parse_shuffle)]
    shuffle: Option<ShuffleMode>,

    /// JPEG decoding in training: exact, balanced or fast [default: balanced]
    #[arg(long, value_name = "MODE", value_parser = parse_quality)]
    decode_quality: Option<DecodeQuality>,

    /// Images side by side in the PNG [default: as many as make it about square]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    columns: Option<u32>,

    /// Print one JSON object: samples, captions, tokens, crops, where tiles are
    #[arg(long)]
    json: bool,
}

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
