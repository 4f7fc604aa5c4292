//! Takes finished samples in order and makes batches of them.

use std::sync::Arc;

use crossbeam::channel;

use super::queue::{Closed, QueueReceiver, QueueSender};
use super::state::LoaderState;
use super::stats::Meters;
use super::work::Work;
use crate::batch::{Batch, BufferPool, EpochRows, PooledBuffer};
use crate::config::{LoaderConfig, OnBad};
use crate::error::{PipelineError, SampleError, ShardError};
use crate::sample::DecodedSample;

/// One place of the order, on its way from the sequencer to collation.
pub(crate) enum Slot {
    /// A sample that a worker is busy with, or has finished.
    Pending(channel::Receiver<Result<DecodedSample, SampleError>>),
    /// The rows of the samples of an epoch, ahead of the first.
    Rows(Arc<EpochRows>),
    BadSample(SampleError),
    BadShard(ShardError),
    EndOfEpoch,
    /// The last epoch is over, or the sequencer cannot go on.
    End(Result<(), PipelineError>),
}

/// What the consumer receives.
pub(crate) enum Message {
    Batch(Box<Batch>),
    /// All epochs are over; the final books.
    End(Box<LoaderState>),
    Failed(PipelineError),
}

pub(crate) struct Collator {
    pub(crate) config: Arc<LoaderConfig>,
    pub(crate) work: Arc<Work>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) state: LoaderState,
}

impl Collator {
    /// Fills batches until the order ends, something fatal happens or nobody listens.
    pub(crate) fn run(mut self, slots: QueueReceiver<Slot>, batches: QueueSender<Message>) {
        let last = match self.fill_batches(&slots, &batches) {
            Ok(()) => Message::End(Box::new(self.state)),
            Err(Stop::Failed(error)) => Message::Failed(error),
            Err(Stop::Closed) => return,
        };
        // Nobody listening is the ordinary end of a loader that was dropped.
        let _ = batches.send(last, 0);
    }

    fn fill_batches(
        &mut self,
        slots: &QueueReceiver<Slot>,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        let died = |what: &str| PipelineError::Thread(format!("{what} died; this is a bug"));
        let mut batch: Option<Batch> = None;
        // The rows of the epoch, and how many of them are filled.
        let mut rows: Option<Arc<EpochRows>> = None;
        let mut filled = 0;
        loop {
            let slot = slots.recv().ok_or_else(|| died("the sequencer thread"))?;
            match slot {
                Slot::Pending(result) => {
                    let result = result.recv().map_err(|_| died("a decoding worker"))?;
                    let rows = rows.as_ref().ok_or_else(|| died("the order of an epoch"))?;
                    self.count_place();
                    match result {
                        Ok(sample) => {
                            let current = batch.take().unwrap_or_else(|| self.empty_batch());
                            batch = self.add(current, sample, rows, filled, batches)?;
                            filled += 1;
                        }
                        Err(error) => {
                            rows.count_bad();
                            self.bad_sample(error)?;
                        }
                    }
                }
                Slot::Rows(of_epoch) => {
                    rows = Some(of_epoch);
                    filled = 0;
                }
                Slot::BadSample(error) => {
                    self.count_place();
                    self.bad_sample(error)?;
                }
                Slot::BadShard(error) => {
                    self.state.position += 1;
                    self.state.counters.bad_shards += 1;
                    match self.config.on_bad_shard {
                        OnBad::Error => return Err(PipelineError::BadShard(error).into()),
                        OnBad::Warn => log::warn!("{error}; going on without the rest of it"),
                        OnBad::Skip => {}
                    }
                }
                Slot::EndOfEpoch => {
                    self.end_epoch(batch.take(), rows.take().as_deref(), batches)?
                }
                Slot::End(result) => return result.map_err(Stop::from),
            }
        }
    }

    fn count_place(&mut self) {
        self.state.position += 1;
        self.state.counters.read += 1;
    }

    fn bad_sample(&mut self, error: SampleError) -> Result<(), Stop> {
        *self.state.counters.skipped.entry(error.reason).or_insert(0) += 1;
        match self.config.on_bad_sample {
            OnBad::Error => return Err(PipelineError::BadSample(error).into()),
            OnBad::Warn => log::warn!("skipped {error}"),
            OnBad::Skip => {}
        }
        Ok(())
    }

    fn empty_batch(&self) -> Batch {
        Batch {
            pixels: PooledBuffer::none(self.pool.clone()),
            batch_size: 0,
            image_size: self.config.image_size,
            token_ids: Vec::new(),
            attention_mask: Vec::new(),
            text_len: self.config.text_len,
            caption_image: Vec::new(),
            captions: Vec::new(),
            ids: Vec::new(),
            epoch: self.state.epoch,
            index_in_epoch: self.state.batches,
            state: self.state.clone(),
        }
    }

    /// Adds a sample, whose pixels belong into row `at`; hands the batch on when that fills it.
    fn add(
        &mut self,
        mut batch: Batch,
        sample: DecodedSample,
        rows: &EpochRows,
        at: u64,
        batches: &QueueSender<Message>,
    ) -> Result<Option<Batch>, Stop> {
        self.meters.collate.time(|| {
            if let Some(spare) = rows.put(at, sample.pixels)? {
                self.work.recycle(spare);
            }
            batch.token_ids.extend_from_slice(&sample.token_ids);
            batch
                .attention_mask
                .extend_from_slice(&sample.attention_mask);
            let image = batch.batch_size as u32;
            batch
                .caption_image
                .extend(sample.captions.iter().map(|_| image));
            batch.captions.extend(sample.captions);
            batch.ids.push(sample.id);
            batch.batch_size += 1;
            Ok::<_, PipelineError>(())
        })?;
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
        batch.pixels = rows.finish_batch()?;
        self.state.batches += 1;
        self.state.counters.delivered += batch.batch_size as u64;
        batch.state = self.state.clone();
        batches
            .send(Message::Batch(Box::new(batch)), 0)
            .map_err(|Closed| Stop::Closed)
    }

    fn end_epoch(
        &mut self,
        rest: Option<Batch>,
        rows: Option<&EpochRows>,
        batches: &QueueSender<Message>,
    ) -> Result<(), Stop> {
        let mut left_over = 0;
        if let (Some(batch), Some(rows)) = (rest, rows) {
            if self.config.drop_last {
                left_over = batch.batch_size as u64;
                self.state.counters.dropped_last += left_over;
            } else {
                self.hand_on(batch, rows, batches)?;
            }
        }
        if self.state.batches == 0 {
            let counters = &self.state.counters;
            let mut reasons = String::new();
            for (reason, count) in &counters.skipped {
                reasons.push_str(&format!(", {count} skipped as {reason}"));
            }
            return Err(PipelineError::TooFewSamples(format!(
                "the shards hold {left_over} usable samples (of {}{reasons}), too few for one batch \
                 of {}; use more shards or a smaller batch_size",
                counters.read, self.config.batch_size
            ))
            .into());
        }
        self.state.epoch += 1;
        self.state.position = 0;
        self.state.batches = 0;
        Ok(())
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
