//! The shards of a data set, epoch after epoch, several read at a time.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel;

use super::leave::OpenShard;
use super::observe::LoaderReads;
use super::reading::Reading;
use super::shard_file::ShardFile;
use super::shuffle_budget::ShuffleBudget;
use crate::error::{PipelineError, SampleError, ShardError};
use crate::loader::meters::queue::{bounded, QueueReceiver, QueueSender};
use crate::loader::plan::sets::OpenSet;
use crate::order::{epoch_shards, OrderSpec};
use crate::sample::EncodedSample;
use crate::shard::note::ShardNote;
use crate::shard::read::read_shard;

/// Samples of one shard that may wait to be taken.
const SHARD_QUEUE_SAMPLES: usize = 1024;

/// What a shard's reader hands on.
enum FromShard {
    /// A sample, and the file that it is from.
    Sample(Result<EncodedSample, SampleError>, Option<Arc<ShardFile>>),
    /// The shard's last word, and what is odd about it.
    End(Result<Vec<ShardNote>, ShardError>),
}

struct Job {
    shard: u32,
    samples: QueueSender<FromShard>,
}

pub(super) fn payload_bytes(sample: &Result<EncodedSample, SampleError>) -> usize {
    sample.as_ref().map_or(0, EncodedSample::payload_bytes)
}

/// What comes from the shards, in the order of shards.
pub(super) enum Arrival {
    Sample(Result<EncodedSample, SampleError>, Option<Arc<ShardFile>>),
    BadShard(ShardError),
    EndOfEpoch,
}

/// Reads the shards of epoch after epoch, `io_threads` of them at a time.
pub(super) struct ShardStream {
    set: Arc<OpenSet>,
    spec: OrderSpec,
    reading: Reading,
    /// Of the shuffle that takes the samples, if there is one.
    budget: Option<Arc<ShuffleBudget>>,
    jobs: Option<channel::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// The epoch that is being opened, its order, and how far that has got.
    epoch: u64,
    order: Vec<u32>,
    next: usize,
    open: VecDeque<(u32, QueueReceiver<FromShard>)>,
    /// The shard in turn.
    current: Option<(u32, QueueReceiver<FromShard>)>,
    /// Shards of the present epoch after it.
    to_come: usize,
    epochs_left: Option<u64>,
    /// Shards that there was a warning about.
    noted: HashSet<u32>,
}

impl ShardStream {
    pub(super) fn start(
        set: Arc<OpenSet>,
        spec: OrderSpec,
        reading: Reading,
        budget: Option<Arc<ShuffleBudget>>,
        epoch: u64,
    ) -> Result<ShardStream, PipelineError> {
        let (jobs, job_queue) = channel::unbounded::<Job>();
        let mut threads = Vec::new();
        for number in 0..reading.io_threads {
            let (job_queue, set, reading) = (job_queue.clone(), set.clone(), reading.clone());
            let budget = budget.clone();
            threads.push(crate::loader::thread::spawn(
                &format!("qf-read-{number}"),
                move || {
                    for job in job_queue {
                        read_job(&set, &reading, budget.as_ref(), job);
                    }
                },
            )?);
        }
        let num_shards = set.shards.len();
        let epochs = reading.epochs;
        Ok(ShardStream {
            order: epoch_shards(num_shards, &spec, epoch),
            set,
            spec,
            jobs: Some(jobs),
            threads,
            epoch,
            next: 0,
            open: VecDeque::new(),
            current: None,
            to_come: num_shards,
            epochs_left: (epochs > 0).then(|| epochs.saturating_sub(epoch)),
            noted: HashSet::new(),
            reading,
            budget,
        })
    }

    /// Whether all epochs are over.
    pub(super) fn is_over(&self) -> bool {
        self.epochs_left == Some(0)
    }

    pub(super) fn next(&mut self) -> Result<Arrival, PipelineError> {
        loop {
            let Some((shard, samples)) = &self.current else {
                if self.to_come == 0 {
                    self.to_come = self.set.shards.len();
                    self.epochs_left = self.epochs_left.map(|left| left.saturating_sub(1));
                    return Ok(Arrival::EndOfEpoch);
                }
                self.to_come -= 1;
                self.current = Some(self.next_shard()?);
                continue;
            };
            match samples.recv() {
                Some(FromShard::Sample(sample, shard)) => {
                    if let Some(budget) = &self.budget {
                        budget.receive(payload_bytes(&sample));
                    }
                    return Ok(Arrival::Sample(sample, shard));
                }
                Some(FromShard::End(end)) => {
                    let shard = *shard;
                    let is_lost = self.set.shards[shard as usize].store_is_lost();
                    self.current = None;
                    match end {
                        Err(error) if is_lost => return Err(PipelineError::StoreLost(error)),
                        Err(error) => return Ok(Arrival::BadShard(error)),
                        Ok(notes) => self.say_once(shard, &notes),
                    }
                }
                None => {
                    let name = &self.set.shards[*shard as usize].name;
                    return Err(PipelineError::Thread(format!(
                        "the reader of shard {name} died; this is a bug"
                    )));
                }
            }
        }
    }

    /// Warns of what is odd about a shard, in the first of its epochs.
    fn say_once(&mut self, shard: u32, notes: &[ShardNote]) {
        if !notes.is_empty() && self.noted.insert(shard) {
            for note in notes {
                log::warn!("shard {} {note}", self.set.shards[shard as usize].name);
            }
        }
    }

    /// The next shard in turn, after opening those behind it.
    fn next_shard(&mut self) -> Result<(u32, QueueReceiver<FromShard>), PipelineError> {
        let died = || PipelineError::Thread("all reader threads died; this is a bug".into());
        let io_threads = self.reading.io_threads;
        while self.open.len() < io_threads {
            if self.next == self.order.len() {
                self.epoch += 1;
                let epochs = self.reading.epochs;
                if epochs != 0 && self.epoch >= epochs {
                    break;
                }
                self.order = epoch_shards(self.set.shards.len(), &self.spec, self.epoch);
                self.next = 0;
            }
            let shard = self.order[self.next];
            self.next += 1;
            // Each open shard has its own share of the byte budget: the one in turn can always go on.
            let (samples, receiver) = bounded(
                SHARD_QUEUE_SAMPLES,
                self.reading.read_ahead_bytes / io_threads,
                self.reading.meters.shard_queue.clone(),
            );
            let job = Job { shard, samples };
            let jobs = self.jobs.as_ref().ok_or_else(died)?;
            jobs.send(job).map_err(|_| died())?;
            self.open.push_back((shard, receiver));
        }
        self.open
            .pop_front()
            .ok_or_else(|| PipelineError::Thread("the order ended early; this is a bug".into()))
    }
}

impl Drop for ShardStream {
    fn drop(&mut self) {
        // Readers end when their queues and the job list are gone.
        self.current = None;
        self.open.clear();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic was reported by the queue that it closed.
            let _ = thread.join();
        }
    }
}

fn read_job(set: &OpenSet, reading: &Reading, budget: Option<&Arc<ShuffleBudget>>, job: Job) {
    let Job { shard, samples } = job;
    let Some(location) = set.shards.get(shard as usize) else {
        return; // The job list holds indices of this very list.
    };
    let file = reading.shard_files.open(location);
    let opened = file.clone().map(|file| OpenShard {
        file,
        stop: reading.stop.clone(),
        budget: budget.cloned(),
    });
    let observer =
        LoaderReads::new(&location.name, &reading.meters, &reading.bytes).with_file(opened);
    let mut open = true;
    let mut visit = |sample: Result<EncodedSample, SampleError>| {
        let bytes = payload_bytes(&sample);
        if let Some(budget) = budget {
            budget.send(bytes);
        }
        reading.meters.read.add_items(1);
        let arrival = FromShard::Sample(sample, file.clone());
        open = samples.send(arrival, bytes).is_ok();
        open
    };
    let end = set.check_size(shard, &reading.stop).and_then(|()| {
        read_shard(
            location,
            set.first_shard + shard,
            &reading.options,
            &observer,
            &reading.stop,
            &mut visit,
        )
    });
    if open {
        // Nobody listening is the ordinary end of a loader that was dropped.
        let _ = samples.send(FromShard::End(end), 0);
    }
}
