//! Batches on the device before a step asks for them.
//!
//! ```text
//! Loader ──▶ thread qf-upload: page-locked batch ──own stream──▶ device, normalised ──queue──▶ step
//! ```
//!
//! While a step computes, one batch waits on the device and the next is on its way. The CPU takes the
//! same path, with plain memory. On a GPU a tower that is not trained belongs to the way: it runs one
//! batch ahead of the steps, beside them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qf_pipeline::loader::{
    LoaderMonitor, LoaderReport, LoaderState, QueueReport, SkipReports, StageReport, TakenReports,
};
use qf_pipeline::trace::{Arg, Trace};
use qf_pipeline::{Batch, Loader, PipelineError};
use tch::{Device, Tensor};

use crate::accelerator::{use_here, OwnStream};
use crate::blip2::FrozenTower;
use crate::error::ModelError;
use crate::host::{text_lengths, upload_on, DeviceBatch};

/// Batches that wait on the device, beside the one that is on its way.
const WAITING: usize = 1;

/// How often a waiting caller looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

const QUEUE: &str = "batches on the device";

/// Shorter waits are not traced: nobody could see them.
const TRACED_WAIT: Duration = Duration::from_micros(100);

/// A batch whose numbers are on the device.
pub struct ReadyBatch {
    /// What the loader gave: samples, captions, state.
    pub host: Batch,
    /// Its images and texts.
    pub input: DeviceBatch,
    /// `[B, M, E]` f32, where the feed has a tower.
    pub features: Option<Tensor>,
    /// `[N]`: tokens of each text.
    pub text_lengths: Vec<i64>,
    /// How long the feed waited for the loader to give this batch.
    loader_wait: Duration,
}

impl ReadyBatch {
    /// Tokens of the longest text.
    pub fn longest_text(&self) -> i64 {
        self.text_lengths.iter().copied().max().unwrap_or(0)
    }

    /// Has this thread's present stream read the tensors, which another one made.
    pub(crate) fn use_here(&self) -> Result<(), ModelError> {
        let input = &self.input;
        let tensors = [&input.images, &input.token_ids, &input.attention_mask];
        let mut tensors = (tensors.into_iter())
            .chain(&input.image_ids)
            .chain(&self.features);
        tensors.try_for_each(use_here)
    }
}

/// How long a step waited for its batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchWait {
    /// For the loader.
    pub data: Duration,
    /// For the tower, and for the copy to the device.
    pub tower: Duration,
}

/// Takes batches from a loader and puts them on a device, on a thread of its own. Dropping it stops
/// the thread and the loader.
pub struct DeviceFeed {
    batches: Option<Receiver<Message>>,
    thread: Option<JoinHandle<()>>,
    monitor: LoaderMonitor,
    skips: Option<SkipReports>,
    meter: Arc<Meter>,
    state: LoaderState,
    taken: u64,
    /// Those that lay there when they were asked for.
    were_ready: u64,
    /// All waiting of steps for a batch.
    empty_wait: Duration,
    /// That for the last batch.
    wait: BatchWait,
}

enum Message {
    Batch(Box<ReadyBatch>),
    End(Box<LoaderState>),
    Failed(ModelError),
}

/// What the thread has done so far.
#[derive(Debug)]
struct Meter {
    started: Instant,
    images: AtomicU64,
    bytes: AtomicU64,
    busy_ns: AtomicU64,
    tower_ns: AtomicU64,
    full_wait_ns: AtomicU64,
}

impl DeviceFeed {
    /// Begins to take batches. The loader should have the device's
    /// [allocator](crate::host::batch_allocator). A `tower` is for a GPU: on the CPU it would contend with
    /// the steps for the cores.
    ///
    /// # Errors
    /// [`ModelError::Pipeline`] when no thread can be started.
    pub fn start(
        loader: Loader,
        device: Device,
        tower: Option<FrozenTower>,
    ) -> Result<DeviceFeed, ModelError> {
        DeviceFeed::start_with(loader, device, tower, Loader::next_batch)
    }

    /// The same with another way of asking for the next batch.
    pub(crate) fn start_with(
        loader: Loader,
        device: Device,
        tower: Option<FrozenTower>,
        mut next: impl FnMut(&mut Loader) -> Result<Option<Batch>, PipelineError> + Send + 'static,
    ) -> Result<DeviceFeed, ModelError> {
        let meter = Arc::new(Meter {
            started: Instant::now(),
            images: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            tower_ns: AtomicU64::new(0),
            full_wait_ns: AtomicU64::new(0),
        });
        let (sender, batches) = sync_channel(WAITING);
        let (monitor, state) = (loader.monitor(), loader.state().clone());
        let skips = loader.skip_reports().cloned();
        let shared = meter.clone();
        let thread = std::thread::Builder::new()
            .name("qf-upload".into())
            .spawn(move || {
                let mut loader = loader;
                let trace = loader.monitor().trace();
                let mut next = || next(&mut loader);
                let result = feed(
                    &mut next,
                    (device, tower.as_ref()),
                    &shared,
                    &sender,
                    trace.as_ref(),
                );
                let last = match result {
                    Ok(Closed::ByLoader) => Message::End(Box::new(loader.state().clone())),
                    Ok(Closed::ByReceiver) => return,
                    Err(error) => Message::Failed(error),
                };
                // The receiver may be gone: nobody wants to know.
                let _ = sender.send(last);
            })
            .map_err(|error| {
                PipelineError::Thread(format!("cannot start thread qf-upload: {error}"))
            })?;
        Ok(DeviceFeed {
            batches: Some(batches),
            thread: Some(thread),
            monitor,
            skips,
            meter,
            state,
            taken: 0,
            were_ready: 0,
            empty_wait: Duration::ZERO,
            wait: BatchWait::default(),
        })
    }

    /// The next batch, waiting for it if need be; `None` when the loader's epochs are over.
    ///
    /// # Errors
    /// What ended the loader, or [`ModelError::Torch`] when the device is out of memory; once, `None`
    /// after that.
    pub fn next_batch(&mut self) -> Result<Option<ReadyBatch>, ModelError> {
        self.next_batch_unless(&AtomicBool::new(false))
    }

    /// The same, but `None` soon after `stop` is set while no batch is there: a read from a server that
    /// hangs keeps nobody from ending. Another call may follow.
    ///
    /// # Errors
    /// As [`DeviceFeed::next_batch`].
    pub fn next_batch_unless(
        &mut self,
        stop: &AtomicBool,
    ) -> Result<Option<ReadyBatch>, ModelError> {
        let Some(batches) = &self.batches else {
            return Ok(None);
        };
        let message = match batches.try_recv() {
            Ok(message) => {
                self.were_ready += 1;
                self.wait = BatchWait::default();
                Some(message)
            }
            Err(_) => {
                let start = Instant::now();
                let message = loop {
                    match batches.recv_timeout(STOP_INTERVAL) {
                        Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                            break None
                        }
                        Err(RecvTimeoutError::Timeout) => {}
                        message => break Some(message.ok()),
                    }
                };
                let waited = start.elapsed();
                self.empty_wait += waited;
                self.wait = split(waited, message.as_ref().and_then(Option::as_ref));
                match message {
                    Some(message) => message,
                    None => return Ok(None),
                }
            }
        };
        let last = match message {
            Some(Message::Batch(batch)) => {
                self.state = batch.host.state.clone();
                self.taken += 1;
                return Ok(Some(*batch));
            }
            Some(Message::End(state)) => {
                self.state = *state;
                Ok(None)
            }
            Some(Message::Failed(error)) => Err(error),
            None => {
                let message = "the upload thread died; this is a bug".into();
                Err(PipelineError::Thread(message).into())
            }
        };
        self.batches = None;
        last
    }

    /// How long the last call of [`DeviceFeed::next_batch`] waited.
    pub fn last_wait(&self) -> BatchWait {
        self.wait
    }

    /// The loader's state after the last batch that was handed out: what is on its way does not count.
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// Takes the names of samples that were left out before the batch of this number was complete; see
    /// [`SkipReports::take_before`]. None of a loader that does not report them.
    pub fn take_skipped(&self, batch: u64) -> TakenReports {
        let skips = self.skips.as_ref();
        skips.map_or_else(TakenReports::default, |skips| skips.take_before(batch))
    }

    /// Where the time of the loader and of the upload went.
    pub fn report(&self) -> LoaderReport {
        let mut report = self.monitor.report();
        let meter = &*self.meter;
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let secs = |number: &AtomicU64| load(number) as f64 / 1e9;
        report.stages.push(StageReport::new(
            "upload",
            1,
            load(&meter.images),
            load(&meter.bytes),
            secs(&meter.busy_ns),
            meter.started.elapsed().as_secs_f64(),
        ));
        if load(&meter.tower_ns) > 0 {
            report.stages.push(StageReport::new(
                "tower",
                1,
                load(&meter.images),
                0,
                secs(&meter.tower_ns),
                meter.started.elapsed().as_secs_f64(),
            ));
        }
        report.queues.push(QueueReport {
            name: QUEUE.into(),
            capacity_items: Some(WAITING),
            items: self.taken,
            mean_items: self.were_ready as f64 / self.taken.max(1) as f64,
            full_wait_secs: secs(&meter.full_wait_ns),
            empty_wait_secs: self.empty_wait.as_secs_f64(),
        });
        report
    }
}

impl Drop for DeviceFeed {
    fn drop(&mut self) {
        // The thread may be waiting for the loader, or for room in the queue.
        self.monitor.stop();
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic showed in `next_batch`.
            let _ = thread.join();
        }
    }
}

/// Who ended the feed.
enum Closed {
    ByLoader,
    ByReceiver,
}

/// Of a step's wait, what the loader took and what came after.
fn split(waited: Duration, message: Option<&Message>) -> BatchWait {
    let data = match message {
        Some(Message::Batch(batch)) => waited.min(batch.loader_wait),
        _ => waited,
    };
    BatchWait {
        data,
        tower: waited - data,
    }
}

fn add(total: &AtomicU64, elapsed: Duration) {
    let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    total.fetch_add(elapsed, Ordering::Relaxed);
}

fn feed(
    next: &mut dyn FnMut() -> Result<Option<Batch>, PipelineError>,
    (device, tower): (Device, Option<&FrozenTower>),
    meter: &Meter,
    ready: &SyncSender<Message>,
    trace: Option<&Trace>,
) -> Result<Closed, ModelError> {
    let stream = OwnStream::enter(device)?;
    let mut asked = Instant::now();
    while let Some(host) = next()? {
        let loader_wait = asked.elapsed();
        let batch = prepare(host, loader_wait, (&stream, tower), meter, trace)?;
        let start = Instant::now();
        let sent = ready.send(Message::Batch(Box::new(batch)));
        let waited = start.elapsed();
        add(&meter.full_wait_ns, waited);
        if let Some(trace) = trace.filter(|_| waited >= TRACED_WAIT) {
            trace.record("wait: batches on the device full", start, waited, &[]);
        }
        if sent.is_err() {
            return Ok(Closed::ByReceiver);
        }
        asked = Instant::now();
    }
    Ok(Closed::ByLoader)
}

/// Copies a batch to the device, and has the tower look at its images.
fn prepare(
    host: Batch,
    loader_wait: Duration,
    (stream, tower): (&OwnStream, Option<&FrozenTower>),
    meter: &Meter,
    trace: Option<&Trace>,
) -> Result<ReadyBatch, ModelError> {
    let start = Instant::now();
    let input = tch::no_grad(|| upload_on(stream, &host))?;
    let elapsed = start.elapsed();
    add(&meter.busy_ns, elapsed);
    let texts = size_of_val(host.tokens.ids()) + size_of_val(host.tokens.mask());
    let bytes = (host.pixels().len() + texts) as u64;
    meter
        .images
        .fetch_add(host.batch_size as u64, Ordering::Relaxed);
    meter.bytes.fetch_add(bytes, Ordering::Relaxed);
    if let Some(trace) = trace {
        trace.record("upload", start, elapsed, &[("bytes", Arg::from(bytes))]);
    }
    let start = Instant::now();
    let features = tower.map(|tower| tower.features(&input.images));
    let features = features.transpose()?;
    if features.is_some() {
        stream.wait()?;
        let elapsed = start.elapsed();
        add(&meter.tower_ns, elapsed);
        if let Some(trace) = trace {
            trace.record("tower", start, elapsed, &[]);
        }
    }
    Ok(ReadyBatch {
        text_lengths: text_lengths(&host),
        host,
        input,
        features,
        loader_wait,
    })
}
