//! The order of a run, with its samples: plans positions, has those of indexed shards fetched ahead, and
//! emits each with its sample.

use std::collections::VecDeque;
use std::sync::Arc;

use super::pending::Pending;
use super::reorder_buffer::ReorderSender;
use super::work::Work;
use super::workers::Workers;
use crate::batch::{BufferPool, EpochRows};
use crate::error::PipelineError;
use crate::loader::meters::queue::Closed;
use crate::loader::plan::mix::Mixer;
use crate::loader::plan::position::{Event, Item, Sample};
use crate::loader::read::fetch::Fetcher;
use crate::sample::EncodedSample;

/// Emits every position of this rank.
pub(crate) struct Sequencer {
    mixer: Mixer,
    /// Where any data set is indexed.
    fetcher: Option<Fetcher>,
    /// Events whose turn comes, with `Item::Unread` for what the fetcher has.
    planned: VecDeque<Event<Item>>,
    /// Bytes of samples among them that are read already.
    read_bytes: usize,
    max_read_bytes: usize,
    ready: VecDeque<Event<Sample>>,
    is_over: bool,
}

impl Sequencer {
    /// `max_read_bytes` bounds the samples of sets without an index that wait among those that are
    /// fetched.
    pub(crate) fn new(mixer: Mixer, fetcher: Option<Fetcher>, max_read_bytes: usize) -> Sequencer {
        Sequencer {
            mixer,
            fetcher,
            planned: VecDeque::new(),
            read_bytes: 0,
            max_read_bytes,
            ready: VecDeque::new(),
            is_over: false,
        }
    }

    /// Whether nothing comes after what was emitted.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over && self.planned.is_empty() && self.ready.is_empty()
    }

    /// What this rank does next; the last of a run with a fixed number of epochs is
    /// [`Event::LastRow`] on one rank, and on several they go on after it.
    ///
    /// # Errors
    /// [`PipelineError`] where the order cannot go on.
    pub(crate) fn next(&mut self) -> Result<Event<Sample>, PipelineError> {
        if let Some(event) = self.ready.pop_front() {
            return Ok(event);
        }
        self.plan()?;
        let Some(event) = self.planned.pop_front() else {
            return Err(PipelineError::Thread(
                "the order went on after its end; this is a bug".into(),
            ));
        };
        let mut bad_shard = None;
        let event = event.try_map(|id, item| match item {
            Item::Read(sample) => {
                self.read_bytes -= read_bytes(&sample);
                Ok(sample)
            }
            Item::Unread { .. } => {
                let fetched = self.fetcher.as_mut().ok_or_else(no_fetcher)?.take()?;
                bad_shard = (fetched.bad_shard).map(|error| Event::BadShard(id.set, error, true));
                Ok(fetched.sample)
            }
        })?;
        Ok(match bad_shard {
            Some(bad_shard) => {
                self.ready.push_back(event);
                bad_shard
            }
            None => event,
        })
    }

    /// Plans far enough ahead; at least one event, until the end.
    fn plan(&mut self) -> Result<(), PipelineError> {
        loop {
            let wants_more = match &self.fetcher {
                Some(fetcher) => self.read_bytes <= self.max_read_bytes && fetcher.wants_more(),
                None => false,
            };
            if self.is_over || !(self.planned.is_empty() || wants_more) {
                return Ok(());
            }
            let event = self.mixer.next()?;
            match &event {
                Event::Position(id, Item::Unread { shard, sample }) => {
                    let Some(fetcher) = &mut self.fetcher else {
                        return Err(no_fetcher());
                    };
                    fetcher.plan(id.set, *shard, *sample);
                }
                Event::Position(_, Item::Read(sample)) => self.read_bytes += read_bytes(sample),
                Event::LastRow(_) => self.is_over = self.mixer.ends_with_epochs(),
                _ => {}
            }
            self.planned.push_back(event);
        }
    }
}

fn read_bytes(sample: &Sample) -> usize {
    sample.as_ref().map_or(0, EncodedSample::payload_bytes)
}

fn no_fetcher() -> PipelineError {
    PipelineError::Thread("an indexed place without a fetcher; this is a bug".into())
}

/// Gives every sample of the order a row of its batch, a place in the reorder buffer, and a worker.
pub(crate) struct Dispatcher {
    pub(crate) sequencer: Sequencer,
    pub(crate) workers: Workers,
    pub(crate) work: Arc<Work>,
    pub(crate) buffers: Arc<BufferPool>,
    pub(crate) batch_size: usize,
    /// Whether a batch never spans epochs.
    pub(crate) epochs_end_batches: bool,
    /// The rows of the batches that fill, and how many of them are given.
    pub(crate) rows: Option<Arc<EpochRows>>,
    pub(crate) given: u64,
}

/// Why no more events come.
enum Ended {
    /// All came, or nobody listens: the ordinary end of a loader that was dropped.
    Quietly,
    Failed(PipelineError),
}

impl From<PipelineError> for Ended {
    fn from(error: PipelineError) -> Self {
        Ended::Failed(error)
    }
}

impl From<Closed> for Ended {
    fn from(_: Closed) -> Self {
        Ended::Quietly
    }
}

impl Dispatcher {
    /// Dispatches until the order ends, something fatal happens or nobody listens.
    pub(crate) fn run(mut self, queue: &ReorderSender) {
        loop {
            match self.dispatch_next(queue) {
                Ok(()) => {}
                Err(Ended::Quietly) => return,
                Err(Ended::Failed(error)) => {
                    let _ = queue.send(Err(error));
                    return;
                }
            }
        }
    }

    fn dispatch_next(&mut self, queue: &ReorderSender) -> Result<(), Ended> {
        let event = self.sequencer.next()?;
        let is_last = matches!(event, Event::LastRow(_)) && self.sequencer.is_over();
        if self.epochs_end_batches && matches!(event, Event::EndOfEpoch(..)) {
            // What is left of the epoch becomes a batch of its own.
            self.rows = None;
            self.given = 0;
        }
        let mut job = None;
        let event = event.try_map(|id, sample| {
            let sample = match sample {
                Ok(sample) => sample,
                Err(error) => return Ok(Pending::Unreadable(error)),
            };
            let new_rows = || Arc::new(EpochRows::new(self.buffers.clone(), self.batch_size));
            let rows = self.rows.get_or_insert_with(new_rows);
            let row = rows.give(self.given)?;
            self.given += 1;
            job = Some((sample, id.epoch, row));
            Ok(Pending::InRow(rows.clone(), None))
        })?;
        match job {
            None => queue.send(Ok(event))?,
            Some((sample, epoch, row)) => {
                let bytes = sample.payload_bytes() + self.work.image_len();
                let ticket = queue.send_pending(Ok(event), bytes)?;
                let work = self.work.clone();
                self.workers.run(move || {
                    if ticket.is_wanted() {
                        ticket.finish(work.process(sample, epoch, row));
                    }
                });
            }
        }
        match is_last {
            true => Err(Ended::Quietly),
            false => Ok(()),
        }
    }
}
