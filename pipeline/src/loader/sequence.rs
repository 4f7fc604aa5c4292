//! Reads shards ahead and puts their samples into the epoch's order.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel;

use super::queue::{bounded, Closed, QueueReceiver, QueueSender};
use super::recycle::BytePool;
use super::stats::Meters;
use crate::config::LoaderConfig;
use crate::decode::is_image_extension;
use crate::error::{SampleError, ShardError};
use crate::order::{epoch_shards, BufferBounds, ShuffleBuffer, ShuffleMode};
use crate::sample::EncodedSample;
use crate::shard::read::{read_shard, ReadObserver, ReadOptions};
use crate::source::{ShardBytes, ShardLocation};
use crate::stop::Stop;

/// Samples of one shard that may wait in front of the sequencer.
const SHARD_QUEUE_SAMPLES: usize = 1024;

/// What a shard's reader hands on.
enum FromShard {
    Sample(Result<EncodedSample, SampleError>),
    /// The shard's last word.
    End(Result<(), ShardError>),
}

/// One place in the order of an epoch.
pub(crate) enum Place {
    Sample {
        epoch: u64,
        sample: Result<EncodedSample, SampleError>,
    },
    BadShard(ShardError),
    EndOfEpoch,
}

struct Job {
    shard_index: u32,
    samples: QueueSender<FromShard>,
}

/// What the order is made of.
pub(crate) struct Sequencer {
    pub(crate) shards: Arc<Vec<ShardLocation>>,
    pub(crate) config: Arc<LoaderConfig>,
    pub(crate) options: Arc<ReadOptions>,
    pub(crate) meters: Arc<Meters>,
    /// Set when nobody listens any more.
    pub(crate) stop: Stop,
    /// Where readers find memory for images.
    pub(crate) bytes: Arc<BytePool>,
}

impl Sequencer {
    /// Emits every place of every epoch from (`epoch`, `position`) on, until the epochs are over or
    /// `emit` reports that nobody listens. Reads with `config.io_threads` threads, each its own
    /// shard, in the order in which they are needed.
    pub(crate) fn run(
        &self,
        epoch: u64,
        position: u64,
        emit: &mut dyn FnMut(Place) -> Result<(), Closed>,
    ) -> Result<(), String> {
        let (jobs, job_queue) = channel::unbounded::<Job>();
        std::thread::scope(|scope| {
            for number in 0..self.config.io_threads {
                let job_queue = job_queue.clone();
                std::thread::Builder::new()
                    .name(format!("qf-read-{number}"))
                    .spawn_scoped(scope, move || {
                        for job in job_queue {
                            self.read_job(job);
                        }
                    })
                    .map_err(|error| format!("cannot start a reader thread: {error}"))?;
            }
            drop(job_queue);
            let mut ahead = ReadAhead {
                sequencer: self,
                jobs,
                epoch,
                order: Vec::new(),
                next: 0,
                open: VecDeque::new(),
            };
            let result = self.run_epochs(epoch, position, &mut ahead, emit);
            // Readers end when their queues and the job list are gone.
            drop(ahead);
            result
        })
    }

    fn run_epochs(
        &self,
        first_epoch: u64,
        position: u64,
        ahead: &mut ReadAhead<'_>,
        emit: &mut dyn FnMut(Place) -> Result<(), Closed>,
    ) -> Result<(), String> {
        let mut to_pass = position;
        let mut emit = |place: Place| -> Result<(), Closed> {
            if to_pass > 0 && !matches!(place, Place::EndOfEpoch) {
                to_pass -= 1;
                return Ok(());
            }
            to_pass = 0;
            emit(place)
        };
        let mut epoch = first_epoch;
        while self.config.epochs == 0 || epoch < self.config.epochs {
            match self.run_epoch(epoch, ahead, &mut emit) {
                Ok(Ok(())) => epoch += 1,
                Ok(Err(Closed)) => return Ok(()),
                Err(message) => return Err(message),
            }
        }
        Ok(())
    }

    fn run_epoch(
        &self,
        epoch: u64,
        ahead: &mut ReadAhead<'_>,
        emit: &mut dyn FnMut(Place) -> Result<(), Closed>,
    ) -> Result<Result<(), Closed>, String> {
        let bounds = match self.config.shuffle {
            ShuffleMode::Buffer => BufferBounds {
                max_samples: self.config.shuffle_buffer_samples,
                max_bytes: self.config.shuffle_buffer_bytes,
            },
            ShuffleMode::None | ShuffleMode::Shards => BufferBounds {
                max_samples: 0,
                max_bytes: 0,
            },
        };
        let shuffled = self.config.shuffle == ShuffleMode::Buffer;
        let mut buffer = ShuffleBuffer::new(self.config.seed, epoch, bounds);
        for _ in 0..self.shards.len() {
            let (shard, samples) = ahead.next_shard()?;
            loop {
                let place = match samples.recv() {
                    Some(FromShard::Sample(sample)) => {
                        if shuffled {
                            let weight = sample.as_ref().map_or(0, image_bytes);
                            buffer.push(sample, weight);
                            while let Some(sample) = buffer.pop_excess() {
                                if emit(Place::Sample { epoch, sample }).is_err() {
                                    return Ok(Err(Closed));
                                }
                            }
                            continue;
                        }
                        Place::Sample { epoch, sample }
                    }
                    Some(FromShard::End(Ok(()))) => break,
                    Some(FromShard::End(Err(error))) => Place::BadShard(error),
                    None => return Err(format!("the reader of shard {shard} died; this is a bug")),
                };
                let is_last = matches!(place, Place::BadShard(_));
                if emit(place).is_err() {
                    return Ok(Err(Closed));
                }
                if is_last {
                    break;
                }
            }
        }
        while let Some(sample) = buffer.pop() {
            if emit(Place::Sample { epoch, sample }).is_err() {
                return Ok(Err(Closed));
            }
        }
        Ok(emit(Place::EndOfEpoch))
    }

    fn read_job(&self, job: Job) {
        let Job {
            shard_index,
            samples,
        } = job;
        let Some(location) = self.shards.get(shard_index as usize) else {
            return; // The job list holds indices of this very list.
        };
        let observer = TimedReads {
            meters: self.meters.clone(),
            bytes: self.bytes.clone(),
            file_time: Rc::default(),
        };
        let mut open = true;
        let mut visit = |sample: Result<EncodedSample, SampleError>| {
            let bytes = sample.as_ref().map_or(0, EncodedSample::payload_bytes);
            self.meters.read.add_items(1);
            open = samples.send(FromShard::Sample(sample), bytes).is_ok();
            open
        };
        let end = read_shard(
            location,
            shard_index,
            &self.options,
            &observer,
            &self.stop,
            &mut visit,
        );
        if open {
            // Nobody listening is the ordinary end of a loader that was dropped.
            let _ = samples.send(FromShard::End(end), 0);
        }
    }
}

/// Bytes that the shuffle buffer counts: the image alone, so that the order does not depend on how
/// a format stores captions.
fn image_bytes(sample: &EncodedSample) -> usize {
    let images = sample
        .members
        .iter()
        .filter(|member| is_image_extension(&member.name));
    images.map(|member| member.data.len_bytes()).sum()
}

/// Keeps `io_threads` shards in reading, across epoch boundaries.
struct ReadAhead<'a> {
    sequencer: &'a Sequencer,
    jobs: channel::Sender<Job>,
    epoch: u64,
    order: Vec<u32>,
    next: usize,
    open: VecDeque<(u32, QueueReceiver<FromShard>)>,
}

impl ReadAhead<'_> {
    fn next_shard(&mut self) -> Result<(String, QueueReceiver<FromShard>), String> {
        let Sequencer {
            config,
            shards,
            meters,
            ..
        } = self.sequencer;
        while self.open.len() < config.io_threads {
            if self.next == self.order.len() {
                if !self.order.is_empty() {
                    self.epoch += 1;
                }
                if config.epochs != 0 && self.epoch >= config.epochs {
                    break;
                }
                self.order = epoch_shards(shards.len(), config.seed, self.epoch, config.shuffle);
                self.next = 0;
            }
            let shard_index = self.order[self.next];
            self.next += 1;
            // Each open shard has its own share of the byte budget: the one in turn can always go on.
            let (samples, receiver) = bounded(
                SHARD_QUEUE_SAMPLES,
                config.read_ahead_bytes / config.io_threads,
                meters.shard_queue.clone(),
            );
            self.jobs
                .send(Job {
                    shard_index,
                    samples,
                })
                .map_err(|_| "all reader threads died; this is a bug".to_string())?;
            self.open.push_back((shard_index, receiver));
        }
        let (shard_index, receiver) = self
            .open
            .pop_front()
            .ok_or("the order ended early; this is a bug")?;
        let name = shards
            .get(shard_index as usize)
            .map(|shard| shard.name.to_string());
        Ok((name.unwrap_or_default(), receiver))
    }
}

/// Books the time and bytes of file reads under `read`, what decompression adds under `decompress`.
struct TimedReads {
    meters: Arc<Meters>,
    bytes: Arc<BytePool>,
    file_time: Rc<Cell<Duration>>,
}

impl ReadObserver for TimedReads {
    fn new_bytes(&self, len: usize) -> Vec<u8> {
        self.bytes.take(len)
    }

    fn watch_file(&self, file: ShardBytes) -> Box<dyn Read> {
        Box::new(TimedFile {
            inner: file,
            meters: self.meters.clone(),
            time: self.file_time.clone(),
        })
    }

    fn watch_decompressor(&self, decompressor: Box<dyn Read>) -> Box<dyn Read> {
        let meters = self.meters.clone();
        Box::new(TimedDecompressor {
            inner: decompressor,
            meters,
            file_time: self.file_time.clone(),
        })
    }
}

struct TimedFile {
    inner: Box<dyn Read>,
    meters: Arc<Meters>,
    time: Rc<Cell<Duration>>,
}

impl Read for TimedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        let result = self.inner.read(buffer);
        let elapsed = start.elapsed();
        self.time.set(self.time.get() + elapsed);
        self.meters.read.add_busy(elapsed);
        if let Ok(count) = result {
            self.meters.read.add_bytes(count as u64);
        }
        result
    }
}

struct TimedDecompressor {
    inner: Box<dyn Read>,
    meters: Arc<Meters>,
    file_time: Rc<Cell<Duration>>,
}

impl Read for TimedDecompressor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file_before = self.file_time.get();
        let start = Instant::now();
        let result = self.inner.read(buffer);
        let in_file = self.file_time.get() - file_before;
        self.meters
            .decompress
            .add_busy(start.elapsed().saturating_sub(in_file));
        self.meters.decompress.add_items(1);
        if let Ok(count) = result {
            self.meters.decompress.add_bytes(count as u64);
        }
        result
    }
}
