//! What a rank will see, by key.

use std::sync::Arc;

use super::open::OpenRun;
use super::tracker::Tracker;
use crate::error::PipelineError;
use crate::loader::plan::mix::Mixer;
use crate::loader::plan::position::{Event, Item};
use crate::loader::plan::sets::{Contents, OpenSet};
use crate::resume::LoaderState;
use crate::stop::Stop;

/// A batch, by the keys of its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderBatch {
    /// Number of the batch in the run, from 0.
    pub step: u64,
    /// `[B]`: shard and key of each sample.
    pub keys: Vec<(Arc<str>, String)>,
    /// The state after it.
    pub state: LoaderState,
}

/// Iterates over the batches of a run without decoding anything.
///
/// Bad samples are in it, since most are known only when they are decoded: a loader passes over them,
/// and what follows moves up.
pub struct Listing {
    mixer: Mixer,
    tracker: Tracker,
    sets: Vec<Arc<OpenSet>>,
    batch_size: usize,
    drop_last: bool,
    ends_with_epochs: bool,
    epochs_end_batches: bool,
    rows: Option<u64>,
    keys: Vec<(Arc<str>, String)>,
    in_batch: Vec<u32>,
    stop: Stop,
    is_over: bool,
}

impl Listing {
    pub(in crate::loader) fn start(run: OpenRun) -> Result<Listing, PipelineError> {
        Ok(Listing {
            mixer: run.mixer()?,
            tracker: run.tracker(),
            ends_with_epochs: run.ends_with_epochs(),
            epochs_end_batches: run.epochs_end_batches(),
            batch_size: run.config.batch_size,
            drop_last: run.config.drop_last,
            rows: None,
            keys: Vec::new(),
            in_batch: Vec::new(),
            sets: run.sets,
            stop: run.stop,
            is_over: false,
        })
    }

    /// The next batch; `None` when all epochs are over.
    ///
    /// # Errors
    /// The [`PipelineError`] that ended the order, once; `None` after that.
    pub fn next_batch(&mut self) -> Result<Option<OrderBatch>, PipelineError> {
        if self.is_over || self.rows.is_some_and(|rows| self.tracker.has_done(rows)) {
            return Ok(None);
        }
        let next = self.advance();
        if next.is_err() {
            self.is_over = true;
        }
        next
    }

    fn advance(&mut self) -> Result<Option<OrderBatch>, PipelineError> {
        loop {
            match self.mixer.next()? {
                Event::Position(id, item) => {
                    let key = match item {
                        Item::Read(Ok(sample)) => (sample.id.shard, sample.id.key),
                        Item::Read(Err(error)) => (error.id.shard, error.id.key),
                        Item::Unread { shard, sample } => {
                            self.key(id.set as usize, shard, sample)?
                        }
                    };
                    self.in_batch.push(id.set);
                    self.tracker.good(id);
                    self.keys.push(key);
                    if self.keys.len() == self.batch_size {
                        return Ok(Some(self.batch()));
                    }
                }
                Event::BadShard(set, error, counts) => {
                    self.tracker.bad_shard(set, error, counts)?;
                }
                Event::Dropped(set, places) => self.tracker.dropped(set, places),
                Event::EndOfEpoch(_, next) => {
                    if !self.epochs_end_batches {
                        continue;
                    }
                    self.tracker.end_epoch(&next);
                    let rest = (!self.drop_last && !self.keys.is_empty()).then(|| self.batch());
                    self.keys.clear();
                    self.tracker.left_over(self.in_batch.drain(..));
                    if rest.is_some() {
                        return Ok(rest);
                    }
                }
                Event::LastRow(rows) => {
                    if self.ends_with_epochs || self.tracker.has_done(rows) {
                        self.is_over = true;
                        return Ok(None);
                    }
                    self.tracker.last_row(rows);
                    self.rows = Some(rows);
                }
            }
        }
    }

    fn key(
        &self,
        set: usize,
        shard: u32,
        sample: u32,
    ) -> Result<(Arc<str>, String), PipelineError> {
        let set = &self.sets[set];
        let name = &set.shards[shard as usize].name;
        let key = match &set.contents {
            Contents::Indexed(indices) => {
                let location = &set.shards[shard as usize];
                let index = &indices[shard as usize];
                let key = index.key(location, sample, &self.stop);
                key.map_err(PipelineError::Index)?
            }
            Contents::Stream(_) => String::new(), // Streams read what they list.
        };
        Ok((name.clone(), key))
    }

    fn batch(&mut self) -> OrderBatch {
        let step = self.tracker.batches();
        let keys = std::mem::take(&mut self.keys);
        let state = self.tracker.batch(self.in_batch.drain(..));
        OrderBatch { step, keys, state }
    }
}

impl Iterator for Listing {
    type Item = Result<OrderBatch, PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.stop.set();
    }
}
