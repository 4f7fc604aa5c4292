//! `qfdata ls`: the files of shards, one a line.

use clap::Args;
use qf_cli::output::{remark, Lines};
use qf_pipeline::printable::Printable;
use qf_pipeline::shard::group::split_key;
use qf_pipeline::SampleError;
use serde::Serialize;

use crate::data::ListedShards;
use crate::files::{for_each_file, FileVisitor, Selection, StoredFile};
use crate::interrupt::Interrupt;
use crate::unreadable::Unreadable;

/// List the files of shards, in stored order.
///
/// One path a line, after SHARD# if there are several shards. Of an Arrow shard the columns of each row are
/// listed as KEY.COLUMN. Of a local archive that is not compressed only headers are read.
#[derive(Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    shards: ListedShards,

    /// List files whose path or name matches, e.g. '*.json'; may be given several times
    #[arg(long, value_name = "PATTERN")]
    member: Vec<String>,

    /// Size and offset in bytes before each path
    #[arg(long, short)]
    long: bool,

    /// Print one JSON object a line
    #[arg(long, conflicts_with = "long")]
    json: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Line<'a> {
    shard: &'a str,
    path: &'a str,
    /// Of the sample that it belongs to; none of a file that readers pass over.
    key: Option<&'a str>,
    size_bytes: u64,
    offset_bytes: u64,
}

pub(crate) fn run(args: &LsArgs) -> anyhow::Result<()> {
    let selection = Selection::new(&args.member)?;
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    let options = args.shards.config().read_options();
    let mut unreadable = Unreadable::default();
    let mut listing = Listing {
        args,
        shard: "",
        names_shard: shards.len() > 1,
        lines: Lines::new(),
    };
    for shard in &shards {
        listing.shard = &shard.name;
        let reading = (&options, &interrupt.stop());
        let read = for_each_file(shard, reading, &selection, false, &mut listing)?;
        interrupt.check()?;
        match read {
            Ok(Some(notes)) => unreadable.note(shard, &notes),
            Ok(None) => break,
            Err(error) => unreadable.shard(&error),
        }
    }
    listing.lines.finish()?;
    unreadable.finish(shards.len())
}

struct Listing<'a> {
    args: &'a LsArgs,
    shard: &'a str,
    names_shard: bool,
    lines: Lines,
}

impl FileVisitor for Listing<'_> {
    fn file(&mut self, file: &StoredFile<'_>) -> anyhow::Result<bool> {
        if self.args.json {
            let key = split_key(file.path).map(|(key, _)| key);
            let line = serde_json::to_string(&Line {
                shard: self.shard,
                path: file.path,
                key,
                size_bytes: file.size_bytes,
                offset_bytes: file.offset_bytes,
            })?;
            return self.lines.say(format_args!("{line}"));
        }
        let sizes = match self.args.long {
            true => format!("{:>12} {:>14} ", file.size_bytes, file.offset_bytes),
            false => String::new(),
        };
        let (shard, path) = (Printable(self.shard), Printable(file.path));
        match self.names_shard {
            true => self.lines.say(format_args!("{sizes}{shard}#{path}")),
            false => self.lines.say(format_args!("{sizes}{path}")),
        }
    }

    fn bad_row(&mut self, error: &SampleError) -> anyhow::Result<bool> {
        remark(format_args!("{error}"));
        Ok(true)
    }
}
