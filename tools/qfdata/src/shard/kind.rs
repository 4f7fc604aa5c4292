//! The kinds of inputs.

use clap::ValueEnum;

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Images with captions in files beside them
    Folder,
    /// Comma-separated table
    Csv,
    /// Tab-separated table
    Tsv,
    /// JSON objects, one a line
    Jsonl,
    /// COCO, Karpathy, LAVIS, LLaVA, or a list of objects
    Json,
    /// Flickr's captions: name#0, tab, caption
    Token,
    /// Paths or URLs, one a line
    List,
    /// Parquet files
    Parquet,
    /// WebDataset (tar) or Arrow shards
    Shards,
    /// Images and captions in a zip
    Zip,
}
