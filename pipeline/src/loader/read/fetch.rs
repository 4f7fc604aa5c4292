//! Reads the samples of known positions ahead of their turn, many at a time.
//!
//! Positions are planned in chunks. Those of a chunk that lie in one shard are read in the order of the
//! shard, so that neighbours are read in one go, and handed out in the order of positions. What is
//! planned is bounded by the mean size of samples; a sample that does not fit the bound after all is
//! put off, and read when its turn comes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel;

use super::observe::LoaderReads;
use super::reading::Reading;
use crate::error::{PipelineError, SampleError, ShardError, SkipReason};
use crate::index::read_samples;
use crate::loader::plan::sets::{Contents, OpenSet};
use crate::sample::{EncodedSample, SampleId};
use crate::source::ShardLocation;

/// Most samples of one job: the first of many are ready soon, and threads share the work.
const JOB_SAMPLES: usize = 32;

/// Most samples that are planned, however small they are.
const MAX_PLANNED: usize = 16_384;

/// The ticket of no position.
const NO_TICKET: u64 = u64::MAX;

/// A sample, or why there is none, and whether its shard failed here for the first time.
pub(crate) struct Fetched {
    pub(crate) sample: Result<EncodedSample, SampleError>,
    pub(crate) bad_shard: Option<ShardError>,
}

/// Where a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct At {
    set: u32,
    shard: u32,
    sample: u32,
}

struct Job {
    set: u32,
    shard: u32,
    /// Samples in ascending order, and their tickets.
    wanted: Vec<(u32, u64)>,
}

enum Outcome {
    Sample(Result<EncodedSample, SampleError>),
    /// It is over the memory budget for now.
    PutOff,
    /// It was not reached.
    Failed(ShardError),
}

/// A ticket, and what came of it.
type Reply = (u64, Outcome);

pub(crate) struct Fetcher {
    sets: Vec<Arc<OpenSet>>,
    reading: Reading,
    jobs: Option<channel::Sender<Job>>,
    replies: channel::Receiver<Reply>,
    threads: Vec<JoinHandle<()>>,
    /// Bytes of samples that were read and not handed out.
    held: Arc<AtomicUsize>,
    budget: usize,
    /// Planned positions that are not handed to a thread.
    chunk: Vec<(At, u64)>,
    in_chunk: HashSet<At>,
    chunk_bytes: usize,
    /// Positions in order, from ticket `first` on.
    first: u64,
    places: VecDeque<(At, usize, Option<Outcome>)>,
    planned_bytes: usize,
    failed: HashSet<(u32, u32)>,
}

impl Fetcher {
    pub(crate) fn start(
        sets: Vec<Arc<OpenSet>>,
        reading: Reading,
    ) -> Result<Fetcher, PipelineError> {
        let (jobs, job_queue) = channel::unbounded::<Job>();
        let (sender, replies) = channel::unbounded::<Reply>();
        let held = Arc::new(AtomicUsize::new(0));
        // Nothing waits in a shuffle buffer here: its memory goes into reading ahead.
        let budget = reading
            .read_ahead_bytes
            .saturating_add(reading.shuffle_bytes);
        let mut fetcher = Fetcher {
            sets,
            reading,
            jobs: Some(jobs),
            replies,
            threads: Vec::new(),
            held,
            budget,
            chunk: Vec::new(),
            in_chunk: HashSet::new(),
            chunk_bytes: 0,
            first: 0,
            places: VecDeque::new(),
            planned_bytes: 0,
            failed: HashSet::new(),
        };
        for number in 0..fetcher.reading.io_threads {
            let reader = Reader {
                sets: fetcher.sets.clone(),
                reading: fetcher.reading.clone(),
                held: fetcher.held.clone(),
                budget,
            };
            let (job_queue, sender) = (job_queue.clone(), sender.clone());
            let thread = crate::loader::thread::spawn(&format!("qf-read-{number}"), move || {
                let _notice = DeathNotice(sender.clone());
                for job in job_queue {
                    if reader.run(job, &sender).is_err() {
                        return;
                    }
                }
            })?;
            fetcher.threads.push(thread);
        }
        Ok(fetcher)
    }

    /// Whether more positions should be planned before the next one is taken.
    pub(crate) fn wants_more(&self) -> bool {
        self.places.len() < MAX_PLANNED && self.planned_bytes <= self.budget / 4 * 3
    }

    /// Plans a position behind those that are planned.
    pub(crate) fn plan(&mut self, set: u32, shard: u32, sample: u32) {
        let at = At { set, shard, sample };
        let bytes = self.mean_bytes(at);
        // A chunk names a sample once; a second visit is the beginning of the next.
        if self.in_chunk.contains(&at) || self.chunk_bytes > self.budget / 4 {
            self.dispatch();
        }
        let ticket = self.first + self.places.len() as u64;
        self.in_chunk.insert(at);
        self.chunk.push((at, ticket));
        self.chunk_bytes += bytes;
        self.planned_bytes += bytes;
        self.places.push_back((at, bytes, None));
    }

    fn mean_bytes(&self, at: At) -> usize {
        let Some(set) = self.sets.get(at.set as usize) else {
            return 0;
        };
        let Contents::Indexed(indices) = &set.contents else {
            return 0;
        };
        let shard = at.shard as usize;
        let size = set.sizes[shard].unwrap_or(0);
        let bytes = size / u64::from(indices[shard].len().max(1));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Hands what is planned to the threads.
    fn dispatch(&mut self) {
        self.in_chunk.clear();
        self.chunk_bytes = 0;
        let mut by_shard: HashMap<(u32, u32), Vec<(u32, u64)>> = HashMap::new();
        for (at, ticket) in self.chunk.drain(..) {
            let of_shard = by_shard.entry((at.set, at.shard)).or_default();
            of_shard.push((at.sample, ticket));
        }
        let mut jobs = Vec::new();
        for ((set, shard), mut wanted) in by_shard {
            wanted.sort_unstable();
            for part in wanted.chunks(JOB_SAMPLES) {
                let wanted = part.to_vec();
                jobs.push(Job { set, shard, wanted });
            }
        }
        // What is needed first is read first.
        jobs.sort_by_key(|job| job.wanted.iter().map(|(_, ticket)| *ticket).min());
        if let Some(sender) = &self.jobs {
            for job in jobs {
                // Threads end before their list of jobs only by a panic, which `take` notices.
                let _ = sender.send(job);
            }
        }
    }

    /// The sample of the first planned position.
    ///
    /// # Errors
    /// [`PipelineError::Thread`] when a reading thread died; [`PipelineError::StoreLost`].
    pub(crate) fn take(&mut self) -> Result<Fetched, PipelineError> {
        let died = || PipelineError::Thread("a reader thread died; this is a bug".into());
        let in_chunk = self.chunk.first().map(|(_, ticket)| *ticket);
        if in_chunk == Some(self.first) {
            self.dispatch();
        }
        let meter = &self.reading.meters.shard_queue;
        let start = Instant::now();
        let mut waited = false;
        loop {
            let (ticket, outcome) = match self.places.front() {
                Some((_, _, Some(_))) => break,
                Some(_) => match self.replies.try_recv() {
                    Ok(reply) => reply,
                    Err(_) => {
                        waited = true;
                        self.replies.recv().map_err(|_| died())?
                    }
                },
                None => return Err(died()),
            };
            if ticket == NO_TICKET {
                return Err(died());
            }
            if let Some(place) = self.places.get_mut((ticket - self.first) as usize) {
                place.2 = Some(outcome);
            }
        }
        if waited {
            meter.add_empty_wait(start);
        }
        meter.add_taken(start, self.replies.len() as u64, 1);
        let Some((at, bytes, Some(outcome))) = self.places.pop_front() else {
            return Err(died());
        };
        self.first += 1;
        self.planned_bytes -= bytes;
        let outcome = match outcome {
            Outcome::PutOff => self.fetch_now(at),
            Outcome::Sample(sample) => {
                let bytes = sample.as_ref().map_or(0, EncodedSample::payload_bytes);
                self.held.fetch_sub(bytes, Ordering::AcqRel);
                Outcome::Sample(sample)
            }
            outcome => outcome,
        };
        Ok(match outcome {
            Outcome::Sample(sample) => Fetched {
                sample,
                bad_shard: None,
            },
            Outcome::Failed(error) if self.is_lost(at) => {
                return Err(PipelineError::StoreLost(error))
            }
            Outcome::Failed(error) => self.unreadable(at, error),
            Outcome::PutOff => return Err(died()),
        })
    }

    /// Reads one sample on this thread.
    fn fetch_now(&self, at: At) -> Outcome {
        let reader = Reader {
            sets: self.sets.clone(),
            reading: self.reading.clone(),
            held: Arc::default(),
            budget: usize::MAX,
        };
        let (sender, replies) = channel::unbounded();
        let job = Job {
            set: at.set,
            shard: at.shard,
            wanted: vec![(at.sample, 0)],
        };
        // The receiver is here.
        let _ = reader.run(job, &sender);
        replies
            .try_recv()
            .map_or(Outcome::PutOff, |(_, outcome)| outcome)
    }

    /// Whether the store of its shard was given up.
    fn is_lost(&self, at: At) -> bool {
        let set = self.sets.get(at.set as usize);
        let shard = set.and_then(|set| set.shards.get(at.shard as usize));
        shard.is_some_and(ShardLocation::store_is_lost)
    }

    fn unreadable(&mut self, at: At, error: ShardError) -> Fetched {
        let is_new = self.failed.insert((at.set, at.shard));
        let set = &self.sets[at.set as usize];
        let id = SampleId {
            shard: set.shards[at.shard as usize].name.clone(),
            shard_index: set.first_shard + at.shard,
            sample_index: at.sample,
            key: format!("number {}", at.sample),
            offset_bytes: error.offset_bytes,
        };
        Fetched {
            sample: Err(SampleError {
                id: Box::new(id),
                reason: SkipReason::UnreadableShard,
                message: format!("its shard cannot be read: {}", error.message),
            }),
            bad_shard: is_new.then_some(error),
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread with an answer that nobody takes ends there.
        let (_, nobody) = channel::bounded(0);
        self.replies = nobody;
        for thread in self.threads.drain(..) {
            // A panic was noticed by `take`.
            let _ = thread.join();
        }
    }
}

/// Tells [`Fetcher::take`] of a thread that panics: its answers will not come.
struct DeathNotice(channel::Sender<Reply>);

impl Drop for DeathNotice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody listening is fine.
            let _ = self.0.send((NO_TICKET, Outcome::PutOff));
        }
    }
}

/// Nobody takes answers any more.
struct Gone;

struct Reader {
    sets: Vec<Arc<OpenSet>>,
    reading: Reading,
    held: Arc<AtomicUsize>,
    budget: usize,
}

impl Reader {
    /// Brings a shard onto this machine, where shards are kept there: ranges come from there then.
    /// Trouble shows in the read.
    fn prefetch(&self, location: &ShardLocation) {
        let reading = &self.reading;
        if !reading.prefetches || location.cache_bytes().is_none() {
            return;
        }
        let start = Instant::now();
        if let Err(error) = location.prefetch(&reading.stop) {
            log::debug!("{}: not cached ({error})", location.name);
        }
        let took = start.elapsed();
        reading.meters.read.add_busy(took);
        if let Some(trace) = &reading.meters.trace {
            let args = [("shard", (&*location.name).into())];
            trace.record("cache shard", start, took, &args);
        }
    }

    fn run(&self, job: Job, replies: &channel::Sender<Reply>) -> Result<(), Gone> {
        let Job { set, shard, wanted } = job;
        let Some(set) = self.sets.get(set as usize) else {
            return Ok(()); // Jobs are made from this very list.
        };
        let Contents::Indexed(indices) = &set.contents else {
            return Ok(()); // Only indexed sets have planned positions.
        };
        let samples: Vec<u32> = wanted.iter().map(|(sample, _)| *sample).collect();
        let reading = &self.reading;
        let location = &set.shards[shard as usize];
        self.prefetch(location);
        let observer = LoaderReads::new(&location.name, &reading.meters, &reading.bytes);
        let mut answered = 0;
        while answered < wanted.len() {
            let mut gone = false;
            let rest = &samples[answered..];
            let mut visit = |sample: u32, result: Result<EncodedSample, SampleError>| {
                let Some((_, ticket)) = wanted.get(answered) else {
                    return false;
                };
                debug_assert_eq!(samples.get(answered), Some(&sample));
                answered += 1;
                reading.meters.read.add_items(1);
                let bytes = result.as_ref().map_or(0, EncodedSample::payload_bytes);
                let before = self.held.fetch_add(bytes, Ordering::AcqRel);
                let outcome = if before.saturating_add(bytes) > self.budget {
                    self.held.fetch_sub(bytes, Ordering::AcqRel);
                    Outcome::PutOff
                } else {
                    Outcome::Sample(result)
                };
                gone = replies.send((*ticket, outcome)).is_err();
                !gone
            };
            let is_same = set.check_size(shard, &reading.stop);
            let end = is_same.clone().and_then(|()| {
                read_samples(
                    location,
                    set.first_shard + shard,
                    &indices[shard as usize],
                    rest,
                    &reading.options,
                    &observer,
                    &reading.stop,
                    &mut visit,
                )
            });
            if gone {
                return Err(Gone);
            }
            if answered == wanted.len() {
                break;
            }
            let error = end.err().unwrap_or_else(|| ShardError {
                shard: location.name.to_string(),
                offset_bytes: 0,
                message: "holds fewer samples than its index says; index it again with \
                          `qfdata index --overwrite`"
                    .into(),
            });
            // One that cannot be read costs itself alone, so that what is lost does not depend on
            // which samples are read together. Nothing can be read of a shard that was replaced, and
            // a server that gave up on one sample was asked often enough.
            let is_lost = is_same.is_err() || location.path().is_none() || reading.stop.is_set();
            let lost = match is_lost {
                true => wanted.len(),
                false => answered + 1,
            };
            for (_, ticket) in &wanted[answered..lost] {
                let reply = (*ticket, Outcome::Failed(error.clone()));
                replies.send(reply).map_err(|_| Gone)?;
            }
            answered = lost;
        }
        Ok(())
    }
}
