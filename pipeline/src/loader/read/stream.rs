//! A data set read shard by shard, for shards without an index.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel;

use super::leave::OpenShard;
use super::observe::LoaderReads;
use super::recycle::BytePool;
use super::shard_file::{ShardFile, ShardFiles};
use super::shuffle_budget::ShuffleBudget;
use super::spill::{Spill, Spilled};
use crate::error::{PipelineError, SampleError, ShardError};
use crate::loader::meters::queue::{bounded, QueueReceiver, QueueSender};
use crate::loader::meters::stats::Meters;
use crate::loader::plan::position::{FromSet, Item, Source};
use crate::loader::plan::sets::OpenSet;
use crate::order::{epoch_shards, Blocks, OrderSpec, ShuffleMode};
use crate::sample::EncodedSample;
use crate::shard::note::ShardNote;
use crate::shard::read::{read_shard, ReadOptions};
use crate::stop::Stop;

/// Samples of one shard that may wait to be taken.
const SHARD_QUEUE_SAMPLES: usize = 1024;

/// What reading needs beside the data set.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) options: Arc<ReadOptions>,
    pub(crate) meters: Arc<Meters>,
    /// Where readers find memory for images.
    pub(crate) bytes: Arc<BytePool>,
    pub(crate) stop: Stop,
    pub(crate) io_threads: usize,
    /// Local shards that are open, of all data sets.
    pub(crate) shard_files: ShardFiles,
    /// Whether a remote shard is kept on this machine before single samples of it are read.
    pub(crate) prefetches: bool,
    /// Bytes of samples read ahead.
    pub(crate) read_ahead_bytes: usize,
    /// Bytes of samples that wait in memory for their turn in a shuffled order.
    pub(crate) shuffle_bytes: usize,
    /// Passes over the data; 0 means without end.
    pub(crate) epochs: u64,
}

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

pub(crate) struct StreamSource {
    shards: ShardStream,
    spec: OrderSpec,
    /// With [`ShuffleMode::Buffer`].
    shuffle: Option<BlockShuffle>,
    epoch: u64,
    position: u64,
    /// Samples to pass over until the position that was asked for.
    to_pass: u64,
}

impl StreamSource {
    /// Starts reading at a position; what lies before it in its epoch is read and passed over.
    pub(crate) fn start(
        set: Arc<OpenSet>,
        spec: OrderSpec,
        reading: Reading,
        epoch: u64,
        position: u64,
    ) -> Result<StreamSource, PipelineError> {
        let budget = (spec.shuffle == ShuffleMode::Buffer)
            .then(|| Arc::new(ShuffleBudget::new(reading.shuffle_bytes)));
        let shuffle = budget.clone().map(|budget| BlockShuffle {
            bytes: reading.bytes.clone(),
            meters: reading.meters.clone(),
            max_bytes: reading.shuffle_bytes,
            budget,
            in_memory: 0,
            held: 0,
            blocks: VecDeque::new(),
        });
        let mut source = StreamSource {
            shards: ShardStream::start(set, spec, reading, budget, epoch)?,
            spec,
            shuffle,
            epoch,
            position,
            to_pass: position,
        };
        if let Some(shuffle) = &mut source.shuffle {
            let blocks = Blocks::new(&spec, epoch);
            let (number, start) = blocks.block_of(position);
            // The block that holds the position has to be read whole, those before it passed over.
            source.to_pass = start;
            let mut block = Block::new(&spec, epoch, number);
            block.passed = (position - start) as usize;
            shuffle.blocks.push_back(block);
        }
        Ok(source)
    }

    /// What the shards say next, from the position that was asked for on.
    fn arrival(&mut self) -> Result<Arrival, PipelineError> {
        loop {
            let arrival = self.shards.next()?;
            match arrival {
                Arrival::Sample(..) if self.to_pass > 0 => self.to_pass -= 1,
                Arrival::BadShard(_) if self.to_pass > 0 => {}
                Arrival::EndOfEpoch if self.to_pass > 0 => {
                    return Err(PipelineError::State(format!(
                        "epoch {} ended {} samples before the saved position: the shards hold \
                         fewer samples than when it was saved",
                        self.epoch, self.to_pass
                    )));
                }
                arrival => return Ok(arrival),
            }
        }
    }

    fn end_epoch(&mut self) -> FromSet {
        self.epoch += 1;
        self.position = 0;
        FromSet::EndOfEpoch
    }

    fn next_shuffled(
        &mut self,
        mut shuffle: BlockShuffle,
        wanted: bool,
    ) -> Result<FromSet, PipelineError> {
        let next = loop {
            shuffle.budget.hold(shuffle.in_memory);
            if shuffle.wants_more(&self.spec) && !self.shards.is_over() {
                let arrival = self.arrival()?;
                shuffle.push(arrival, &self.spec)?;
                if !shuffle.front_is_whole() {
                    continue;
                }
            }
            match shuffle.pop(wanted)? {
                Some(next) => break next,
                None if self.shards.is_over() => {
                    return Err(PipelineError::Thread(
                        "samples were asked for after the last epoch; this is a bug".into(),
                    ))
                }
                // The front block is not whole yet.
                None => continue,
            }
        };
        self.shuffle = Some(shuffle);
        Ok(match next {
            FromSet::Position(item) => {
                self.position += 1;
                FromSet::Position(item)
            }
            FromSet::EndOfEpoch => self.end_epoch(),
            bad => bad,
        })
    }
}

impl Source for StreamSource {
    fn next(&mut self, wanted: bool) -> Result<FromSet, PipelineError> {
        if let Some(shuffle) = self.shuffle.take() {
            return self.next_shuffled(shuffle, wanted);
        }
        Ok(match self.arrival()? {
            Arrival::Sample(sample, _) => {
                self.position += 1;
                FromSet::Position(Some(Item::Read(sample)))
            }
            Arrival::BadShard(error) => FromSet::BadShard(error),
            Arrival::EndOfEpoch => self.end_epoch(),
        })
    }

    fn position(&self) -> (u64, u64) {
        (self.epoch, self.position)
    }
}

/// Permutes samples within blocks. While one block is handed out the next one fills at the same
/// pace, so about one block is held.
struct BlockShuffle {
    bytes: Arc<BytePool>,
    meters: Arc<Meters>,
    max_bytes: usize,
    /// Tells readers what is left of it.
    budget: Arc<ShuffleBudget>,
    /// Bytes of samples that are held in memory.
    in_memory: usize,
    /// Samples that are held.
    held: u64,
    /// The first is handed out once it is whole, the last one fills.
    blocks: VecDeque<Block>,
}

struct Block {
    epoch: u64,
    number: u64,
    len: u64,
    entries: Vec<Option<Entry>>,
    spill: Spill,
    /// Shards that ended early while it was filled.
    bad: VecDeque<ShardError>,
    /// Positions handed out before the run was resumed.
    passed: usize,
    /// Set when it is whole.
    order: Option<std::vec::IntoIter<u32>>,
    ends_epoch: bool,
}

enum Entry {
    Memory(Result<EncodedSample, SampleError>),
    Disk(Spilled),
}

impl Entry {
    fn bytes_in_memory(&self) -> usize {
        match self {
            Entry::Memory(sample) => payload_bytes(sample),
            Entry::Disk(spilled) => spilled.kept_bytes(),
        }
    }
}

impl Block {
    fn new(spec: &OrderSpec, epoch: u64, number: u64) -> Block {
        Block {
            epoch,
            number,
            len: Blocks::new(spec, epoch).len_of(number),
            entries: Vec::new(),
            spill: Spill::default(),
            bad: VecDeque::new(),
            passed: 0,
            order: None,
            ends_epoch: false,
        }
    }
}

impl BlockShuffle {
    fn front_is_whole(&self) -> bool {
        self.blocks
            .front()
            .is_some_and(|block| block.order.is_some())
    }

    fn wants_more(&self, spec: &OrderSpec) -> bool {
        !self.front_is_whole() || self.held < spec.block_samples
    }

    fn push(&mut self, arrival: Arrival, spec: &OrderSpec) -> Result<(), PipelineError> {
        let Some(block) = self.blocks.back_mut() else {
            return Err(PipelineError::Thread(
                "a shuffle without a block; this is a bug".into(),
            ));
        };
        let ends_epoch = match arrival {
            Arrival::Sample(sample, shard) => {
                let bytes = payload_bytes(&sample);
                let entry = match sample {
                    Ok(sample) if sample.is_left() || self.in_memory + bytes > self.max_bytes => {
                        let spilled = block.spill.put(sample, shard, &self.bytes)?;
                        self.in_memory += spilled.kept_bytes();
                        Entry::Disk(spilled)
                    }
                    sample => {
                        self.in_memory += bytes;
                        Entry::Memory(sample)
                    }
                };
                block.entries.push(Some(entry));
                self.held += 1;
                false
            }
            Arrival::BadShard(error) => {
                block.bad.push_back(error);
                return Ok(());
            }
            Arrival::EndOfEpoch => true,
        };
        if ends_epoch || block.entries.len() as u64 == block.len {
            block.ends_epoch = ends_epoch;
            let blocks = Blocks::new(spec, block.epoch);
            let mut order = blocks
                .permutation(block.number, block.entries.len())
                .into_iter();
            if block.passed > 0 {
                block.bad.clear();
                for place in order.by_ref().take(block.passed) {
                    let entry = block.entries.get_mut(place as usize).and_then(Option::take);
                    self.in_memory -= entry.as_ref().map_or(0, Entry::bytes_in_memory);
                    self.held -= 1;
                }
            }
            block.order = Some(order);
            let next = match ends_epoch {
                true => Block::new(spec, block.epoch + 1, 0),
                false => Block::new(spec, block.epoch, block.number + 1),
            };
            self.blocks.push_back(next);
        }
        Ok(())
    }

    /// Records a sample that was read when its turn came.
    fn record(&self, sample: &Result<EncodedSample, SampleError>, start: Instant) {
        let Ok(sample) = sample else { return };
        let (took, bytes) = (start.elapsed(), sample.payload_bytes() as u64);
        let meter = &self.meters.read;
        meter.add_busy(took);
        meter.add_bytes(bytes);
        meter.trace_read(&sample.id.shard, bytes, start, took);
    }

    /// What the first block has next; `None` if it is not whole. What is not `wanted` is not read.
    fn pop(&mut self, wanted: bool) -> Result<Option<FromSet>, PipelineError> {
        loop {
            let Some(block) = self.blocks.front_mut() else {
                return Ok(None);
            };
            let Some(order) = &mut block.order else {
                return Ok(None);
            };
            if let Some(error) = block.bad.pop_front() {
                return Ok(Some(FromSet::BadShard(error)));
            }
            if let Some(place) = order.next() {
                let entry = block.entries.get_mut(place as usize).and_then(Option::take);
                self.held -= 1;
                self.in_memory -= entry.as_ref().map_or(0, Entry::bytes_in_memory);
                let sample = match entry {
                    Some(Entry::Memory(sample)) => sample,
                    Some(Entry::Disk(_)) if !wanted => return Ok(Some(FromSet::Position(None))),
                    Some(Entry::Disk(spilled)) => {
                        let start = Instant::now();
                        let sample = block.spill.take(spilled, &self.bytes)?;
                        self.record(&sample, start);
                        sample
                    }
                    None => {
                        return Err(PipelineError::Thread(
                            "a place was taken twice; this is a bug".into(),
                        ))
                    }
                };
                return Ok(Some(FromSet::Position(Some(Item::Read(sample)))));
            }
            let ends_epoch = block.ends_epoch;
            self.blocks.pop_front();
            if ends_epoch {
                return Ok(Some(FromSet::EndOfEpoch));
            }
        }
    }
}

fn payload_bytes(sample: &Result<EncodedSample, SampleError>) -> usize {
    sample.as_ref().map_or(0, EncodedSample::payload_bytes)
}

/// What comes from the shards, in the order of shards.
enum Arrival {
    Sample(Result<EncodedSample, SampleError>, Option<Arc<ShardFile>>),
    BadShard(ShardError),
    EndOfEpoch,
}

/// Reads the shards of epoch after epoch, `io_threads` of them at a time.
struct ShardStream {
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
    fn start(
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
    fn is_over(&self) -> bool {
        self.epochs_left == Some(0)
    }

    fn next(&mut self) -> Result<Arrival, PipelineError> {
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
