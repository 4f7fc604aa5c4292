//! Global steps and batch slots: puts the data sets' samples into the one order that all ranks share, and says
//! which of them are this rank's.

use std::collections::VecDeque;
use std::sync::Arc;

use super::position::{Event, FromSet, Item, PositionId, RowStart, Source};
use crate::error::{PipelineError, ShardError};
use crate::order::Mixture;
use crate::resume::BatchSlots;
use crate::resume::SetPosition;
use crate::words::counted;

/// What the order of a run needs beside its data sets.
pub(crate) struct MixOptions {
    pub(crate) slots: BatchSlots,
    /// Whether a partial last row of an epoch is dropped: whoever takes it otherwise sees to it.
    pub(crate) drop_last: bool,
    /// Whether an epoch without a whole row gives nothing.
    pub(crate) needs_whole_row: bool,
    /// Passes over the only data set; 0 means without end.
    pub(crate) epochs: u64,
    /// Rows of the run, if it had come to its last before.
    pub(crate) last_row: Option<u64>,
    /// Whether this rank reports what all ranks see.
    pub(crate) is_first_rank: bool,
    /// Whether the order ends with the last epoch. Where a partial row is dropped, several ranks go
    /// on until each has had as many batches as there are rows: what some skipped they take from the
    /// epoch after it.
    pub(crate) ends_with_epochs: bool,
}

pub(crate) struct Mixer {
    sources: Vec<Box<dyn Source>>,
    titles: Vec<String>,
    mixture: Mixture,
    options: MixOptions,
    row: u64,
    slot: u64,
    start: Arc<RowStart>,
    /// What this rank has of the present row, held back until the row is whole.
    held: Vec<Event<Item>>,
    /// Bad shards since the last position that was due.
    bad: Vec<(u32, ShardError)>,
    ready: VecDeque<Event<Item>>,
    /// Samples of each set's epoch so far, to notice an empty one.
    seen: Vec<u64>,
    rows_of_epoch: u64,
    failed: Option<PipelineError>,
}

impl Mixer {
    /// `sources` stand where row `row` begins.
    pub(crate) fn new(
        sources: Vec<(String, Box<dyn Source>)>,
        weights: &[f64],
        row: u64,
        taken: &[u64],
        options: MixOptions,
    ) -> Mixer {
        let (titles, sources): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
        let mut mixer = Mixer {
            // A set that is continued was not empty.
            seen: sources.iter().map(|source| source.position().1).collect(),
            rows_of_epoch: sources.first().map_or(0, |source| {
                source.position().1 / options.slots.count().max(1)
            }),
            sources,
            titles,
            mixture: Mixture::new(weights, taken),
            options,
            row,
            slot: 0,
            start: Arc::new(RowStart {
                row,
                sets: Vec::new(),
            }),
            held: Vec::new(),
            bad: Vec::new(),
            ready: VecDeque::new(),
            failed: None,
        };
        mixer.begin_row();
        let MixOptions { epochs, .. } = mixer.options;
        if let Some(source) = mixer.sources.first().filter(|_| epochs != 0) {
            if source.position().0 >= epochs {
                // All epochs were over before the run was resumed.
                let rows = mixer.options.last_row.unwrap_or(row);
                mixer.ready.push_back(Event::LastRow(rows));
            }
        }
        mixer
    }

    /// What this rank does next.
    ///
    /// # Errors
    /// [`PipelineError`] where a source cannot go on, or has no samples.
    pub(crate) fn next(&mut self) -> Result<Event<Item>, PipelineError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            self.advance()?;
        }
    }

    /// Whether the order ends with [`Event::LastRow`].
    pub(crate) fn ends_with_epochs(&self) -> bool {
        self.options.ends_with_epochs
    }

    fn begin_row(&mut self) {
        let sets = self
            .sources
            .iter()
            .zip(self.mixture.taken())
            .map(|(source, &taken)| {
                let (epoch, position) = source.position();
                SetPosition {
                    epoch,
                    position,
                    taken,
                }
            });
        self.start = Arc::new(RowStart {
            row: self.row,
            sets: sets.collect(),
        });
        self.slot = 0;
    }

    fn advance(&mut self) -> Result<(), PipelineError> {
        let set = self.mixture.next();
        let is_due = self.options.slots.is_due(self.row, self.slot);
        let source = &mut self.sources[set];
        let (epoch, _) = source.position();
        let set_number = set as u32;
        match source.next(is_due)? {
            FromSet::Position(item) => {
                self.seen[set] += 1;
                if is_due {
                    let item = item.ok_or_else(|| {
                        PipelineError::Thread("a position lacks its item; this is a bug".into())
                    })?;
                    self.hold_bad();
                    let id = PositionId {
                        start: self.start.clone(),
                        slot: self.slot,
                        set: set_number,
                        epoch,
                    };
                    self.held.push(Event::Position(id, item));
                } else if self.row < self.options.slots.resumed_until() {
                    // Whoever used this position before the run was resumed reported these.
                    self.bad.clear();
                }
                self.mixture.take(set);
                self.slot += 1;
                if self.slot == self.options.slots.count() {
                    self.end_row();
                }
            }
            FromSet::BadShard(error) => self.bad.push((set_number, error)),
            FromSet::EndOfEpoch => self.end_epoch(set, epoch)?,
        }
        Ok(())
    }

    fn hold_bad(&mut self) {
        for (set, error) in self.bad.drain(..) {
            let counts = self.options.is_first_rank;
            self.held.push(Event::BadShard(set, error, counts));
        }
    }

    fn end_row(&mut self) {
        self.ready.extend(self.held.drain(..));
        self.row += 1;
        self.rows_of_epoch += 1;
        self.begin_row();
    }

    fn end_epoch(&mut self, set: usize, epoch: u64) -> Result<(), PipelineError> {
        self.hold_bad();
        let set_number = set as u32;
        let samples = std::mem::take(&mut self.seen[set]);
        if self.sources.len() > 1 {
            // Sets follow each other within a row: nothing is left over where an epoch ends.
            if samples == 0 {
                return Err(PipelineError::TooFewSamples(format!(
                    "{} holds no samples",
                    self.titles[set]
                )));
            }
            self.held
                .push(Event::EndOfEpoch(set_number, self.start.clone()));
            return Ok(());
        }
        if self.slot > 0 && !self.options.drop_last {
            self.end_row();
        } else {
            let mut dropped = 0;
            for event in self.held.drain(..) {
                match event {
                    Event::Position(..) => dropped += 1,
                    event => self.ready.push_back(event),
                }
            }
            if dropped > 0 {
                self.ready.push_back(Event::Dropped(set_number, dropped));
            }
            self.begin_row();
        }
        let rows = std::mem::take(&mut self.rows_of_epoch);
        let has_too_few = self.options.needs_whole_row && samples < self.options.slots.count();
        if rows == 0 || has_too_few {
            // After what may explain it.
            self.failed = Some(self.too_few(set, samples));
            return Ok(());
        }
        self.ready
            .push_back(Event::EndOfEpoch(set_number, self.start.clone()));
        if self.options.epochs != 0 && epoch + 1 == self.options.epochs {
            self.ready.push_back(Event::LastRow(self.row));
        }
        Ok(())
    }

    fn too_few(&self, set: usize, samples: u64) -> PipelineError {
        PipelineError::TooFewSamples(format!(
            "{} hold {}, too few for one batch of {}; use more shards or a smaller batch_size",
            self.titles[set],
            counted(samples, "sample", "samples"),
            self.options.slots.count()
        ))
    }
}
