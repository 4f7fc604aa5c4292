//! The closing summary: `found = written + skipped`, every skip under its cause.

use std::collections::BTreeMap;
use std::time::Duration;

use qf_cli::output::say;
use qf_pipeline::words::counted;
use serde::Serialize;

use super::held_out::HeldOut;
use super::output::Output;
use super::record::{Settings, WholeShard};
use super::row::SkipCause;
use super::source::any::Source;
use super::statistics::{HeldOutStatistics, ShardStatistics, Statistics};
use crate::size;

/// What was found and what became of it; `--json` prints this.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    format: &'static str,
    shards: u64,
    samples: u64,
    captions: u64,
    bytes: u64,
    /// Shards with an index beside them.
    indexes: u64,
    found: u64,
    skipped: BTreeMap<String, u64>,
    dropped_captions: u64,
    renamed_keys: u64,
    other_files: u64,
    captions_without_image: u64,
    /// Shards of an earlier run that were left over.
    pub(super) removed_stale: u64,
    /// Shards that an earlier run had written whole.
    pub(super) kept: u64,
    seconds: f64,
    mb_per_s: f64,
    /// Those that are held out last.
    files: Vec<String>,
    /// What of all that is held out, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<HeldOutPart>,
}

/// What is held out.
#[derive(Debug, Default, Serialize)]
struct HeldOutPart {
    shards: u64,
    samples: u64,
    captions: u64,
    bytes: u64,
    files: Vec<String>,
}

impl Report {
    pub(super) fn new(output: &Output, source: &Source) -> Self {
        let mut report = Report {
            format: output.extension(),
            ..Report::default()
        };
        if let Source::List(list) = source {
            report.dropped_captions = list.dropped_captions;
            report.renamed_keys = list.renamed_keys;
            report.other_files = list.other_files;
            report.captions_without_image = list.captions_without_image;
        }
        report
    }

    /// Counts whole shards, and rows that came behind the last.
    pub(super) fn count(
        &mut self,
        shards: &[WholeShard],
        behind: &BTreeMap<String, u64>,
        sides: &[Output],
        elapsed: Duration,
    ) {
        self.shards = shards.len() as u64;
        for shard in shards {
            self.samples += shard.samples;
            self.captions += shard.captions;
            self.bytes += shard.file_bytes;
            self.indexes += shard.indexes;
            self.renamed_keys += shard.renamed_keys;
        }
        for (cause, count) in shards.iter().flat_map(|shard| &shard.skipped).chain(behind) {
            *self.skipped.entry(cause.clone()).or_default() += count;
        }
        self.found = self.samples + self.skipped.values().sum::<u64>();
        self.seconds = elapsed.as_secs_f64();
        self.mb_per_s = self.bytes as f64 / 1e6 / self.seconds.max(1e-9);
        for (side, output) in sides.iter().enumerate() {
            let is_held_out = side > 0;
            let shards = shards.iter().filter(|shard| shard.held_out == is_held_out);
            let files: Vec<_> = shards
                .clone()
                .map(|shard| output.shown(shard.number))
                .collect();
            self.files.extend(files.iter().cloned());
            if is_held_out {
                self.held_out = Some(HeldOutPart {
                    shards: files.len() as u64,
                    samples: shards.clone().map(|shard| shard.samples).sum(),
                    captions: shards.clone().map(|shard| shard.captions).sum(),
                    bytes: shards.map(|shard| shard.file_bytes).sum(),
                    files,
                });
            }
        }
    }

    /// How many rows could not become a sample; those that were left out as asked do not count.
    pub(super) fn bad(&self) -> u64 {
        SkipCause::bad_rows(&self.skipped)
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

    /// What stands beside the shards: the same for equal input and settings.
    pub(super) fn statistics(
        &self,
        fingerprint: &str,
        settings: &Settings,
        shards: &[WholeShard],
        asked: Option<HeldOut>,
    ) -> anyhow::Result<Vec<u8>> {
        let name = |file: &String| file.rsplit('/').next().unwrap_or(file).to_owned();
        // In the order of the files.
        let (held_out, trained): (Vec<_>, Vec<_>) = shards.iter().partition(|shard| shard.held_out);
        let shards = trained.into_iter().chain(held_out).zip(&self.files);
        let shards = shards.map(|(shard, file)| ShardStatistics {
            bytes: shard.file_bytes,
            captions: shard.captions,
            file: name(file),
            samples: shard.samples,
            skipped: shard.skipped.clone(),
        });
        let statistics =
            Statistics {
                bytes: self.bytes,
                captions: self.captions,
                dropped_captions: self.dropped_captions,
                format: self.format.to_owned(),
                found: self.found,
                held_out: self.held_out.as_ref().zip(asked).map(|(part, asked)| {
                    HeldOutStatistics {
                        bytes: part.bytes,
                        captions: part.captions,
                        samples: part.samples,
                        seed: asked.seed,
                        share: asked.share,
                        shards: part.shards,
                    }
                }),
                input_fingerprint: fingerprint.to_owned(),
                renamed_keys: self.renamed_keys,
                samples: self.samples,
                settings: settings.clone(),
                shards: shards.collect(),
                skipped: self.skipped.clone(),
            };
        let mut text = serde_json::to_vec_pretty(&statistics)?;
        text.push(b'\n');
        Ok(text)
    }

    pub(super) fn print(&self, sides: &[Output], json: bool) -> anyhow::Result<()> {
        if json {
            say(format_args!("{}", serde_json::to_string(self)?))?;
            return Ok(());
        }
        let none = HeldOutPart::default();
        let held_out = self.held_out.as_ref().unwrap_or(&none);
        let contents = |shards, samples, captions, bytes| {
            format!(
                "{}, {}, {}, {}",
                counted(shards, "shard", "shards"),
                counted(samples, "sample", "samples"),
                counted(captions, "caption", "captions"),
                size::display(bytes)
            )
        };
        let shards = self.shards - held_out.shards;
        say(format_args!(
            "{}: {} in {:.1} s ({:.0} MB/s)",
            sides[0].pattern(shards),
            contents(
                shards,
                self.samples - held_out.samples,
                self.captions - held_out.captions,
                self.bytes - held_out.bytes
            ),
            self.seconds,
            self.mb_per_s
        ))?;
        if let (Some(output), Some(part)) = (sides.get(1), &self.held_out) {
            match part.shards {
                0 => say(format_args!(
                    "no image was drawn to be held out; give a larger --held-out"
                ))?,
                shards => say(format_args!(
                    "{}: {}, held out",
                    output.pattern(shards),
                    contents(shards, part.samples, part.captions, part.bytes)
                ))?,
            }
        }
        say(format_args!("{}", self.accounts()))?;
        for (count, one, many, what) in [
            (self.kept, "shard", "shards", "kept from an earlier run"),
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
