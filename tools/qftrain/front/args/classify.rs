//! `qftrain classify`.

use std::path::PathBuf;

use clap::Args;

use super::InferenceArgs;

/// Arguments of `classify`.
#[derive(Args)]
pub struct ClassifyArgs {
    /// The model
    #[command(flatten)]
    pub model: InferenceArgs,

    /// Folder with a folder of images for each class, named as the class is in words (`_` for a space)
    pub folder: PathBuf,

    /// Sentence about a class, which stands where {} is; several are averaged
    #[arg(long, value_name = "TEXT", default_value = "a photo of a {}")]
    pub prompt: Vec<String>,

    /// Images encoded at a time
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,

    /// Print one JSON object per image, and one for all
    #[arg(long)]
    pub json: bool,
}
