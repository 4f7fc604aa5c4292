//! `qftrain embed`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use qf_pipeline::source::ShardSpec;

use super::{ColumnArgs, InferenceArgs};

/// How embeddings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EmbedFormat {
    /// Columns of a Parquet file
    Parquet,
    /// A folder of npy files
    Npy,
}

/// Arguments of `embed`.
#[derive(Args)]
pub struct EmbedArgs {
    /// The model
    #[command(flatten)]
    pub model: InferenceArgs,

    /// Image files, and folders of them
    #[arg(required_unless_present_any = ["shards", "texts"], conflicts_with = "shards")]
    pub images: Vec<PathBuf>,

    /// The images of shards, and their captions: files, globs, {000..012} ranges; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    pub shards: Vec<ShardSpec>,

    /// Where captions and images are
    #[command(flatten)]
    pub columns: ColumnArgs,

    /// A file of texts, one a line; their keys are the numbers of their lines
    #[arg(long, value_name = "FILE", conflicts_with = "shards")]
    pub texts: Option<PathBuf>,

    /// Where to write: of Parquet, NAME.parquet for images and NAME.texts.parquet for texts; of npy, a
    /// folder
    #[arg(long, short, value_name = "PATH")]
    pub out: PathBuf,

    /// File format [default: npy for a path without ending, else parquet]
    #[arg(long, value_name = "parquet|npy", hide_possible_values = true)]
    pub format: Option<EmbedFormat>,

    /// Write the queries' outputs, too: [32, 768] of each image for the published sizes
    #[arg(long)]
    pub query_outputs: bool,

    /// Images encoded at a time
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
}

impl EmbedArgs {
    /// The format that was named, or that the ending of `--out` names.
    ///
    /// # Errors
    /// An ending of no format.
    pub fn format(&self) -> anyhow::Result<EmbedFormat> {
        let ending = self.out.extension().and_then(|ending| ending.to_str());
        match (self.format, ending) {
            (Some(format), _) => Ok(format),
            (None, None) => Ok(EmbedFormat::Npy),
            (None, Some("parquet")) => Ok(EmbedFormat::Parquet),
            (None, Some(ending)) => bail!(
                "--out {}: no format has the ending `{ending}`; take NAME.parquet, or a folder for npy \
                 files, or add --format",
                self.out.display()
            ),
        }
    }
}
