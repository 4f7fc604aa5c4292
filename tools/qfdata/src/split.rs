//! `qfdata split`: shards cut anew, to a number of samples or bytes.

use anyhow::bail;
use clap::Args;
use qf_pipeline::write::ShardFormat;

use crate::copy::{CopyArgs, Limits, Target};
use crate::size;

/// Cut shards anew, to a number of samples or bytes; files are copied byte for byte, in order.
///
/// All shards are read as one sequence, and PREFIX-000000.tar, PREFIX-000001.tar, ... written.
#[derive(Args)]
pub(crate) struct SplitArgs {
    #[command(flatten)]
    copy: CopyArgs,

    /// Beginning of the names of the shards, e.g. out/train
    #[arg(long, value_name = "PREFIX")]
    out: String,

    /// tar, tar.gz, tar.zst or arrow [default: that of the first shard]
    #[arg(long)]
    format: Option<ShardFormat>,

    /// Samples in a shard
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    max_count: Option<u64>,

    /// A shard ends with the sample that reaches this many bytes, uncompressed: 500MB, 1GiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_bytes: Option<u64>,
}

pub(crate) fn run(args: &SplitArgs) -> anyhow::Result<()> {
    let limits = Limits {
        max_count: args.max_count,
        max_bytes: args.max_bytes,
    };
    if limits.max_count.is_none() && limits.max_bytes.is_none() {
        bail!("say where to cut: --max-count COUNT or --max-bytes SIZE");
    }
    if args.out.contains("://") {
        bail!("--out {}: shards are written to local paths", args.out);
    }
    args.copy
        .run(&Target::Numbered(&args.out, args.format), limits)
}
