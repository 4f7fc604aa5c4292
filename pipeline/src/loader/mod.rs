//! Stages, queues and budgets: the only place that starts threads.
//!
//! ```text
//! reader threads (io_threads, one shard each)
//!   │ one bounded queue per shard, taken in the epoch's order
//! sequencer ── shuffle buffer, position in the order
//!   │ bounded queue of places, each with its pending result      ┌─ rayon pool (threads):
//!   ├────────────────────────────────────────────────────────────┤  decode, augment, tokenise
//! collator ── takes results in order, fills batches              └─
//!   │ bounded queue of batches
//! consumer
//! ```
//!
//! A result has its place in the order before any worker sees the sample, so the batches are the
//! same for any number of threads.

mod bottleneck;
mod collate;
mod queue;
mod recycle;
mod sequence;
mod state;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel;

use collate::{Collator, Message, Slot};
use queue::{bounded, Closed, QueueReceiver, QueueSender};
use recycle::BytePool;
use sequence::{Place, Sequencer};
use stats::{Capacities, Meters};
use work::Work;

pub use state::{LoaderState, OrderKey};
pub use stats::{Counters, LoaderReport, QueueReport, StageReport};
pub use table::{queue_table, stage_table};

use crate::batch::{Batch, BufferPool, EpochRows, HostAllocator, PlainAllocator};
use crate::config::LoaderConfig;
use crate::error::PipelineError;
use crate::source::ShardLocation;
use crate::stop::Stop;
use crate::text::CaptionTokenizer;

/// Bytes of compressed and processed images between sequencer and collator.
const WORK_QUEUE_BYTES: usize = 64 << 20;

/// Streams batches from shards with its own threads. Dropping it stops them.
pub struct Loader {
    batches: Option<QueueReceiver<Message>>,
    threads: Vec<JoinHandle<()>>,
    meters: Arc<Meters>,
    capacities: Capacities,
    stop: Stop,
    state: LoaderState,
    wait: Duration,
}

impl Loader {
    /// Starts loading, with pixels in ordinary memory, from the beginning or from a saved state.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for settings that cannot work, [`PipelineError::State`] for a state
    /// of other data or settings, [`PipelineError::Thread`] when threads cannot be started.
    pub fn start(
        config: LoaderConfig,
        shards: Vec<ShardLocation>,
        tokenizer: Arc<CaptionTokenizer>,
        resume: Option<LoaderState>,
    ) -> Result<Loader, PipelineError> {
        Loader::start_in(config, shards, tokenizer, resume, Arc::new(PlainAllocator))
    }

    /// The same, with pixels in memory of the caller's making.
    ///
    /// # Errors
    /// As [`Loader::start`].
    pub fn start_in(
        config: LoaderConfig,
        shards: Vec<ShardLocation>,
        tokenizer: Arc<CaptionTokenizer>,
        resume: Option<LoaderState>,
        allocator: Arc<dyn HostAllocator>,
    ) -> Result<Loader, PipelineError> {
        config.validate()?;
        let order = OrderKey::new(&config, &shards)?;
        let state = match resume {
            Some(state) => {
                state.check(&order)?;
                state
            }
            None => LoaderState::start(order),
        };
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("qf-work-{number}"))
            // The place in the order reports the death of its worker; the process lives on.
            .panic_handler(|_| {})
            .build()
            .map_err(|error| PipelineError::Thread(format!("cannot start workers: {error}")))?;
        // Enough places that no worker idles while the collator waits for a slow image.
        let work_items = (threads * 4).max(config.batch_size);
        let capacities = Capacities {
            threads,
            io_threads: config.io_threads,
            work_items,
            batches: config.prefetch_batches,
        };
        let config = Arc::new(config);
        let meters = Arc::new(Meters::default());
        let bytes = Arc::new(BytePool::default());
        let work = Work::new(config.clone(), tokenizer, meters.clone(), bytes.clone())?;
        let work = Arc::new(work);
        let (slot_sender, slot_receiver) =
            bounded(work_items, WORK_QUEUE_BYTES, meters.work_queue.clone());
        let (batch_sender, batch_receiver) = bounded(
            config.prefetch_batches,
            usize::MAX,
            meters.batch_queue.clone(),
        );
        let buffers = Arc::new(BufferPool::new(
            allocator,
            config.batch_size * work.image_len(),
        ));
        let collator = Collator {
            pool: buffers.clone(),
            config: config.clone(),
            work: work.clone(),
            meters: meters.clone(),
            state: state.clone(),
        };
        let stop = Stop::default();
        let options = config.read_options();
        let sequencer = Sequencer {
            shards: Arc::new(shards),
            config,
            options: Arc::new(options),
            meters: meters.clone(),
            stop: stop.clone(),
            bytes,
        };
        let (epoch, position) = (state.epoch, state.position);
        let threads = vec![
            spawn("qf-sequence", move || {
                let start = (epoch, position);
                sequence(&sequencer, start, &pool, &work, &buffers, &slot_sender);
            })?,
            spawn("qf-collate", move || {
                collator.run(slot_receiver, batch_sender)
            })?,
        ];
        Ok(Loader {
            batches: Some(batch_receiver),
            threads,
            meters,
            stop,
            capacities,
            state,
            wait: Duration::ZERO,
        })
    }

    /// The next batch, waiting for it if need be; `None` when all epochs are over.
    ///
    /// # Errors
    /// The [`PipelineError`] that ended loading, once; `None` after that.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, PipelineError> {
        let Some(batches) = &self.batches else {
            return Ok(None);
        };
        let start = Instant::now();
        let message = batches.recv();
        self.wait += start.elapsed();
        match message {
            Some(Message::Batch(batch)) => {
                self.state = batch.state.clone();
                Ok(Some(*batch))
            }
            Some(Message::End(state)) => {
                self.state = *state;
                self.batches = None;
                Ok(None)
            }
            Some(Message::Failed(error)) => {
                self.batches = None;
                Err(error)
            }
            None => {
                self.batches = None;
                Err(PipelineError::Thread(
                    "the collator thread died; this is a bug".into(),
                ))
            }
        }
    }

    /// The state after the last batch that was handed out.
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// Time that [`Loader::next_batch`] has spent waiting.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Where the loader's time has gone so far.
    pub fn report(&self) -> LoaderReport {
        self.meters.report(self.capacities)
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Closing the last queue makes every stage before it end in turn; reads look at the flag.
        self.stop.set();
        self.batches = None;
        for thread in self.threads.drain(..) {
            // A panic was reported by the queue that it closed.
            let _ = thread.join();
        }
    }
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, PipelineError> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body)
        .map_err(|error| PipelineError::Thread(format!("cannot start thread {name}: {error}")))
}

/// Gives every place of the order a slot, and its sample to a worker with the row it belongs to.
fn sequence(
    sequencer: &Sequencer,
    (epoch, position): (u64, u64),
    pool: &rayon::ThreadPool,
    work: &Arc<Work>,
    buffers: &Arc<BufferPool>,
    slots: &QueueSender<Slot>,
) {
    let mut rows: Option<Arc<EpochRows>> = None;
    let mut given = 0;
    let mut no_memory = None;
    let mut emit = |place: Place| -> Result<(), Closed> {
        match place {
            Place::Sample {
                epoch,
                sample: Ok(sample),
            } => {
                let rows = match &rows {
                    Some(rows) => rows,
                    None => {
                        let new = EpochRows::new(buffers.clone(), sequencer.config.batch_size);
                        let new = rows.insert(Arc::new(new));
                        slots.send(Slot::Rows(new.clone()), 0)?;
                        new
                    }
                };
                let row = rows.give(given).map_err(|error| {
                    no_memory = Some(error);
                    Closed
                })?;
                given += 1;
                let (sender, receiver) = channel::bounded(1);
                let bytes = sample.payload_bytes() + work.image_len();
                slots.send(Slot::Pending(receiver), bytes)?;
                let work = work.clone();
                pool.spawn_fifo(move || {
                    // The receiver is gone when the loader was dropped.
                    let _ = sender.send(work.process(sample, epoch, row));
                });
                Ok(())
            }
            Place::Sample {
                sample: Err(error), ..
            } => slots.send(Slot::BadSample(error), 0),
            Place::BadShard(error) => slots.send(Slot::BadShard(error), 0),
            Place::EndOfEpoch => {
                rows = None;
                given = 0;
                slots.send(Slot::EndOfEpoch, 0)
            }
        }
    };
    let result = sequencer
        .run(epoch, position, &mut emit)
        .map_err(PipelineError::Thread);
    let result = match no_memory {
        Some(error) => Err(error),
        None => result,
    };
    // Nobody listening is the ordinary end of a loader that was dropped.
    let _ = slots.send(Slot::End(result), 0);
}
