//! `qfdata cat`: files of shards on standard output.

use anyhow::bail;
use clap::Args;
use qf_cli::output::Lines;
use qf_pipeline::SampleError;

use crate::data::ListedShards;
use crate::files::{for_each_file, Content, FileVisitor, Selection, StoredFile};
use crate::interrupt::Interrupt;
use crate::unreadable::Unreadable;

/// Write files of shards to standard output, byte for byte.
///
/// Files follow each other in stored order, without anything between them, as with `tar -xO`.
#[derive(Args)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    shards: ListedShards,

    /// Files whose path or name matches, e.g. 000042.txt or '*.json'; may be given several times
    #[arg(long, value_name = "PATTERN", required = true)]
    member: Vec<String>,
}

pub(crate) fn run(args: &CatArgs) -> anyhow::Result<()> {
    let selection = Selection::new(&args.member)?;
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    let options = args.shards.config().read_options();
    let mut copying = Copying {
        limit: options.max_sample_bytes,
        lines: Lines::new(),
        unreadable: Unreadable::default(),
        found: false,
    };
    for shard in &shards {
        let reading = (&options, &interrupt.stop());
        let read = for_each_file(shard, reading, &selection, true, &mut copying)?;
        interrupt.check()?;
        match read {
            Ok(Some(notes)) => copying.unreadable.note(shard, &notes),
            Ok(None) => break,
            Err(error) => copying.unreadable.shard(&error),
        }
    }
    copying.lines.finish()?;
    copying.unreadable.finish(shards.len())?;
    if !copying.found {
        bail!(
            "no file matches {}; `qfdata ls` lists the files",
            args.member.join(", ")
        );
    }
    Ok(())
}

struct Copying {
    limit: u64,
    lines: Lines,
    unreadable: Unreadable,
    found: bool,
}

impl FileVisitor for Copying {
    fn file(&mut self, file: &StoredFile<'_>) -> anyhow::Result<bool> {
        self.found = true;
        match file.content {
            Content::Bytes(bytes) => self.lines.raw(bytes),
            Content::PassedOver => Ok(true),
            Content::TooLarge => {
                let (path, size, limit) = (file.path, file.size_bytes, self.limit);
                self.unreadable.file(&format!(
                    "{path} of {size} bytes is beyond max_sample_bytes of {limit}; use tar -xO"
                ));
                Ok(true)
            }
        }
    }

    fn bad_row(&mut self, error: &SampleError) -> anyhow::Result<bool> {
        self.unreadable.file(&error.to_string());
        Ok(true)
    }
}
