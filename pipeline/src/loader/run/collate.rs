//! Takes finished samples in order and makes batches of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::reorder_buffer::ReorderReceiver;
use super::tracker::Tracker;
use super::work::Work;
use crate::batch::{Batch, BufferPool, DecodedSample, EpochRows, PooledBuffer};
use crate::config::LoaderConfig;
use crate::error::{PipelineError, SampleError, ShardError};
use crate::loader::meters::queue::{Closed, QueueSender};
use crate::loader::meters::stats::Meters;
use crate::loader::plan::position::{PositionId, RowStart};
use crate::resume::LoaderState;
use crate::text::TokenRows;
use crate::words::counted;

/// What a worker makes of a sample.
pub(crate) type Finished = Result<DecodedSample, SampleError>;

/// One position of the order, on its way from the sequencer to collation.
pub(crate) enum Slot {
    /// A sample, and what a worker made of it once it has; nothing, if the worker died.
    Sample(PositionId, Option<Finished>),
    /// The rows of the samples that follow, ahead of the first.
    Rows(Arc<EpochRows>),
    BadSample(PositionId, SampleError),
    BadShard(u32, ShardError, bool),
    /// Positions at the end of an epoch that are not used.
    Dropped(u32, u64),
    /// An epoch of this set is over; what comes next begins there.
    EndOfEpoch(u32, Arc<RowStart>),
    /// All epochs are over, after this many rows of the run.
    LastRow(u64),
    /// The sequencer cannot go on.
    Failed(PipelineError),
}

/// What the consumer receives.
pub(crate) enum Message {
    Batch(Box<Batch>),
    /// All epochs are over; the final counters.
    End(Box<LoaderState>),
    Failed(PipelineError),
}

/// What a data set gave this rank since its epoch began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    seen: u64,
    good: u64,
    /// Epochs in a row of which this rank had samples, all of them bad.
    epochs_without_samples: u32,
}

impl Progress {
    /// A run that goes on in the middle of an epoch had `good` samples before.
    pub(crate) fn new(good: u64) -> Progress {
        Progress {
            seen: good,
            good,
            epochs_without_samples: 0,
        }
    }
}

pub(crate) struct Collator {
    pub(crate) config: Arc<LoaderConfig>,
    /// Whether the run ends with the last epoch, or after as many batches as it has rows.
    pub(crate) ends_with_epochs: bool,
    /// Whether a batch never spans epochs.
    pub(crate) epochs_end_batches: bool,
    pub(crate) work: Arc<Work>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) tracker: Tracker,
    /// The state that the run begins with.
    pub(crate) start: LoaderState,
    /// What each data set gave.
    pub(crate) progress: Vec<Progress>,
    /// Data sets of the samples of the batch that fills.
    pub(crate) sets: Vec<u32>,
    pub(crate) batches_of_epoch: u64,
    /// Rows of the whole run, once known.
    pub(crate) rows: Option<u64>,
}

impl Collator {
    /// Fills batches until the order ends, something fatal happens or nobody listens.
    pub(crate) fn run(mut self, slots: ReorderReceiver, batches: QueueSender<Message>) {
        let last = match self.fill_batches(&slots, &batches) {
            Ok(()) => Message::End(Box::new(self.tracker.state())),
            Err(Stop::Failed(error)) => Message::Failed(error),
            Err(Stop::Closed) => return,
        };
        // Nobody listening is the ordinary end of a loader that was dropped.
        let _ = batches.send(last, 0);
    }

    fn fill_batches(
        &mut self,
        slots: &ReorderReceiver,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        let died = |what: &str| PipelineError::Thread(format!("{what} died; this is a bug"));
        let mut batch: Option<Batch> = None;
        // The rows of batches, and how many of them are filled.
        let mut rows: Option<Arc<EpochRows>> = None;
        let mut filled = 0;
        let mut taken = VecDeque::new();
        loop {
            if self.rows.is_some_and(|rows| self.tracker.has_done(rows)) {
                return Ok(());
            }
            if taken.is_empty() {
                let has = batch.as_ref().map_or(0, |batch| batch.batch_size);
                slots.take(self.config.batch_size - has, &mut taken);
            }
            let slot = taken.pop_front();
            match slot.ok_or_else(|| died("the sequencer thread"))? {
                Slot::Sample(place, result) => {
                    let result = result.ok_or_else(|| died("a decoding worker"))?;
                    let rows = rows.as_ref().ok_or_else(|| died("the order of an epoch"))?;
                    match result {
                        Ok(sample) => {
                            let current = batch.take().unwrap_or_else(|| self.empty_batch(&place));
                            batch = self.add(current, place, sample, rows, filled, batches)?;
                            filled += 1;
                        }
                        Err(error) => {
                            rows.count_bad();
                            self.saw(place.set, 0);
                            self.tracker.bad_sample(place, error)?;
                        }
                    }
                }
                Slot::Rows(new) => {
                    rows = Some(new);
                    filled = 0;
                }
                Slot::BadSample(place, error) => {
                    self.saw(place.set, 0);
                    self.tracker.bad_sample(place, error)?;
                }
                Slot::BadShard(set, error, counts) => {
                    self.tracker.bad_shard(set, error, counts)?;
                }
                Slot::Dropped(set, places) => self.tracker.dropped(set, places),
                Slot::EndOfEpoch(set, next) => {
                    if self.epochs_end_batches {
                        self.tracker.end_epoch(&next);
                        let rest = batch.take().zip(rows.take());
                        if let Some((batch, rows)) = rest.filter(|_| !self.config.drop_last) {
                            self.hand_on(batch, &rows, batches)?;
                        }
                        self.tracker.left_over(self.sets.drain(..));
                    }
                    self.end_epoch(set)?;
                }
                Slot::LastRow(of_run) => {
                    if self.ends_with_epochs {
                        return Ok(());
                    }
                    self.tracker.last_row(of_run);
                    self.rows = Some(of_run);
                }
                Slot::Failed(error) => return Err(error.into()),
            }
        }
    }

    fn empty_batch(&self, first: &PositionId) -> Batch {
        Batch {
            pixels: PooledBuffer::none(self.pool.clone()),
            batch_size: 0,
            image_size: self.config.image_size,
            tokens: TokenRows::with_capacity(self.config.text_len, self.config.batch_size),
            caption_image: Vec::new(),
            captions: Vec::new(),
            ids: Vec::new(),
            stored_captions: Vec::new(),
            views: Vec::new(),
            members: Vec::new(),
            epoch: first.epoch,
            state: self.start.clone(),
        }
    }

    /// Adds a sample, whose pixels belong into row `at`; hands the batch on when that fills it.
    fn add(
        &mut self,
        mut batch: Batch,
        place: PositionId,
        sample: DecodedSample,
        rows: &EpochRows,
        at: u64,
        batches: &QueueSender<Message>,
    ) -> Result<Option<Batch>, Stop> {
        let set = place.set;
        self.tracker.good(place);
        self.sets.push(set);
        self.saw(set, 1);
        let start = Instant::now();
        let bytes = self.work.image_len() as u64;
        if let Some(spare) = rows.put(at, sample.pixels)? {
            self.work.recycle(spare);
        }
        batch.tokens.append(&sample.tokens);
        let image = batch.batch_size as u32;
        batch
            .caption_image
            .extend(sample.captions.iter().map(|_| image));
        batch.captions.extend(sample.captions);
        batch.stored_captions.extend(sample.stored_captions);
        batch.views.push(sample.view);
        batch.members.push(sample.members);
        batch.batch_size += 1;
        let collate = &self.meters.collate;
        collate.add_sample(&sample.id, bytes, start, start.elapsed());
        batch.ids.push(sample.id);
        if batch.batch_size < self.config.batch_size {
            return Ok(Some(batch));
        }
        self.hand_on(batch, rows, batches)?;
        Ok(None)
    }

    fn hand_on(
        &mut self,
        mut batch: Batch,
        rows: &EpochRows,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        let span = self.meters.span("hand over batch");
        batch.pixels = rows.finish_batch()?;
        batch.state = self.tracker.batch(self.sets.drain(..));
        self.batches_of_epoch += 1;
        let images = batch.batch_size as u64;
        let sent = batches.send(Message::Batch(Box::new(batch)), 0);
        if let Some(span) = span {
            span.end(&[("images", images.into())]);
        }
        sent.map_err(|Closed| Stop::Closed)
    }

    fn saw(&mut self, set: u32, good: u64) {
        if let Some(progress) = self.progress.get_mut(set as usize) {
            progress.seen += 1;
            progress.good += good;
        }
    }

    /// Notices epochs that give nothing: those after them would not either. Where batches span
    /// epochs a rank may have seen little of a data set by chance, so one such epoch is forgiven.
    fn end_epoch(&mut self, set: u32) -> Result<(), Stop> {
        let batches = std::mem::take(&mut self.batches_of_epoch);
        let Some(progress) = self.progress.get_mut(set as usize) else {
            return Ok(());
        };
        let Progress { seen, good, .. } = *progress;
        progress.epochs_without_samples = match (seen, good) {
            (0, _) => progress.epochs_without_samples,
            (_, 0) => progress.epochs_without_samples + 1,
            _ => 0,
        };
        (progress.seen, progress.good) = (0, 0);
        let gives = match self.epochs_end_batches {
            true => batches > 0,
            false => progress.epochs_without_samples < 2,
        };
        if gives {
            return Ok(());
        }
        let counters = self.tracker.counters();
        let mut reasons = String::new();
        for (reason, count) in &counters.skipped {
            reasons.push_str(&format!(", {count} skipped as {reason}"));
        }
        Err(PipelineError::TooFewSamples(format!(
            "the shards hold {} (of {}{reasons}), too few for one batch of {}; use more shards or a \
             smaller batch_size",
            counted(good, "usable sample", "usable samples"),
            counters.read, self.config.batch_size
        ))
        .into())
    }
}

enum Stop {
    Closed,
    Failed(PipelineError),
}

impl From<PipelineError> for Stop {
    fn from(error: PipelineError) -> Self {
        Stop::Failed(error)
    }
}
