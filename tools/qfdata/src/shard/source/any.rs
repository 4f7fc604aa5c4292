//! The rows of an input, whatever it is.

use std::ops::Range;

use qf_pipeline::shard::arrow::CaptionType;
use qf_pipeline::stop::Stop;

use super::super::plan;
use super::super::row::Give;
use super::list::List;
use super::{parquet, shards, spool};

/// The rows of an input.
pub(in super::super) enum Source {
    List(List),
    Parquet(parquet::Files),
    Shards(shards::Shards),
    Spool(spool::Spool),
}

impl Source {
    /// The number of rows, where it is known before they are read.
    pub(in super::super) fn rows(&self) -> Option<u64> {
        match self {
            Source::List(list) => Some(list.rows.len() as u64),
            Source::Parquet(files) => Some(files.rows()),
            Source::Shards(_) => None,
            Source::Spool(spool) => Some(spool.rows()),
        }
    }

    /// The number of rows; reads shards to count theirs.
    ///
    /// # Errors
    /// Those of reading.
    pub(in super::super) fn count(&self, stop: &Stop) -> anyhow::Result<u64> {
        if let Some(rows) = self.rows() {
            return Ok(rows);
        }
        let mut rows = 0;
        self.read(0..u64::MAX, stop, &mut |_| {
            rows += 1;
            stop.check()?;
            Ok(true)
        })?;
        Ok(rows)
    }

    /// Reads rows `range` in order; up to the end where that comes first.
    ///
    /// # Errors
    /// What cannot be read, and errors of `give`.
    pub(in super::super) fn read(
        &self,
        range: Range<u64>,
        stop: &Stop,
        give: Give<'_>,
    ) -> anyhow::Result<()> {
        match self {
            Source::List(list) => list.read(range, give),
            Source::Parquet(files) => files.read(range, give),
            Source::Shards(shards) => shards.read(range, stop, give),
            Source::Spool(spool) => spool.read(range, give),
        }
    }

    /// What the user should know of how the input is read.
    pub(in super::super) fn notes(&self) -> &[String] {
        match self {
            Source::List(list) => &list.notes,
            Source::Parquet(files) => &files.notes,
            Source::Shards(shards) => &shards.notes,
            Source::Spool(spool) => &spool.facts.notes,
        }
    }

    pub(super) fn add_note(&mut self, note: String) {
        match self {
            Source::List(list) => list.notes.push(note),
            Source::Parquet(files) => files.notes.push(note),
            Source::Shards(shards) => shards.notes.push(note),
            Source::Spool(spool) => spool.facts.notes.push(note),
        }
    }

    /// Changes when the input does: names, sizes and times of its files.
    pub(in super::super) fn fingerprint(&self) -> &str {
        match self {
            Source::List(list) => &list.fingerprint,
            Source::Parquet(files) => &files.fingerprint,
            Source::Shards(shards) => &shards.fingerprint,
            Source::Spool(spool) => &spool.facts.fingerprint,
        }
    }

    /// Whether two rows may have one key.
    pub(in super::super) fn repeats_keys(&self) -> bool {
        match self {
            Source::List(_) => false,
            Source::Parquet(files) => files.repeats_keys(),
            Source::Shards(_) => true,
            Source::Spool(spool) => spool.facts.repeats_keys,
        }
    }

    /// One type for the whole data set. Reads caption files, where there are any.
    pub(in super::super) fn caption_type(&self) -> CaptionType {
        match self {
            Source::List(list) => list.caption_type(),
            Source::Parquet(files) => files.caption_type(),
            Source::Shards(_) => CaptionType::List,
            Source::Spool(spool) => spool.facts.caption_type,
        }
    }

    /// Whether images are downloaded.
    pub(in super::super) fn has_urls(&self) -> bool {
        match self {
            Source::List(list) => list.has_urls(),
            Source::Parquet(files) => files.has_urls(),
            Source::Shards(_) => false,
            Source::Spool(spool) => spool.facts.has_urls,
        }
    }

    /// The same rows in an order drawn from `seed`. What is not a list goes through a temporary file in
    /// `folder`, as large as the input.
    ///
    /// # Errors
    /// Those of reading, and of the temporary file.
    pub(in super::super) fn shuffled(
        self,
        seed: u64,
        folder: &std::path::Path,
        stop: &Stop,
    ) -> anyhow::Result<Source> {
        Ok(match self {
            Source::List(mut list) => {
                plan::shuffle(&mut list.rows, seed);
                Source::List(list)
            }
            other => {
                let facts = spool::Facts {
                    notes: other.notes().to_vec(),
                    fingerprint: other.fingerprint().to_owned(),
                    repeats_keys: other.repeats_keys(),
                    caption_type: other.caption_type(),
                    has_urls: other.has_urls(),
                };
                let mut spool = spool::Spool::of(facts, folder, &mut |give| {
                    other.read(0..u64::MAX, stop, &mut |row| {
                        stop.check()?;
                        give(row)
                    })
                })?;
                spool.shuffle(seed);
                Source::Spool(spool)
            }
        })
    }
}
