//! Takes finished samples in order and makes batches of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::open::OpenRun;
use super::pending::{Finished, Pending};
use super::reorder_buffer::ReorderReceiver;
use super::tracker::Tracker;
use super::work::Work;
use crate::batch::{Batch, BufferPool, DecodedSample, EpochRows, PooledBuffer};
use crate::config::LoaderConfig;
use crate::error::PipelineError;
use crate::loader::meters::queue::{Closed, QueueSender};
use crate::loader::meters::stats::Meters;
use crate::loader::plan::position::{Event, PositionId, RowStart};
use crate::resume::LoaderState;
use crate::text::TokenRows;
use crate::words::counted;

/// What the consumer receives.
pub(crate) enum Message {
    Batch(Box<Batch>),
    /// All epochs are over; the final counters.
    End(Box<LoaderState>),
    Failed(PipelineError),
}

/// What a data set gave this rank since its epoch began.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    seen: u64,
    good: u64,
    /// Epochs in a row of which this rank had samples, all of them bad.
    epochs_without_samples: u32,
}

impl Progress {
    /// A run that goes on in the middle of an epoch had `good` samples before.
    fn new(good: u64) -> Progress {
        Progress {
            seen: good,
            good,
            epochs_without_samples: 0,
        }
    }
}

/// The batch that fills.
#[derive(Default)]
struct Filling {
    batch: Option<Batch>,
    /// The rows of this batch and of those after it, and how many of them are filled.
    rows: Option<Arc<EpochRows>>,
    filled: u64,
}

pub(crate) struct Collator {
    config: Arc<LoaderConfig>,
    /// Whether the run ends with the last epoch, or after as many batches as it has rows.
    ends_with_epochs: bool,
    /// Whether a batch never spans epochs.
    epochs_end_batches: bool,
    work: Arc<Work>,
    meters: Arc<Meters>,
    pool: Arc<BufferPool>,
    tracker: Tracker,
    /// The state that the run begins with.
    start: LoaderState,
    /// What each data set gave.
    progress: Vec<Progress>,
    /// Data sets of the samples of the batch that fills.
    sets: Vec<u32>,
    batches_of_epoch: u64,
    /// Rows of the whole run, once known.
    rows: Option<u64>,
}

impl Collator {
    /// The collator of a run, whose batches lie in `pool`.
    pub(crate) fn new(run: &OpenRun, work: Arc<Work>, pool: Arc<BufferPool>) -> Collator {
        // An epoch that was begun before counts as one that gives something.
        let resumed = u64::from(run.state.is_under_way());
        Collator {
            config: run.config.clone(),
            ends_with_epochs: run.ends_with_epochs(),
            epochs_end_batches: run.epochs_end_batches(),
            work,
            meters: run.meters.clone(),
            pool,
            tracker: run.tracker(),
            start: run.state.clone(),
            progress: vec![Progress::new(resumed); run.sets.len()],
            sets: Vec::new(),
            batches_of_epoch: resumed,
            rows: None,
        }
    }

    /// Fills batches until the order ends, something fatal happens or nobody listens.
    pub(crate) fn run(mut self, queue: ReorderReceiver, batches: QueueSender<Message>) {
        let last = match self.fill_batches(&queue, &batches) {
            Ok(()) => Message::End(Box::new(self.tracker.state())),
            Err(Stop::Failed(error)) => Message::Failed(error),
            Err(Stop::Closed) => return,
        };
        // Nobody listening is the ordinary end of a loader that was dropped.
        let _ = batches.send(last, 0);
    }

    fn fill_batches(
        &mut self,
        queue: &ReorderReceiver,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        let mut filling = Filling::default();
        let mut taken = VecDeque::new();
        loop {
            if self.rows.is_some_and(|rows| self.tracker.has_done(rows)) {
                return Ok(());
            }
            if taken.is_empty() {
                let has = filling.batch.as_ref().map_or(0, |batch| batch.batch_size);
                queue.take(self.config.batch_size - has, &mut taken);
            }
            let event = taken
                .pop_front()
                .ok_or_else(|| died("the sequencer thread"))??;
            match event {
                Event::Position(id, Pending::InRow(rows, finished)) => {
                    let finished = finished.ok_or_else(|| died("a decoding worker"))?;
                    self.position(id, &rows, finished, &mut filling, batches)?;
                }
                Event::Position(id, Pending::Unreadable(error)) => {
                    self.saw(id.set, 0);
                    self.tracker.bad_sample(id, error)?;
                }
                Event::BadShard(set, error, counts) => {
                    self.tracker.bad_shard(set, error, counts)?;
                }
                Event::Dropped(set, positions) => self.tracker.dropped(set, positions),
                Event::EndOfEpoch(set, next) => {
                    if self.epochs_end_batches {
                        self.end_batches(&next, &mut filling, batches)?;
                    }
                    self.end_epoch(set)?;
                }
                Event::LastRow(_) if self.ends_with_epochs => return Ok(()),
                Event::LastRow(of_run) => {
                    self.tracker.last_row(of_run);
                    self.rows = Some(of_run);
                }
            }
        }
    }

    /// Takes in what became of a sample that has a row among `rows`.
    fn position(
        &mut self,
        id: PositionId,
        rows: &Arc<EpochRows>,
        finished: Finished,
        filling: &mut Filling,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        if !filling
            .rows
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, rows))
        {
            filling.rows = Some(rows.clone());
            filling.filled = 0;
        }
        match finished {
            Ok(sample) => {
                let batch = filling.batch.take();
                let batch = batch.unwrap_or_else(|| self.empty_batch(&id));
                filling.batch = self.add(batch, id, sample, rows, filling.filled, batches)?;
                filling.filled += 1;
            }
            Err(error) => {
                rows.count_bad();
                self.saw(id.set, 0);
                self.tracker.bad_sample(id, error)?;
            }
        }
        Ok(())
    }

    /// Ends the epoch of a loader whose batches do not span epochs: the rest is a batch, or is left over.
    fn end_batches(
        &mut self,
        next: &RowStart,
        filling: &mut Filling,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        self.tracker.end_epoch(next);
        let rest = filling.batch.take().zip(filling.rows.take());
        if let Some((batch, rows)) = rest.filter(|_| !self.config.drop_last) {
            self.hand_on(batch, &rows, batches)?;
        }
        self.tracker.left_over(self.sets.drain(..));
        Ok(())
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
            image_ids: Vec::new(),
            members: Vec::new(),
            epoch: first.epoch,
            state: self.start.clone(),
        }
    }

    /// Adds a sample, whose pixels belong into row `at`; hands the batch on when that fills it.
    fn add(
        &mut self,
        mut batch: Batch,
        id: PositionId,
        sample: DecodedSample,
        rows: &EpochRows,
        at: u64,
        batches: &QueueSender<Message>,
    ) -> Result<Option<Batch>, Stop> {
        let set = id.set;
        self.tracker.good(id);
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
        batch.image_ids.extend(sample.image_id);
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

fn died(what: &str) -> PipelineError {
    PipelineError::Thread(format!("{what} died; this is a bug"))
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
