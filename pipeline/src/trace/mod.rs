//! A timeline of what threads, queues and devices did, for Perfetto (<https://ui.perfetto.dev>) and
//! `chrome://tracing`.
//!
//! The file is the JSON object form of the
//! [Trace Event Format](https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU):
//! a track for every thread that records, named as the thread is, complete events (`X`) on it, and
//! counters (`C`). `otherData` says how many events were written and how many were not.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use qf_pipeline::trace::{Trace, TraceFile, TraceLimits};
//! # let dir = tempfile::tempdir()?;
//! let path = dir.path().join("trace.json");
//! let trace = Trace::create(&path, TraceLimits::default())?;
//! {
//!     let _step = trace.span("step");
//!     trace.span("forward").end(&[("batch", 16.into())]);
//! }
//! trace.counter("batches ready", 3.0);
//! let copies = trace.track("GPU copies");
//! copies.record("to the device", Instant::now(), Duration::from_micros(80), &[]);
//! let summary = trace.finish()?;
//! assert_eq!((summary.events, summary.dropped()), (4, 0));
//! assert_eq!(TraceFile::read(&path)?.tracks.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Whole or not there.** Events go to a hidden temporary file, which becomes `path` in
//! [`Trace::finish`]; a trace that is dropped or [discarded](Trace::discard) leaves nothing. A process that
//! is killed leaves the temporary file, `.NAME.XXXXXX.tmp`. It has one event a line, so that it opens
//! after `sed -i '$d' FILE; echo ']}' >> FILE`.
//!
//! **Never in the way.** A thread that records formats its event into memory of its own and hands it
//! over under a lock; a thread of the trace, `qf-trace`, writes to the disk. Where the disk is too slow, or
//! [`TraceLimits::max_events`] are written, events are left out and counted. An error of the disk is
//! kept for [`Trace::finish`].

mod line;
mod read;
mod sink;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use line::{push, write_args, write_str, write_time};
use sink::Sink;

pub use line::{Arg, Args};
pub use read::{CounterEvent, SpanEvent, TraceFile, TraceTrackFile};

use crate::atomic_file::AtomicFile;
use crate::error::PipelineError;

/// An item is slow from this multiple of its stage's mean on.
const SLOW_FACTOR: u64 = 4;

/// Items before a stage's mean means anything.
const SLOW_AFTER_ITEMS: u64 = 8;

/// Shorter items are not called slow, whatever the mean: that is the scheduler, not the item.
const SLOW_AT_LEAST: Duration = Duration::from_micros(100);

/// How much a trace may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceLimits {
    /// Events that are written; later ones are counted only. Default 1,000,000, which is about 120 MB
    /// and takes a viewer some seconds to open.
    pub max_events: u64,
}

impl Default for TraceLimits {
    fn default() -> Self {
        TraceLimits {
            max_events: 1_000_000,
        }
    }
}

/// What became of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSummary {
    /// The file.
    pub path: PathBuf,
    /// Spans and counter values in it.
    pub events: u64,
    /// Events left out because [`TraceLimits::max_events`] were written.
    pub over_limit: u64,
    /// Events left out because the disk was too slow, or because their value was no finite number.
    pub not_written: u64,
}

impl TraceSummary {
    /// All events that are missing.
    pub fn dropped(&self) -> u64 {
        self.over_limit + self.not_written
    }
}

/// A recorder; clones write to the same file.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    /// Tells traces apart in a thread's memory.
    number: u64,
    path: PathBuf,
    /// Time 0 of the file.
    origin: Instant,
    recording: Arc<AtomicBool>,
    max_events: u64,
    /// Events so far, written or not.
    events: AtomicU64,
    sink: Mutex<Sink>,
}

/// A thread's own: which track it has in the trace it recorded to last, and room for a line.
struct Local {
    trace: u64,
    track: u32,
    line: Vec<u8>,
}

thread_local! {
    static LOCAL: RefCell<Local> = const {
        RefCell::new(Local { trace: 0, track: 0, line: Vec::new() })
    };
}

impl Trace {
    /// Opens the temporary file beside `path` and records from now on.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming `path`, [`PipelineError::Thread`] when no thread can be started.
    pub fn create(path: impl AsRef<Path>, limits: TraceLimits) -> Result<Trace, PipelineError> {
        static TRACES: AtomicU64 = AtomicU64::new(1);
        let file = AtomicFile::create(path.as_ref())?;
        let recording = Arc::new(AtomicBool::new(true));
        let sink = Sink::start(file, recording.clone())?;
        Ok(Trace(Arc::new(Shared {
            number: TRACES.fetch_add(1, Ordering::Relaxed),
            path: path.as_ref().to_path_buf(),
            origin: Instant::now(),
            recording,
            max_events: limits.max_events,
            events: AtomicU64::new(0),
            sink: Mutex::new(sink),
        })))
    }

    /// Records, or passes over, what ends from now on: to keep a trace to some steps of a run. A span
    /// that began before is recorded with its beginning.
    pub fn set_recording(&self, recording: bool) {
        self.0.recording.store(recording, Ordering::Relaxed);
    }

    /// Whether events are recorded at the moment.
    pub fn is_recording(&self) -> bool {
        self.0.recording.load(Ordering::Relaxed)
    }

    /// A span on this thread's track that ends when the guard is dropped.
    pub fn span(&self, name: &'static str) -> Span {
        Span {
            trace: Some(self.clone()),
            name,
            start: Instant::now(),
        }
    }

    /// A span on this thread's track that is over. Spans of a thread have to lie within or beside one
    /// another, as calls do.
    pub fn record(&self, name: &str, start: Instant, duration: Duration, args: Args<'_>) {
        self.0.span(None, name, start, duration, &[args]);
    }

    /// A counter's value from now on. One that is not finite is not written, and counted as such.
    pub fn counter(&self, name: &str, value: f64) {
        self.counter_at(name, Instant::now(), value);
    }

    /// A counter's value from a moment on.
    pub fn counter_at(&self, name: &str, at: Instant, value: f64) {
        self.0.event(None, |line, head| {
            if !value.is_finite() {
                return false;
            }
            head.write(line, "C", name);
            let (at, _) = self.0.times(at, Duration::ZERO);
            write_time(line, "ts", at);
            push(line, format_args!(",\"args\":{{\"value\":{value}}}}}\n"));
            true
        });
    }

    /// A track that is no thread, such as a device's copies; one name is one track. What is recorded on
    /// it must not overlap but by lying within.
    pub fn track(&self, name: &str) -> TraceTrack {
        let track = self.0.sink().named_track(name);
        TraceTrack {
            trace: self.clone(),
            track,
        }
    }

    /// Names this thread's track, which is called as the thread is otherwise.
    pub fn name_this_thread(&self, name: &str) {
        self.0.sink().name_this_thread(name);
    }

    /// Names the process, `qftrain, rank 1` say, for viewers of several.
    pub fn name_process(&self, name: &str) {
        self.0.sink().name_process(name);
    }

    /// Items of one kind, which will know the slow ones.
    pub fn stage(&self, name: &'static str) -> TraceStage {
        TraceStage {
            trace: self.clone(),
            name,
            items: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
        }
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Ends recording, for all clones, and puts the file under its name.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the file: what kept it from being written, at any time, or that the
    /// trace was finished or discarded before. There is no file then.
    pub fn finish(&self) -> Result<TraceSummary, PipelineError> {
        self.set_recording(false);
        let events = self.0.events.load(Ordering::Relaxed);
        let over_limit = events.saturating_sub(self.0.max_events);
        let ended = self.0.sink().end();
        let io_error = |source| PipelineError::Io {
            path: self.0.path.clone(),
            source,
        };
        let Some(ended) = ended else {
            let again = std::io::Error::other("the trace was finished or discarded before");
            return Err(io_error(again));
        };
        let written = ended.events;
        let not_written = (events - over_limit).saturating_sub(written);
        let mut file = ended.into_file().map_err(io_error)?;
        let tail = format!(
            "],\"otherData\":{{\"events\":{written},\"left out over the limit\":{over_limit},\
             \"left out, not written\":{not_written}}}}}\n"
        );
        file.write_all(tail.as_bytes()).map_err(io_error)?;
        file.commit()?;
        Ok(TraceSummary {
            path: self.0.path.clone(),
            events: written,
            over_limit,
            not_written,
        })
    }

    /// Ends recording, for all clones, and leaves no file.
    pub fn discard(&self) {
        self.set_recording(false);
        let ended = self.0.sink().end();
        // Dropping the file removes it; an error in writing it does not matter any more.
        drop(ended.map(sink::Ended::into_file));
    }
}

impl Shared {
    fn sink(&self) -> MutexGuard<'_, Sink> {
        // Nothing in it is left half done by a panic: lines are appended whole.
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begin and length in ns, on the file's clock; what lies before its beginning is cut off.
    fn times(&self, start: Instant, duration: Duration) -> (u64, u64) {
        let from = start.saturating_duration_since(self.origin);
        let before = self.origin.saturating_duration_since(start);
        (nanos(from), nanos(duration.saturating_sub(before)))
    }

    fn span(
        &self,
        track: Option<u32>,
        name: &str,
        start: Instant,
        duration: Duration,
        args: &[Args<'_>],
    ) {
        self.event(track, |line, head| {
            head.write(line, "X", name);
            let (start, duration) = self.times(start, duration);
            write_time(line, "ts", start);
            write_time(line, "dur", duration);
            write_args(line, args);
            line.extend_from_slice(b"}\n");
            true
        });
    }

    /// Has `write` make the line of an event, if it is to be recorded and wants to be.
    fn event(&self, track: Option<u32>, write: impl FnOnce(&mut Vec<u8>, Head) -> bool) {
        if !self.recording.load(Ordering::Relaxed)
            || self.events.fetch_add(1, Ordering::Relaxed) >= self.max_events
        {
            return;
        }
        // A thread that is about to end has no memory of its own any more: its event counts as not
        // written.
        let _ = LOCAL.try_with(|local| {
            let Ok(mut local) = local.try_borrow_mut() else {
                return;
            };
            let track = track.unwrap_or_else(|| self.track_of_thread(&mut local));
            let line = &mut local.line;
            line.clear();
            if write(line, Head { track }) {
                self.sink().event(line);
            }
        });
    }

    fn track_of_thread(&self, local: &mut Local) -> u32 {
        if local.trace != self.number {
            local.track = self.sink().track_of_this_thread();
            local.trace = self.number;
        }
        local.track
    }
}

/// What every event begins with.
struct Head {
    track: u32,
}

impl Head {
    fn write(&self, line: &mut Vec<u8>, phase: &str, name: &str) {
        let process = std::process::id();
        let track = self.track;
        push(
            line,
            format_args!(",{{\"ph\":\"{phase}\",\"pid\":{process},\"tid\":{track},\"name\":"),
        );
        write_str(line, name);
    }
}

/// A span in progress; see [`Trace::span`].
#[must_use = "the span ends when this is dropped"]
pub struct Span {
    /// `None` once it is recorded.
    trace: Option<Trace>,
    name: &'static str,
    start: Instant,
}

impl Span {
    /// Ends the span and says more of it.
    pub fn end(mut self, args: Args<'_>) {
        self.record(args);
    }

    fn record(&mut self, args: Args<'_>) {
        if let Some(trace) = self.trace.take() {
            trace.record(self.name, self.start, self.start.elapsed(), args);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.record(&[]);
    }
}

/// A track that is no thread; see [`Trace::track`].
#[derive(Clone)]
pub struct TraceTrack {
    trace: Trace,
    track: u32,
}

impl TraceTrack {
    /// A span on the track.
    pub fn record(&self, name: &str, start: Instant, duration: Duration, args: Args<'_>) {
        let trace = &self.trace.0;
        trace.span(Some(self.track), name, start, duration, &[args]);
    }
}

/// Items of one kind, on the tracks of whatever threads work on them; see [`Trace::stage`].
///
/// An item that takes more than 4 times the mean of those before it (after the first 8, and at least
/// 0.1 ms) says which it is.
pub struct TraceStage {
    trace: Trace,
    name: &'static str,
    items: AtomicU64,
    total_ns: AtomicU64,
}

impl TraceStage {
    /// A span of one item, with `args`; one that is slow has also `slow: true` and `if_slow`.
    pub fn record(&self, start: Instant, duration: Duration, args: Args<'_>, if_slow: Args<'_>) {
        let trace = &self.trace.0;
        let slow = [args, if_slow, &[("slow", Arg::Bool(true))]];
        let args = match self.is_slow(duration) {
            true => &slow[..],
            false => &slow[..1],
        };
        trace.span(None, self.name, start, duration, args);
    }

    /// The trace it belongs to.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    fn is_slow(&self, duration: Duration) -> bool {
        let ns = nanos(duration);
        let before = self.total_ns.fetch_add(ns, Ordering::Relaxed);
        let items = self.items.fetch_add(1, Ordering::Relaxed);
        items >= SLOW_AFTER_ITEMS
            && duration >= SLOW_AT_LEAST
            && u128::from(ns) * u128::from(items) > u128::from(SLOW_FACTOR) * u128::from(before)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
