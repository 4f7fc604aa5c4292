//! `qftrain caption`.

use std::path::PathBuf;

use clap::Args;
use qf_pipeline::source::ShardSpec;

use super::{ColumnArgs, InferenceArgs};

/// Arguments of `caption`.
#[derive(Args)]
pub struct CaptionArgs {
    /// The model
    #[command(flatten)]
    pub model: InferenceArgs,

    /// Image files, and folders of them
    #[arg(required_unless_present = "shards", conflicts_with = "shards")]
    pub images: Vec<PathBuf>,

    /// Caption the images of shards instead, which need no captions: files, globs, {000..012} ranges; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    pub shards: Vec<ShardSpec>,

    /// Where captions and images are
    #[command(flatten)]
    pub columns: ColumnArgs,

    /// Only the first so many images
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// Beams of the search
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub beams: usize,

    /// Captions per image; at most as many as beams
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub num_captions: usize,

    /// Most tokens of a caption, its opening token included
    #[arg(long, default_value_t = 30, value_name = "N")]
    pub max_length: usize,

    /// Fewest tokens of a caption, its opening token included; LAVIS's generate has 10
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub min_length: usize,

    /// A caption is worth its log-probability over its length to this power: more favours long ones
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub length_penalty: f64,

    /// Above 1 makes tokens that the caption has already less likely
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub repetition_penalty: f64,

    /// Draw from the fewest tokens with this probability together, instead of searching; 1 for all
    #[arg(long, value_name = "P", conflicts_with_all = ["beams", "length_penalty"])]
    pub top_p: Option<f64>,

    /// When drawing: from at most so many tokens; 0 for all
    #[arg(long, default_value_t = 50, value_name = "N", requires = "top_p",
          conflicts_with_all = ["beams", "length_penalty"])]
    pub top_k: usize,

    /// When drawing: below 1 keeps to likely tokens, above 1 strays
    #[arg(long, default_value_t = 1.0, value_name = "X", requires = "top_p",
          conflicts_with_all = ["beams", "length_penalty"])]
    pub temperature: f64,

    /// When drawing: fixes the draws
    #[arg(long, default_value_t = 42, requires = "top_p",
          conflicts_with_all = ["beams", "length_penalty"])]
    pub seed: u64,

    /// Images at a time
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,

    /// Print one JSON object per image
    #[arg(long)]
    pub json: bool,
}
