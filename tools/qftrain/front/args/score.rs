//! `qftrain score`.

use std::path::PathBuf;

use clap::Args;

use super::InferenceArgs;

/// Arguments of `score`.
#[derive(Args)]
pub struct ScoreArgs {
    /// The model
    #[command(flatten)]
    pub model: InferenceArgs,

    /// Image file
    pub image: PathBuf,

    /// Texts to compare with it
    #[arg(required = true, value_name = "TEXT")]
    pub texts: Vec<String>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}
