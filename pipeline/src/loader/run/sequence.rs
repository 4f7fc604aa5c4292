//! The order of a run, with its samples: plans positions, has those of indexed shards fetched ahead, and
//! emits each with its sample.

use std::collections::VecDeque;

use super::collate::Slot;
use super::reorder_buffer::ReorderSender;
use super::work::Work;
use super::workers::Workers;
use crate::batch::{BufferPool, EpochRows};
use crate::config::LoaderConfig;
use crate::error::{PipelineError, SampleError};
use crate::loader::meters::queue::Closed;
use crate::loader::plan::mix::Mixer;
use crate::loader::plan::position::{Event, Item};
use crate::loader::read::fetch::Fetcher;
use crate::sample::EncodedSample;
use std::sync::Arc;

/// A sample, or why there is none.
pub(crate) type Sample = Result<EncodedSample, SampleError>;

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
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.plan()?;
            let Some(event) = self.planned.pop_front() else {
                return Err(PipelineError::Thread(
                    "the order went on after its end; this is a bug".into(),
                ));
            };
            let event = match event {
                Event::Position(id, Item::Read(sample)) => {
                    self.read_bytes -= read_bytes(&sample);
                    Event::Position(id, sample)
                }
                Event::Position(id, Item::Unread { .. }) => {
                    let Some(fetcher) = &mut self.fetcher else {
                        return Err(no_fetcher());
                    };
                    let fetched = fetcher.take()?;
                    let set = id.set;
                    let place = Event::Position(id, fetched.sample);
                    match fetched.bad_shard {
                        Some(error) => {
                            self.ready.push_back(place);
                            Event::BadShard(set, error, true)
                        }
                        None => place,
                    }
                }
                Event::Position(_, Item::Skipped) => continue, // Never due, so never emitted.
                Event::BadShard(set, error, counts) => Event::BadShard(set, error, counts),
                Event::Dropped(set, places) => Event::Dropped(set, places),
                Event::EndOfEpoch(set, next) => Event::EndOfEpoch(set, next),
                Event::LastRow(row) => Event::LastRow(row),
            };
            return Ok(event);
        }
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

/// Gives every position of the order a slot, and its sample to a worker with the row it belongs to.
pub(crate) fn sequence(
    mut sequencer: Sequencer,
    epochs_end_batches: bool,
    config: &LoaderConfig,
    workers: &Workers,
    work: &Arc<Work>,
    buffers: &Arc<BufferPool>,
    slots: &ReorderSender,
) {
    let mut rows: Option<Arc<EpochRows>> = None;
    let mut given = 0;
    let mut step = || -> Result<Result<bool, Closed>, PipelineError> {
        let mut goes_on = true;
        let slot = match sequencer.next()? {
            Event::Position(id, Ok(sample)) => {
                let rows = match &rows {
                    Some(rows) => rows,
                    None => {
                        let new = EpochRows::new(buffers.clone(), config.batch_size);
                        let new = rows.insert(Arc::new(new));
                        if slots.send(Slot::Rows(new.clone())).is_err() {
                            return Ok(Err(Closed));
                        }
                        new
                    }
                };
                let row = rows.give(given)?;
                given += 1;
                let bytes = sample.payload_bytes() + work.image_len();
                let epoch = id.epoch;
                let ticket = match slots.send_pending(Slot::Sample(id, None), bytes) {
                    Ok(ticket) => ticket,
                    Err(Closed) => return Ok(Err(Closed)),
                };
                let work = work.clone();
                workers.run(move || {
                    if ticket.is_wanted() {
                        ticket.finish(work.process(sample, epoch, row));
                    }
                });
                return Ok(Ok(true));
            }
            Event::Position(id, Err(error)) => Slot::BadSample(id, error),
            Event::BadShard(set, error, counts) => Slot::BadShard(set, error, counts),
            Event::Dropped(set, places) => Slot::Dropped(set, places),
            Event::EndOfEpoch(set, next) => {
                if epochs_end_batches {
                    // What is left of the epoch becomes a batch of its own.
                    rows = None;
                    given = 0;
                }
                Slot::EndOfEpoch(set, next)
            }
            Event::LastRow(of_run) => {
                goes_on = !sequencer.is_over();
                Slot::LastRow(of_run)
            }
        };
        Ok(slots.send(slot).map(|()| goes_on))
    };
    loop {
        match step() {
            Ok(Ok(true)) => {}
            // The end, or nobody listening: the ordinary end of a loader that was dropped.
            Ok(Ok(false) | Err(Closed)) => return,
            Err(error) => {
                let _ = slots.send(Slot::Failed(error));
                return;
            }
        }
    }
}
