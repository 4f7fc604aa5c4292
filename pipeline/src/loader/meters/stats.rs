//! What the loader did and where its time went.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::queue::{add_ns, QueueMeter, QueueName};
use crate::process::cpu_time;
use crate::sample::SampleId;
use crate::trace::{Span, Trace, TraceStage};

/// Items, bytes and busy time of one stage, added up over its threads; and, in a loader that is
/// traced, a span for each.
#[derive(Default)]
pub(crate) struct StageMeter {
    items: AtomicU64,
    bytes: AtomicU64,
    busy_ns: AtomicU64,
    trace: Option<TraceStage>,
}

impl StageMeter {
    fn new(name: &'static str, trace: Option<&Trace>) -> StageMeter {
        StageMeter {
            trace: trace.map(|trace| trace.stage(name)),
            ..StageMeter::default()
        }
    }

    /// Counts one sample that took the stage from `start` until now. `bytes` are those that the sample
    /// had for the stage; the meter's own are added with [`StageMeter::add_bytes`].
    pub(crate) fn add_sample(&self, id: &SampleId, bytes: u64, start: Instant, busy: Duration) {
        self.add_items(1);
        self.add_busy(busy);
        if let Some(trace) = &self.trace {
            let which = [
                ("shard", (&*id.shard).into()),
                ("key", id.key.as_str().into()),
                ("bytes", bytes.into()),
            ];
            trace.record(start, busy, &[], &which);
        }
    }

    /// A read of a shard in the trace, where there is one; the meter's numbers are added beside it.
    pub(crate) fn trace_read(&self, shard: &str, bytes: u64, start: Instant, duration: Duration) {
        if let Some(trace) = &self.trace {
            let args = [("shard", shard.into()), ("bytes", bytes.into())];
            trace.record(start, duration, &args, &[]);
        }
    }

    pub(crate) fn add_items(&self, items: u64) {
        self.items.fetch_add(items, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_busy(&self, busy: Duration) {
        add_ns(&self.busy_ns, busy);
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
pub(crate) struct Meters {
    started: Instant,
    /// CPU time of the process at that moment.
    cpu_before: Option<Duration>,
    /// Where the loader is traced.
    pub(crate) trace: Option<Trace>,
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

impl Meters {
    pub(crate) fn new(trace: Option<Trace>) -> Meters {
        let stage = |name| StageMeter::new(name, trace.as_ref());
        let queue = |name| Arc::new(QueueMeter::new(name, trace.as_ref()));
        Meters {
            started: Instant::now(),
            cpu_before: cpu_time(),
            read: stage("read"),
            decompress: stage("decompress"),
            decode: stage("decode"),
            augment: stage("augment"),
            tokenise: stage("tokenise"),
            collate: stage("collate"),
            shard_queue: queue(QueueName::ReadAhead),
            work_queue: queue(QueueName::InDecoding),
            batch_queue: queue(QueueName::Batches),
            trace,
        }
    }

    /// Until the guard is dropped, a span on this thread's track where the loader is traced.
    pub(crate) fn span(&self, name: &'static str) -> Option<Span> {
        self.trace.as_ref().map(|trace| trace.span(name))
    }
}

/// Sizes that a report needs beside the meters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacities {
    pub(crate) cores: usize,
    pub(crate) threads: usize,
    pub(crate) io_threads: usize,
    pub(crate) is_remote: bool,
    pub(crate) work_items: usize,
    pub(crate) batches: usize,
}

impl Meters {
    pub(crate) fn report(&self, capacities: Capacities) -> LoaderReport {
        let wall = self.started.elapsed();
        let Capacities {
            cores,
            threads,
            io_threads,
            is_remote,
            work_items,
            batches,
        } = capacities;
        let queue = |meter: &QueueMeter, capacity: Option<usize>| {
            let items = meter.items.load(Ordering::Relaxed);
            QueueReport {
                name: meter.name.name().to_string(),
                capacity_items: capacity,
                items,
                mean_items: meter.occupancy_sum.load(Ordering::Relaxed) as f64
                    / items.max(1) as f64,
                full_wait_secs: meter.full_wait_ns.load(Ordering::Relaxed) as f64 / 1e9,
                empty_wait_secs: meter.empty_wait_ns.load(Ordering::Relaxed) as f64 / 1e9,
            }
        };
        LoaderReport {
            wall_secs: wall.as_secs_f64(),
            cpu_secs: (cpu_time().zip(self.cpu_before))
                .map(|(now, before)| now.saturating_sub(before).as_secs_f64()),
            cores,
            threads,
            io_threads,
            is_remote,
            stages: vec![
                self.read.report("read", io_threads, wall),
                self.decompress.report("decompress", io_threads, wall),
                self.decode.report("decode", threads, wall),
                self.augment.report("augment", threads, wall),
                self.tokenise.report("tokenise", threads, wall),
                self.collate.report("collate", 1, wall),
            ],
            queues: vec![
                queue(&self.shard_queue, None),
                queue(&self.work_queue, Some(work_items)),
                queue(&self.batch_queue, Some(batches)),
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
    /// Items that were taken from it.
    #[serde(default)]
    pub items: u64,
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
    /// CPU time that the whole process got meanwhile, where the system tells.
    #[serde(default)]
    pub cpu_secs: Option<f64>,
    /// Cores that this process may use.
    #[serde(default)]
    pub cores: usize,
    /// Threads that decode, augment and tokenise.
    pub threads: usize,
    /// Threads that read and decompress.
    pub io_threads: usize,
    /// Whether any shard comes over the network.
    #[serde(default)]
    pub is_remote: bool,
    /// One row per stage, in flow order.
    pub stages: Vec<StageReport>,
    /// One row per queue, in flow order.
    pub queues: Vec<QueueReport>,
}

impl LoaderReport {
    /// What was done after an earlier report of the same loader.
    pub fn since(&self, earlier: &LoaderReport) -> LoaderReport {
        let wall_secs = self.wall_secs - earlier.wall_secs;
        let stages = self.stages.iter().zip(&earlier.stages).map(|(now, then)| {
            StageReport::new(
                &now.name,
                now.threads,
                now.items.saturating_sub(then.items),
                now.bytes.saturating_sub(then.bytes),
                now.busy_secs - then.busy_secs,
                wall_secs,
            )
        });
        let queues = self.queues.iter().zip(&earlier.queues).map(|(now, then)| {
            let items = now.items.saturating_sub(then.items);
            let fill = now.mean_items * now.items as f64 - then.mean_items * then.items as f64;
            QueueReport {
                name: now.name.clone(),
                capacity_items: now.capacity_items,
                items,
                mean_items: fill / items.max(1) as f64,
                full_wait_secs: now.full_wait_secs - then.full_wait_secs,
                empty_wait_secs: now.empty_wait_secs - then.empty_wait_secs,
            }
        });
        LoaderReport {
            wall_secs,
            cpu_secs: (self.cpu_secs.zip(earlier.cpu_secs)).map(|(now, then)| now - then),
            stages: stages.collect(),
            queues: queues.collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_since_another_holds_what_came_between() {
        let capacities = Capacities {
            cores: 2,
            threads: 2,
            io_threads: 1,
            is_remote: false,
            work_items: 8,
            batches: 4,
        };
        let meters = Meters::new(None);
        let book = |items: u64, fill: u64| {
            meters.decode.add_items(items);
            meters.decode.add_bytes(100 * items);
            meters.decode.add_busy(Duration::from_millis(items));
            for _ in 0..items {
                meters.batch_queue.add_taken(Instant::now(), fill, 1);
            }
        };
        book(10, 4);
        let before = meters.report(capacities);
        book(30, 1);
        let between = meters.report(capacities).since(&before);
        let decode = &between.stages[2];
        assert_eq!((decode.items, decode.bytes), (30, 3000));
        assert!((decode.busy_secs - 0.03).abs() < 1e-9);
        assert!((decode.items_per_busy_sec - 1000.0).abs() < 1e-3);
        let batches = &between.queues[2];
        assert_eq!((batches.items, batches.capacity_items), (30, Some(4)));
        assert!((batches.mean_items - 1.0).abs() < 1e-9);
        assert!(between.wall_secs > 0.0 && between.wall_secs < 60.0);
    }
}
