//! Puts samples into shards, one shard after the other, and writes down each that is whole.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use qf_pipeline::shard::write::{ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::warnings::Warnings;

use super::args::OnBad;
use super::doubles::Seen;
use super::flow::Outcome;
use super::journal::{Journal, WholeShard};
use super::metadata::{self, MetadataRow, MetadataWriter};
use super::output::Output;
use super::plan::{self, Limits};
use super::row::{Skip, SkipCause};

/// The shards of a run.
pub(super) struct ShardSet<'a> {
    pub(super) output: &'a Output,
    pub(super) options: ShardOptions,
    pub(super) limits: Limits,
    pub(super) on_bad: OnBad,
    journal: &'a mut Journal,
    seen: Seen,
    /// How often each key came, where keys may come more than once.
    keys: Option<HashMap<String, u64>>,
    current: Option<Current>,
    /// Rows that came before the first sample of the run.
    early: Vec<MetadataRow>,
    counts: WholeShard,
    next_number: u64,
    warnings: Warnings,
}

/// A shard that is being written.
struct Current {
    writer: ShardWriter,
    metadata: MetadataWriter,
    samples: u64,
    bytes: u64,
}

impl<'a> ShardSet<'a> {
    /// Goes on behind the whole shards of the journal.
    ///
    /// # Errors
    /// Metadata of whole shards that cannot be read.
    pub(super) fn new(
        output: &'a Output,
        options: ShardOptions,
        limits: Limits,
        on_bad: OnBad,
        mut seen: Seen,
        repeats_keys: bool,
        journal: &'a mut Journal,
    ) -> anyhow::Result<ShardSet<'a>> {
        let mut keys = repeats_keys.then(HashMap::new);
        for shard in journal.whole() {
            let path = output.fetch_metadata(shard.number)?;
            metadata::read_samples(&path, &mut |key, facts| {
                seen.add(key, facts);
                if let Some(keys) = &mut keys {
                    *keys.entry(key.to_owned()).or_default() += 1;
                }
            })?;
        }
        let last = journal.whole().last();
        Ok(ShardSet {
            next_number: last.map_or(0, |shard| shard.number + 1),
            counts: WholeShard {
                rows_end: last.map_or(0, |shard| shard.rows_end),
                ..WholeShard::default()
            },
            output,
            options,
            limits,
            on_bad,
            journal,
            seen,
            keys,
            current: None,
            early: Vec::new(),
            warnings: Warnings::default(),
        })
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// What cannot be written; with `--on-bad error` the first bad row.
    pub(super) fn accept(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        let Outcome {
            position,
            name,
            facts,
            sample,
            ..
        } = outcome;
        let mut row = MetadataRow {
            key: name.as_ref().map(|name| name.key.clone()),
            source: name
                .as_ref()
                .map(|name| name.origin.clone())
                .unwrap_or_default(),
            url: name.and_then(|name| name.url),
            facts,
            ..MetadataRow::default()
        };
        let sample = sample.and_then(|sample| match self.seen.twin(&row.facts) {
            None => Ok(sample),
            Some((cause, twin, distance)) => {
                row.twin = Some(twin.to_owned());
                let message = match cause {
                    SkipCause::Double => format!("the same image as `{twin}`"),
                    _ => format!("an image like `{twin}` ({distance} of 64 bits differ)"),
                };
                Err(Skip::new(row.source.clone(), cause, message))
            }
        });
        match sample {
            Ok(sample) => self.write(position, sample, row),
            Err(skip) => {
                self.complain(&skip)?;
                let counter = self.counts.skipped.entry(skip.cause.name().to_owned());
                *counter.or_default() += 1;
                if row.source.is_empty() {
                    row.source.clone_from(&skip.what);
                }
                row.skip = Some((skip.cause.name(), skip.message));
                self.note(row)?;
                self.counts.rows_end = position + 1;
                Ok(())
            }
        }
    }

    fn complain(&mut self, skip: &Skip) -> anyhow::Result<()> {
        match self.on_bad {
            OnBad::Error if !skip.cause.is_wanted() => {
                anyhow::bail!("{skip}; set --on-bad warn or skip to go on without what is bad")
            }
            OnBad::Warn if !skip.cause.is_wanted() => {
                self.warnings
                    .warn(skip.cause.name(), format_args!("skipped {skip}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn note(&mut self, row: MetadataRow) -> anyhow::Result<()> {
        match &mut self.current {
            Some(current) => current.metadata.add(row),
            None => {
                self.early.push(row);
                Ok(())
            }
        }
    }

    fn write(
        &mut self,
        position: u64,
        mut sample: ShardSample,
        mut row: MetadataRow,
    ) -> anyhow::Result<()> {
        if let Some(keys) = &mut self.keys {
            self.counts.renamed_keys += u64::from(make_unique(&mut sample.key, keys));
            row.key = Some(sample.key.clone());
        }
        let bytes = plan::stored_bytes(&sample, self.options.format);
        if let Some(current) = &self.current {
            let grown = current.bytes.saturating_add(bytes);
            if current.samples >= self.limits.max_count || grown > self.limits.max_bytes {
                self.close()?;
            }
        }
        let current = match &mut self.current {
            Some(current) => current,
            None => {
                let current = self.open()?;
                self.current.insert(current)
            }
        };
        current.writer.write(&sample)?;
        current.samples += 1;
        current.bytes = current.bytes.saturating_add(bytes);
        self.seen.add(&sample.key, &row.facts);
        current.metadata.add(row)?;
        self.counts.rows_end = position + 1;
        Ok(())
    }

    fn open(&mut self) -> anyhow::Result<Current> {
        self.journal.begin(self.output)?;
        let number = self.next_number;
        let mut metadata = MetadataWriter::create(self.output.metadata(number))?;
        for row in self.early.drain(..) {
            metadata.add(row)?;
        }
        Ok(Current {
            writer: ShardWriter::create(self.output.shard(number), &self.options)?,
            metadata,
            samples: 0,
            bytes: plan::shard_bytes(self.options.format),
        })
    }

    /// The shard is whole: gives it its name, and writes it down.
    fn close(&mut self) -> anyhow::Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let number = self.next_number;
        // Metadata first: a shard that is there has its metadata.
        current.metadata.finish()?;
        let written = current.writer.finish()?;
        self.output.deliver(number, written.index.is_some())?;
        self.next_number += 1;
        let rows_end = self.counts.rows_end;
        let counts = std::mem::replace(
            &mut self.counts,
            WholeShard {
                rows_end,
                ..WholeShard::default()
            },
        );
        let whole = WholeShard {
            number,
            samples: written.samples,
            captions: written.captions,
            file_bytes: written.file_bytes,
            indexes: u64::from(written.index.is_some()),
            ..counts
        };
        self.journal.add(self.output, whole)
    }

    /// Writes what is left. Returns what was skipped since the last shard, where there is no shard to
    /// count it with.
    pub(super) fn finish(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.close().context("the last shard")?;
        Ok(self.counts.skipped)
    }
}

/// The first of equal keys stays; later ones get `_2`, `_3`, … Returns whether the key was changed.
fn make_unique(key: &mut String, keys: &mut HashMap<String, u64>) -> bool {
    let count = keys.entry(key.clone()).or_default();
    *count += 1;
    if *count == 1 {
        return false;
    }
    let mut number = *count;
    loop {
        let candidate = format!("{key}_{number}");
        if !keys.contains_key(&candidate) {
            keys.insert(candidate.clone(), 1);
            *key = candidate;
            return true;
        }
        number += 1;
    }
}
