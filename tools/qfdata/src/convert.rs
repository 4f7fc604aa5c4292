//! `qfdata convert`: shards in another format.

use std::path::PathBuf;

use clap::Args;
use qf_pipeline::write::ShardFormat;

use crate::copy::{CopyArgs, Limits, Target};

/// Write shards in another format, under the same names; files are copied byte for byte, in order.
///
/// A row of an Arrow shard becomes KEY.jpg (or what its image is), KEY.txt with a caption a line, and
/// KEY.COLUMN. An Arrow shard takes images and captions; other members are dropped and counted.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    copy: CopyArgs,

    /// Folder to write into
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    /// tar, tar.gz, tar.zst or arrow
    #[arg(long)]
    format: ShardFormat,
}

pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    args.copy
        .run(&Target::Folder(&args.out, args.format), Limits::default())
}
