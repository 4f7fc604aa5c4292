//! What a command that goes through many shards could not read: named at once, summed up at the end.

use anyhow::bail;
use qf_cli::output::{remark, InPart};
use qf_pipeline::shard::note::ShardNote;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::words::counted;
use qf_pipeline::ShardError;

/// Counts what was left out, and names it on stderr.
#[derive(Default)]
pub(crate) struct Unreadable {
    shards: usize,
    files: u64,
}

/// Files that are named one by one.
const MAX_NAMED: u64 = 100;

impl Unreadable {
    /// A shard, or the rest of it.
    pub(crate) fn shard(&mut self, error: &ShardError) {
        remark(format_args!("{error}"));
        self.shards += 1;
    }

    /// A file or a row.
    pub(crate) fn file(&mut self, what: &str) {
        self.files += 1;
        match self.files {
            ..=MAX_NAMED => remark(format_args!("{what}")),
            count if count == MAX_NAMED + 1 => {
                remark(format_args!("further ones are counted, not named"));
            }
            _ => {}
        }
    }

    /// What is odd about a shard that was read; nothing was left out.
    pub(crate) fn note(&self, shard: &ShardLocation, notes: &[ShardNote]) {
        for note in notes {
            log::warn!("shard {} {note}", shard.name);
        }
    }

    /// # Errors
    /// If no shard could be read; [`InPart`] if something was left out.
    pub(crate) fn finish(&self, of_shards: usize) -> anyhow::Result<()> {
        let shards = counted(of_shards as u64, "shard", "shards");
        if self.shards == of_shards {
            bail!("none of {shards} could be read to the end");
        }
        let mut left_out = Vec::new();
        if self.shards > 0 {
            left_out.push(format!(
                "{} of {shards} could not be read to the end",
                self.shards
            ));
        }
        if self.files > 0 {
            let files = counted(self.files, "file was", "files were");
            left_out.push(format!("{files} left out"));
        }
        match left_out.is_empty() {
            true => Ok(()),
            false => Err(InPart(left_out.join("; ")).into()),
        }
    }
}
