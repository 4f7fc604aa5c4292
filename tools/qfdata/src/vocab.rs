//! `qfdata vocab`: a WordPiece vocabulary from the captions of shards.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{bail, Context};
use clap::Args;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::text::VocabularyOptions;
use qf_pipeline::vocabulary::vocabulary_from_shards;
use qf_pipeline::LoaderConfig;

use crate::data::ShardsArg;
use crate::output::say;

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

    /// Arrow column that holds the captions
    #[arg(long, default_value = "caption")]
    caption_column: String,

    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &VocabArgs) -> anyhow::Result<()> {
    if args.out.exists() && !args.overwrite {
        bail!("{} exists; --overwrite replaces it", args.out.display());
    }
    let shards = args.shards.resolve()?;
    let config = LoaderConfig {
        caption_column: args.caption_column.clone(),
        ..LoaderConfig::default()
    };
    let options = VocabularyOptions {
        vocab_size: args.size as usize,
        min_frequency: args.min_frequency,
    };
    let trained = vocabulary_from_shards(&shards, &config, &options, args.max_captions)?;
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
        "{}: {} entries from {} captions of {} shards ({} samples without a usable caption)",
        args.out.display(),
        trained.entries.len(),
        trained.captions,
        shards.len(),
        trained.skipped_samples
    ))?;
    if !trained.bad_shards.is_empty() {
        bail!(
            "{} shards could not be read to their end",
            trained.bad_shards.len()
        );
    }
    Ok(())
}
