//! `qfdata vocab`: a WordPiece vocabulary from the captions of shards.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{bail, Context};
use clap::Args;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::VocabularyOptions;
use qf_pipeline::vocabulary::vocabulary_from_shards;
use qf_pipeline::words::counted;

use crate::data::ShardsArg;
use qf_cli::output::say;

#[derive(Args)]
pub(crate) struct VocabArgs {
    #[command(flatten)]
    shards: ShardsArg,

    /// File to write: one entry a line, the special entries first
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Entries at most
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    size: u32,

    /// Word pieces seen together less often than this are not joined
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    min_frequency: u64,

    /// Captions to train from, at most; the first ones
    #[arg(long, default_value_t = 5_000_000)]
    max_captions: u64,

    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &VocabArgs) -> anyhow::Result<()> {
    if args.out.exists() && !args.overwrite {
        bail!("{} exists; --overwrite replaces it", args.out.display());
    }
    let shards = args.shards.resolve()?;
    let config = args.shards.config();
    let options = VocabularyOptions {
        vocab_size: args.size as usize,
        min_frequency: args.min_frequency,
    };
    let trained = vocabulary_from_shards(
        &shards,
        &config,
        &options,
        args.max_captions,
        &Stop::default(),
    )?;
    for error in &trained.bad_shards {
        log::warn!("{error}; its first captions are used");
    }
    let mut file = AtomicFile::create(&args.out)?;
    for entry in &trained.entries {
        writeln!(file, "{entry}")
            .with_context(|| format!("cannot write {}", args.out.display()))?;
    }
    file.commit()?;
    say(format_args!(
        "{}: {} from {} of {} ({} without a usable caption)",
        args.out.display(),
        counted(trained.entries.len() as u64, "entry", "entries"),
        counted(trained.captions, "caption", "captions"),
        counted(shards.len() as u64, "shard", "shards"),
        counted(trained.skipped_samples, "sample", "samples")
    ))?;
    if !trained.bad_shards.is_empty() {
        bail!(
            "{} could not be read to the end",
            counted(trained.bad_shards.len() as u64, "shard", "shards")
        );
    }
    Ok(())
}
