//! `qfdata merge`: several shards in one.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use qf_pipeline::write::ShardFormat;

use crate::copy::{CopyArgs, Limits, Target};

/// Join shards into one; files are copied byte for byte, in order.
///
/// Unlike `cat a.tar b.tar`, the result is one archive, which every reader reads to its end. Formats may
/// differ. Samples whose key the new shard has already are left out and named.
#[derive(Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    copy: CopyArgs,

    /// Shard to write; its ending says the format: .tar, .tar.gz, .tar.zst, .arrow
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let name = args.out.to_string_lossy();
    let format = ShardFormat::ALL
        .into_iter()
        .find(|format| name.ends_with(&format!(".{format}")))
        .with_context(|| {
            format!(
                "--out {name}: the ending says no format; use .tar, .tar.gz, .tar.zst or .arrow"
            )
        })?;
    args.copy
        .run(&Target::File(&args.out, format), Limits::default())
}
