//! What the loader did and where its time went.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::queue::{add_since, QueueMeter};
use crate::error::SkipReason;

/// The books of a run: `read = delivered + skipped by reason + dropped_last`, at every batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Samples that came up in the order, good or bad.
    pub read: u64,
    /// Samples that were part of a batch.
    pub delivered: u64,
    /// Samples that were not, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
    /// Good samples at the end of an epoch that did not fill a batch.
    pub dropped_last: u64,
    /// Shards whose rest could not be read.
    pub bad_shards: u64,
}

impl Counters {
    /// All skipped samples.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Adds another rank's books.
    pub fn add(&mut self, other: &Counters) {
        self.read += other.read;
        self.delivered += other.delivered;
        for (&reason, count) in &other.skipped {
            *self.skipped.entry(reason).or_insert(0) += count;
        }
        self.dropped_last += other.dropped_last;
        self.bad_shards += other.bad_shards;
    }

    /// Whether every sample is accounted for.
    pub fn balance(&self) -> bool {
        self.read == self.delivered + self.skipped_total() + self.dropped_last
    }

    /// Every number of the books.
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> + '_ {
        let fixed = [
            self.read,
            self.delivered,
            self.dropped_last,
            self.bad_shards,
        ];
        fixed.into_iter().chain(self.skipped.values().copied())
    }
}

/// Items, bytes and busy time of one stage, added up over its threads.
#[derive(Debug, Default)]
pub(crate) struct StageMeter {
    items: AtomicU64,
    bytes: AtomicU64,
    busy_ns: AtomicU64,
}

impl StageMeter {
    /// Runs `work` as one item of the stage.
    pub(crate) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        add_since(&self.busy_ns, start);
        self.items.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Books one item that took this long.
    pub(crate) fn add_item(&self, bytes: u64, busy: Duration) {
        self.add_items(1);
        self.add_bytes(bytes);
        self.add_busy(busy);
    }

    pub(crate) fn add_items(&self, items: u64) {
        self.items.fetch_add(items, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_busy(&self, busy: Duration) {
        self.busy_ns.fetch_add(
            u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    fn report(&self, name: &str, threads: usize, wall: Duration) -> StageReport {
        let busy_secs = self.busy_ns.load(Ordering::Relaxed) as f64 / 1e9;
        StageReport::new(
            name,
            threads,
            self.items.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
            busy_secs,
            wall.as_secs_f64(),
        )
    }
}

/// All meters of a loader.
#[derive(Debug)]
pub(crate) struct Meters {
    started: Instant,
    pub(crate) read: StageMeter,
    pub(crate) decompress: StageMeter,
    pub(crate) decode: StageMeter,
    pub(crate) augment: StageMeter,
    pub(crate) tokenise: StageMeter,
    pub(crate) collate: StageMeter,
    pub(crate) shard_queue: Arc<QueueMeter>,
    pub(crate) work_queue: Arc<QueueMeter>,
    pub(crate) batch_queue: Arc<QueueMeter>,
}

impl Default for Meters {
    fn default() -> Self {
        Meters {
            started: Instant::now(),
            read: StageMeter::default(),
            decompress: StageMeter::default(),
            decode: StageMeter::default(),
            augment: StageMeter::default(),
            tokenise: StageMeter::default(),
            collate: StageMeter::default(),
            shard_queue: Arc::default(),
            work_queue: Arc::default(),
            batch_queue: Arc::default(),
        }
    }
}

/// Sizes that a report needs beside the meters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacities {
    pub(crate) threads: usize,
    pub(crate) io_threads: usize,
    pub(crate) work_items: usize,
    pub(crate) batches: usize,
}

impl Meters {
    pub(crate) fn report(&self, capacities: Capacities) -> LoaderReport {
        let wall = self.started.elapsed();
        let Capacities {
            threads,
            io_threads,
            work_items,
            batches,
        } = capacities;
        let queue = |name: &str, meter: &QueueMeter, capacity: Option<usize>| {
            let items = meter.items.load(Ordering::Relaxed);
            QueueReport {
                name: name.to_string(),
                capacity_items: capacity,
                mean_items: meter.occupancy_sum.load(Ordering::Relaxed) as f64
                    / items.max(1) as f64,
                full_wait_secs: meter.full_wait_ns.load(Ordering::Relaxed) as f64 / 1e9,
                empty_wait_secs: meter.empty_wait_ns.load(Ordering::Relaxed) as f64 / 1e9,
            }
        };
        LoaderReport {
            wall_secs: wall.as_secs_f64(),
            threads,
            io_threads,
            stages: vec![
                self.read.report("read", io_threads, wall),
                self.decompress.report("decompress", io_threads, wall),
                self.decode.report("decode", threads, wall),
                self.augment.report("augment", threads, wall),
                self.tokenise.report("tokenise", threads, wall),
                self.collate.report("collate", 1, wall),
            ],
            queues: vec![
                queue("samples read ahead", &self.shard_queue, None),
                queue("samples in decoding", &self.work_queue, Some(work_items)),
                queue("batches ready", &self.batch_queue, Some(batches)),
            ],
        }
    }
}

/// Throughput of one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// `read`, `decompress`, `decode`, `augment`, `tokenise`, `collate`, or a step of training.
    pub name: String,
    /// Threads that run it.
    pub threads: usize,
    /// Items that went through.
    pub items: u64,
    /// Items per second of one thread that does nothing else: what the stage could do.
    pub items_per_busy_sec: f64,
    /// Bytes that went through, where that is known.
    pub bytes: u64,
    /// Busy time, added up over the threads.
    pub busy_secs: f64,
    /// Busy time as a share of `threads` × wall time.
    pub busy_share: f64,
}

impl StageReport {
    /// A row from raw sums.
    pub fn new(
        name: &str,
        threads: usize,
        items: u64,
        bytes: u64,
        busy_secs: f64,
        wall_secs: f64,
    ) -> Self {
        StageReport {
            name: name.to_string(),
            threads,
            items,
            items_per_busy_sec: if busy_secs > 0.0 {
                items as f64 / busy_secs
            } else {
                0.0
            },
            bytes,
            busy_secs,
            busy_share: busy_secs / (wall_secs.max(1e-9) * threads.max(1) as f64),
        }
    }
}

/// What a queue went through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueReport {
    /// Which queue.
    pub name: String,
    /// Items it can hold, where bounded by items.
    pub capacity_items: Option<usize>,
    /// Items found in it, averaged over takes.
    pub mean_items: f64,
    /// Time its producer was blocked because it was full: the consumer is slower.
    pub full_wait_secs: f64,
    /// Time its consumer was blocked because it was empty: the producer is slower.
    pub empty_wait_secs: f64,
}

/// Where a loader's time went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoaderReport {
    /// Time since the loader started.
    pub wall_secs: f64,
    /// Threads that decode, augment and tokenise.
    pub threads: usize,
    /// Threads that read and decompress.
    pub io_threads: usize,
    /// One row per stage, in flow order.
    pub stages: Vec<StageReport>,
    /// One row per queue, in flow order.
    pub queues: Vec<QueueReport>,
}
