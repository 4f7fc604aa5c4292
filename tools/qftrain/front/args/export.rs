//! `qftrain export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ModelArgs;

/// Whose files are written.
#[derive(Clone, Copy, ValueEnum)]
pub enum ExportFormat {
    /// A folder of transformers' Blip2ForImageTextRetrieval
    Hf,
    /// One safetensors file with the names of LAVIS
    Lavis,
}

/// Arguments of `export`.
#[derive(Args)]
pub struct ExportArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// What to write
    #[arg(long, value_enum)]
    pub format: ExportFormat,

    /// Where: a new or empty folder for hf, a new file for lavis (vocab.txt goes beside it)
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,

    /// Bytes of a file of weights in the hf format; more go into several files
    #[arg(long, default_value_t = 5_000_000_000, value_name = "BYTES")]
    pub max_shard_bytes: u64,
}
