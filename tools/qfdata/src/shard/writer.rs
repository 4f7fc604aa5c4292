//! Puts samples into shards, one shard after the other; of two sides, training and held out, one of each at a
//! time, which are closed together: so a run that goes on has one row to go on from. A thread of its own ([`Closer`]) brings each that
//! is full to the disk or the store, and writes it down, while the next one is filled.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::Context;
use crossbeam::channel::{self, Sender};
use qf_cli::output::remark;
use qf_pipeline::printable::Printable;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::warnings::Warnings;
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};

use super::args::OnBad;
use super::doubles::Seen;
use super::flow::Outcome;
use super::held_out::HeldOut;
use super::journal::Journal;
use super::keys::Keys;
use super::metadata::{self, MetadataRow, MetadataWriter};
use super::output::Output;
use super::plan::{self, Limits};
use super::record::WholeShard;
use super::row::{Skip, SkipCause};
use crate::index::dali;
use crate::threads;

/// The shards of a run.
pub(super) struct ShardSet<'a> {
    sides: Vec<Side<'a>>,
    held_out: Option<HeldOut>,
    /// Of all sides: where the journal is.
    output: &'a Output,
    options: ShardOptions,
    limits: Limits,
    on_bad: OnBad,
    journal: &'a Mutex<Journal>,
    closer: Closer<'a>,
    seen: Seen,
    /// Where keys may come more than once.
    keys: Option<Keys>,
    /// Rows that came before the first sample of the run.
    early: Vec<MetadataRow>,
    /// Since shards were closed: what belongs to neither side.
    counts: WholeShard,
    has_begun: bool,
    warnings: Warnings,
    /// Whether it was said that an Arrow shard has no place for what lies beside image and captions.
    has_dropped: bool,
}

/// The shards of one side.
struct Side<'a> {
    output: &'a Output,
    current: Option<Current>,
    next_number: u64,
}

/// Says, once a run, that an Arrow shard has no place for what this sample has beside image and captions.
/// Returns whether there is any.
fn say_what_is_dropped(sample: &ShardSample) -> bool {
    let json = sample.json.as_ref().map(|_| "json");
    let members = sample.members.iter().map(|(name, _)| name.as_str());
    let names: Vec<_> = json
        .into_iter()
        .chain(members)
        .map(|name| format!(".{name}"))
        .collect();
    if !names.is_empty() {
        remark(format_args!(
            "an Arrow shard holds images and captions alone: what samples have beside them is left out ({} of {}); \
             --format tar keeps it",
            names.join(", "),
            Printable(&sample.key)
        ));
    }
    !names.is_empty()
}

/// How shards are written.
pub(super) struct Writing<'a> {
    /// Where the journal is.
    pub(super) output: &'a Output,
    /// Where shards go; two, if some are held out.
    pub(super) sides: &'a [Output],
    pub(super) held_out: Option<HeldOut>,
    pub(super) options: ShardOptions,
    pub(super) limits: Limits,
    pub(super) on_bad: OnBad,
    pub(super) seen: Seen,
    /// Whether DALI's index is written beside each shard.
    pub(super) dali_index: bool,
    /// Whether two rows may have one key.
    pub(super) repeats_keys: bool,
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
        writing: Writing<'a>,
        journal: &'a Mutex<Journal>,
        scope: &'a Scope<'a, '_>,
    ) -> anyhow::Result<ShardSet<'a>> {
        let Writing {
            output,
            sides,
            held_out,
            options,
            limits,
            on_bad,
            mut seen,
            dali_index,
            repeats_keys,
        } = writing;
        let mut keys = repeats_keys.then(Keys::default);
        let whole = lock(journal).whole().to_vec();
        let side = |output| Side {
            output,
            current: None,
            next_number: 0,
        };
        let mut sides: Vec<_> = sides.iter().map(side).collect();
        for shard in &whole {
            let Some(side) = sides.get_mut(usize::from(shard.held_out)) else {
                anyhow::bail!("the journal has shards that are held out; this is a bug");
            };
            side.next_number = shard.number + 1;
            let path = side.output.fetch_metadata(shard.number)?;
            metadata::read_samples(&path, &mut |key, facts| {
                seen.add(key, facts);
                if let Some(keys) = &mut keys {
                    keys.add(key);
                }
            })?;
        }
        let last = whole.last();
        Ok(ShardSet {
            counts: WholeShard {
                rows_end: last.map_or(0, |shard| shard.rows_end),
                ..WholeShard::default()
            },
            sides,
            held_out,
            output,
            options,
            limits,
            on_bad,
            journal,
            closer: Closer::start((output, dali_index), journal, scope)?,
            seen,
            keys,
            early: Vec::new(),
            has_begun: false,
            warnings: Warnings::default(),
            has_dropped: false,
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
            url: name.and_then(|name| Some(name.url?.to_string())),
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
        let mut open = self
            .sides
            .iter_mut()
            .filter_map(|side| side.current.as_mut());
        match open.next() {
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
            self.counts.renamed_keys += u64::from(keys.make_unique(&mut sample.key));
            row.key = Some(sample.key.clone());
        }
        let bytes = plan::stored_bytes(&sample, self.options.format);
        let side = match &self.held_out {
            Some(held_out) => usize::from(held_out.takes(row.facts.sha256)),
            None => 0,
        };
        if let Some(current) = &self.sides[side].current {
            let grown = current.bytes.saturating_add(bytes);
            if current.samples >= self.limits.max_count || grown > self.limits.max_bytes {
                self.close()?;
            }
        }
        if self.sides[side].current.is_none() {
            let opened = self.open(side)?;
            self.sides[side].current = Some(opened);
        }
        let Some(current) = &mut self.sides[side].current else {
            anyhow::bail!("a shard that was opened is gone; this is a bug");
        };
        if self.options.format == ShardFormat::Arrow && !self.has_dropped {
            self.has_dropped = say_what_is_dropped(&sample);
        }
        current.writer.write(&sample)?;
        current.samples += 1;
        current.bytes = current.bytes.saturating_add(bytes);
        self.seen.add(&sample.key, &row.facts);
        current.metadata.add(row)?;
        self.counts.rows_end = position + 1;
        Ok(())
    }

    fn open(&mut self, side: usize) -> anyhow::Result<Current> {
        if !std::mem::replace(&mut self.has_begun, true) {
            lock(self.journal).begin(self.output)?;
        }
        let Side {
            output,
            next_number: number,
            ..
        } = self.sides[side];
        let mut metadata = MetadataWriter::create(output.metadata(number))?;
        for row in self.early.drain(..) {
            metadata.add(row)?;
        }
        Ok(Current {
            writer: ShardWriter::create(output.shard(number), &self.options)?,
            metadata,
            samples: 0,
            bytes: plan::shard_bytes(self.options.format),
        })
    }

    /// A shard is full: on with it, and with that of the other side.
    fn close(&mut self) -> anyhow::Result<()> {
        let mut full = Vec::with_capacity(self.sides.len());
        for (number, side) in self.sides.iter_mut().enumerate() {
            let Some(shard) = side.current.take() else {
                continue;
            };
            let counts = WholeShard {
                number: side.next_number,
                held_out: number > 0,
                rows_end: self.counts.rows_end,
                ..WholeShard::default()
            };
            side.next_number += 1;
            full.push(Full {
                shard,
                counts,
                output: side.output,
            });
        }
        // What was skipped is counted once, with the first.
        let Some(first) = full.first_mut() else {
            return Ok(());
        };
        first.counts.skipped = std::mem::take(&mut self.counts.skipped);
        first.counts.renamed_keys = std::mem::take(&mut self.counts.renamed_keys);
        let last = full.len() - 1;
        full[..last]
            .iter_mut()
            .for_each(|shard| shard.counts.has_more = true);
        self.closer.close(full)
    }

    /// Writes what is left. Returns what was skipped since the last shard, where there is no shard to
    /// count it with.
    pub(super) fn finish(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.close()?;
        self.closer.finish()?;
        Ok(self.counts.skipped)
    }
}

/// A shard that is full, and what was counted while it was filled.
struct Full<'a> {
    shard: Current,
    counts: WholeShard,
    output: &'a Output,
}

/// Closes full shards, one after the other, on a thread of its own.
struct Closer<'a> {
    /// `None` once that thread is to end.
    shards: Option<Sender<Vec<Full<'a>>>>,
    thread: Option<ScopedJoinHandle<'a, anyhow::Result<()>>>,
}

impl<'a> Closer<'a> {
    fn start(
        (output, dali_index): (&'a Output, bool),
        journal: &'a Mutex<Journal>,
        scope: &'a Scope<'a, '_>,
    ) -> anyhow::Result<Closer<'a>> {
        // One is closed, one waits, one is filled.
        let (shards, full) = channel::bounded::<Vec<Full<'a>>>(1);
        let thread = threads::spawn(scope, move || {
            for shards in full {
                let whole = shards.into_iter().map(|shard| close(shard, dali_index));
                let whole = whole.collect::<anyhow::Result<Vec<_>>>()?;
                lock(journal).add(output, whole)?;
            }
            Ok(())
        })?;
        Ok(Closer {
            shards: Some(shards),
            thread: Some(thread),
        })
    }

    fn close(&mut self, shard: Vec<Full<'a>>) -> anyhow::Result<()> {
        let shards = self.shards.as_ref();
        match shards.is_some_and(|shards| shards.send(shard).is_ok()) {
            true => Ok(()),
            // That thread has ended over an error, which this returns.
            false => self.finish(),
        }
    }

    /// Waits until all are closed.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.shards = None;
        match self.thread.take().map(ScopedJoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(anyhow::anyhow!("the thread that closes shards panicked")),
            None => Ok(()),
        }
    }
}

/// Gives a shard its name.
fn close(full: Full<'_>, dali_index: bool) -> anyhow::Result<WholeShard> {
    let Full {
        shard,
        counts,
        output,
    } = full;
    // Metadata first: a shard that is there has its metadata.
    shard.metadata.finish()?;
    let written = shard.writer.finish()?;
    if dali_index {
        let shard = ShardLocation::local(output.shard(counts.number));
        dali::write(&shard, &ReadOptions::default(), &Stop::default())?;
    }
    output
        .deliver(counts.number, written.index.is_some())
        .with_context(|| format!("shard {}", output.shown(counts.number)))?;
    Ok(WholeShard {
        samples: written.samples,
        captions: written.captions,
        file_bytes: written.file_bytes,
        indexes: u64::from(written.index.is_some()),
        ..counts
    })
}

pub(super) fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}
