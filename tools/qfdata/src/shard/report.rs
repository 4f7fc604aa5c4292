//! The closing summary: `found = written + skipped`, every skip under its cause.

use std::collections::BTreeMap;
use std::time::Duration;

use qf_pipeline::words::counted;
use qf_pipeline::write::{ShardFormat, WrittenShard};
use serde::Serialize;

use super::input::{Listing, Skip};
use crate::size;
use qf_cli::output::say;

/// What was found and what became of it; `--json` prints this.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    format: &'static str,
    shards: u64,
    samples: u64,
    captions: u64,
    bytes: u64,
    /// Shards with an index beside them.
    indexes: u64,
    found: u64,
    skipped: BTreeMap<&'static str, u64>,
    dropped_captions: u64,
    renamed_keys: u64,
    other_files: u64,
    captions_without_image: u64,
    /// Shards of an earlier run that were left over.
    pub(super) removed_stale: u64,
    seconds: f64,
    mb_per_s: f64,
    files: Vec<String>,
}

impl Report {
    pub(super) fn new(format: ShardFormat, listing: &Listing) -> Self {
        Self {
            format: format.extension(),
            shards: 0,
            samples: 0,
            captions: 0,
            bytes: 0,
            indexes: 0,
            found: (listing.candidates.len() + listing.skips.len()) as u64,
            skipped: BTreeMap::new(),
            dropped_captions: listing.dropped_captions,
            renamed_keys: listing.renamed_keys,
            other_files: listing.other_files,
            captions_without_image: listing.captions_without_image,
            removed_stale: 0,
            seconds: 0.0,
            mb_per_s: 0.0,
            files: Vec::new(),
        }
    }

    pub(super) fn count_skips(&mut self, skips: &[Skip]) {
        for skip in skips {
            *self.skipped.entry(skip.cause.name()).or_default() += 1;
        }
    }

    pub(super) fn count_written(&mut self, shards: &[WrittenShard], elapsed: Duration) {
        self.shards = shards.len() as u64;
        self.samples = shards.iter().map(|shard| shard.samples).sum();
        self.captions = shards.iter().map(|shard| shard.captions).sum();
        self.bytes = shards.iter().map(|shard| shard.file_bytes).sum();
        self.indexes = shards.iter().filter(|shard| shard.index.is_some()).count() as u64;
        self.seconds = elapsed.as_secs_f64();
        self.mb_per_s = self.bytes as f64 / 1e6 / self.seconds.max(1e-9);
        let paths = shards.iter().map(|shard| shard.path.display().to_string());
        self.files = paths.collect();
    }

    /// `found 5 = written 3 + skipped 2 (no_caption 1, unreadable 1)`.
    pub(super) fn accounts(&self) -> String {
        let skipped: u64 = self.skipped.values().sum();
        let causes: Vec<_> = self
            .skipped
            .iter()
            .map(|(cause, count)| format!("{cause} {count}"))
            .collect();
        let causes = match causes.is_empty() {
            true => String::new(),
            false => format!(" ({})", causes.join(", ")),
        };
        let (found, samples) = (self.found, self.samples);
        format!("found {found} = written {samples} + skipped {skipped}{causes}")
    }

    pub(super) fn print(&self, pattern: &str, json: bool) -> anyhow::Result<()> {
        if json {
            say(format_args!("{}", serde_json::to_string(self)?))?;
            return Ok(());
        }
        say(format_args!(
            "{pattern}: {}, {}, {}, {} in {:.1} s ({:.0} MB/s)",
            counted(self.shards, "shard", "shards"),
            counted(self.samples, "sample", "samples"),
            counted(self.captions, "caption", "captions"),
            size::display(self.bytes),
            self.seconds,
            self.mb_per_s
        ))?;
        say(format_args!("{}", self.accounts()))?;
        for (count, one, many, what) in [
            (
                self.dropped_captions,
                "caption",
                "captions",
                "left out of samples that have others",
            ),
            (
                self.renamed_keys,
                "key",
                "keys",
                "made unique with a number",
            ),
            (
                self.captions_without_image,
                "caption file",
                "caption files",
                "without an image",
            ),
            (self.other_files, "other file", "other files", "passed over"),
            (
                self.removed_stale,
                "shard",
                "shards",
                "of an earlier run removed",
            ),
        ] {
            if count > 0 {
                say(format_args!("{} {what}", counted(count, one, many)))?;
            }
        }
        Ok(())
    }
}
