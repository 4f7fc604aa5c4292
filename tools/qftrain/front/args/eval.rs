//! `qftrain eval`.

use std::path::PathBuf;

use clap::Args;
use qf_pipeline::source::ShardSpec;

use super::{ColumnArgs, InferenceArgs};

/// Arguments of `eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// The model
    #[command(flatten)]
    pub model: InferenceArgs,

    /// Held-out shards: files, globs, {000..012} ranges; several allowed
    #[arg(
        long,
        num_args = 1..,
        required_unless_present = "annotations",
        conflicts_with = "annotations",
        value_name = "SHARDS"
    )]
    pub shards: Vec<ShardSpec>,

    /// Where captions and images are
    #[command(flatten)]
    pub columns: ColumnArgs,

    /// Leave out the samples that the run's data.filters leave out, as its validation does [default:
    /// filters choose what a model learns from; all samples are evaluated]
    #[arg(long, conflicts_with = "annotations")]
    pub filters: bool,

    /// Annotation file instead of shards: a JSON list of objects with `image` and `caption`, as
    /// LAVIS's coco_karpathy_test.json
    #[arg(long, value_name = "FILE", requires = "images")]
    pub annotations: Option<PathBuf>,

    /// Folder that the image paths of --annotations begin at
    #[arg(
        long,
        value_name = "DIR",
        requires = "annotations",
        conflicts_with = "shards"
    )]
    pub images: Option<PathBuf>,

    /// Candidates per query that the matching head ranks again; 0 for none
    #[arg(long, default_value_t = 128)]
    pub rerank: usize,

    /// Images encoded at a time
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,

    /// Token ids per caption, padding included
    #[arg(long, default_value_t = 35)]
    pub text_len: usize,

    /// Threads that decode and tokenise [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub threads: usize,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}
