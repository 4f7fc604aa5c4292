//! The loader itself: its threads, and what the consumer sees of it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::collate::{Collator, Message};
use super::open::OpenRun;
use super::reorder_buffer::{reorder_buffer, ReorderLimits};
use super::sequence::Dispatcher;
use super::skips::SkipReports;
use super::work::Work;
use super::workers::Workers;
use crate::batch::{Batch, BufferPool, HostAllocator};
use crate::config::LoaderConfig;
use crate::error::{PipelineError, SkipReason};
use crate::loader::meters::queue::{bounded, QueueReceiver};
use crate::loader::meters::stats::{Capacities, LoaderReport, Meters};
use crate::loader::plan::sets::{LinesOfShards, OpenSet};
use crate::loader::thread::spawn;
use crate::printable::Printable;
use crate::resume::LoaderState;
use crate::stop::Stop;
use crate::survey::explain_contents;
use crate::text::CaptionTokenizer;
use crate::trace::Trace;

/// Bytes of compressed and processed images between sequencer and collator.
const WORK_QUEUE_BYTES: usize = 64 << 20;

/// Streams batches from shards with its own threads. Dropping it stops them and waits for their end:
/// all memory of the allocator but that of batches handed out is given back by then.
pub struct Loader {
    batches: Option<QueueReceiver<Message>>,
    threads: Vec<JoinHandle<()>>,
    meters: Arc<Meters>,
    capacities: Capacities,
    stop: Stop,
    state: LoaderState,
    skips: Option<SkipReports>,
    wait: Duration,
    config: Arc<LoaderConfig>,
    sets: Vec<Arc<OpenSet>>,
}

impl Loader {
    pub(in crate::loader) fn start(
        run: OpenRun,
        tokenizer: Arc<CaptionTokenizer>,
        allocator: Arc<dyn HostAllocator>,
    ) -> Result<Loader, PipelineError> {
        let config = run.config.clone();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match config.threads {
            0 => cores,
            threads => threads,
        };
        let workers = Workers::start(threads)?;
        // A batch, which is taken as a whole, and enough that no worker idles meanwhile.
        let busy_items = threads * 4;
        let work_items = config.batch_size.saturating_add(busy_items);
        let capacities = Capacities {
            cores,
            threads,
            io_threads: run.io_threads,
            is_remote: run.is_remote,
            work_items,
            batches: config.prefetch_batches,
        };
        let meters = run.meters.clone();
        let work = Work::new(
            config.clone(),
            LinesOfShards::new(&run.sets),
            tokenizer,
            meters.clone(),
            run.bytes.clone(),
        )?;
        let work = Arc::new(work.keep_captions(run.keeps_captions));
        let limits = ReorderLimits {
            items: work_items,
            bytes: WORK_QUEUE_BYTES,
            busy: busy_items,
        };
        let (slot_sender, slot_receiver) = reorder_buffer(limits, meters.work_queue.clone());
        let (batch_sender, batch_receiver) = bounded(
            config.prefetch_batches,
            usize::MAX,
            meters.batch_queue.clone(),
        );
        let buffers = Arc::new(BufferPool::new(
            allocator,
            config.batch_size * work.image_len(),
        ));
        let collator = Collator::new(&run, work.clone(), buffers.clone());
        let dispatcher = Dispatcher {
            sequencer: run.sequencer()?,
            workers,
            work,
            buffers,
            batch_size: config.batch_size,
            epochs_end_batches: run.epochs_end_batches(),
            rows: None,
            given: 0,
        };
        let threads = vec![
            spawn("qf-sequence", move || dispatcher.run(&slot_sender))?,
            spawn("qf-collate", move || {
                collator.run(slot_receiver, batch_sender)
            })?,
        ];
        Ok(Loader {
            batches: Some(batch_receiver),
            threads,
            meters,
            capacities,
            stop: run.stop,
            state: run.state,
            skips: run.skips,
            wait: Duration::ZERO,
            config,
            sets: run.sets,
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
                Err(self.explained(error))
            }
            None => {
                self.batches = None;
                Err(PipelineError::Thread(
                    "the collator thread died; this is a bug".into(),
                ))
            }
        }
    }

    /// Says with samples that cannot be used what the shards hold instead.
    fn explained(&self, error: PipelineError) -> PipelineError {
        // The message counts the skipped samples by reason.
        let of_members = |message: &str| {
            let reasons = [
                SkipReason::NoImage,
                SkipReason::NoCaption,
                SkipReason::RepeatedKey,
            ];
            reasons.iter().any(|reason| message.contains(reason.name()))
        };
        match error {
            PipelineError::TooFewSamples(message) if of_members(&message) => {
                let shards = self.sets.first().map_or(&[][..], |set| &set.shards);
                let contents = explain_contents(shards, &self.config, &self.stop);
                let contents = Printable(&contents);
                PipelineError::TooFewSamples(format!("{message}; {contents}"))
            }
            other => other,
        }
    }

    /// What each data set's captions and images are taken from, a line for each, where this loader
    /// began the run: it looked at the first samples.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().filter_map(|set| set.note.as_deref())
    }

    /// The state after the last batch that was handed out.
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// Where the samples that are left out are named, if [`LoaderBuilder::report_skips`](crate::loader::LoaderBuilder::report_skips) was called.
    pub fn skip_reports(&self) -> Option<&SkipReports> {
        self.skips.as_ref()
    }

    /// Time that [`Loader::next_batch`] has spent waiting.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Where the loader's time has gone so far.
    pub fn report(&self) -> LoaderReport {
        self.meters.report(self.capacities)
    }

    /// What another thread can see and do while one waits in [`Loader::next_batch`].
    pub fn monitor(&self) -> LoaderMonitor {
        LoaderMonitor {
            meters: self.meters.clone(),
            capacities: self.capacities,
            stop: self.stop.clone(),
        }
    }
}

/// A loader as threads see it that do not own it.
#[derive(Clone)]
pub struct LoaderMonitor {
    meters: Arc<Meters>,
    capacities: Capacities,
    stop: Stop,
}

impl LoaderMonitor {
    /// Where the loader's time has gone so far.
    pub fn report(&self) -> LoaderReport {
        self.meters.report(self.capacities)
    }

    /// Where the loader is traced.
    pub fn trace(&self) -> Option<Trace> {
        self.meters.trace.clone()
    }

    /// Ends reads that wait, so that [`Loader::next_batch`] returns soon: a batch that was ready, or
    /// an error.
    pub fn stop(&self) {
        self.stop.set();
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
