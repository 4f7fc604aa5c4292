//! `qftrain search`.

use std::path::PathBuf;

use clap::Args;

use super::InferenceArgs;

/// Arguments of `search`.
#[derive(Args)]
pub struct SearchArgs {
    /// The model
    #[command(flatten)]
    pub model: InferenceArgs,

    /// What `qftrain embed` wrote: a Parquet file, or a folder of npy files
    #[arg(long, value_name = "PATH")]
    pub embeddings: PathBuf,

    /// What to look for
    #[arg(required = true, value_name = "TEXT")]
    pub texts: Vec<String>,

    /// Images to name for each text
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub top: u32,

    /// Print one JSON object per text
    #[arg(long)]
    pub json: bool,
}
