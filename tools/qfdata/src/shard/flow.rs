//! The flow of a run: rows are read (or downloaded) ahead, worked on by every core, and come out in
//! their order.
//!
//! ```text
//!  source ── rows ──▶ downloads (URLs) ──▶ workers ──▶ reorder ──▶ doubles, shards, metadata
//!  1 thread           bounded, async       N threads               the calling thread
//! ```
//!
//! What is read ahead is bounded by a [`Window`] of rows and bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use qf_pipeline::decode::DecodeLimits;
use qf_pipeline::write::ShardSample;

use super::fetch::Fetcher;
use super::row::{ImageRef, Name, Row, Skip};
use super::source::any::Source;
use super::work::{Facts, Recipe, Worker};
use crate::interrupt::Interrupt;
use crate::threads;

/// Rows between their reading and their end, for each thread.
const ROWS_A_THREAD: usize = 16;

/// Downloaded rows that wait for one before them, for each request at a time.
const ROWS_A_REQUEST: usize = 8;

/// Bytes of images between their reading and their end. One more row a thread may come on top.
const MAX_BYTES: u64 = 256 << 20;

/// How often a waiting thread looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// What became of a row, in the order of rows.
pub(super) struct Outcome {
    pub(super) position: u64,
    /// Not known of rows that do not parse.
    pub(super) name: Option<Name>,
    pub(super) facts: Facts,
    pub(super) sample: Result<ShardSample, Skip>,
    _ticket: Ticket,
}

/// What a run reads, and how.
pub(super) struct Flow<'a> {
    pub(super) source: &'a Source,
    /// Which rows.
    pub(super) rows: Range<u64>,
    pub(super) recipe: &'a Recipe,
    pub(super) threads: usize,
    /// For URLs.
    pub(super) fetcher: Option<&'a Fetcher>,
    pub(super) interrupt: &'a Interrupt,
}

struct Job {
    position: u64,
    row: Row,
    /// What came from a URL.
    downloaded: Option<Vec<u8>>,
    ticket: Ticket,
}

impl Flow<'_> {
    /// Hands every row to `accept`, in order; returns how many there were.
    ///
    /// # Errors
    /// Those of the source and of `accept`; that the user interrupted.
    pub(super) fn run(
        &self,
        accept: &mut dyn FnMut(Outcome) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let waiting = self
            .fetcher
            .map_or(0, |fetcher| fetcher.parallel() * ROWS_A_REQUEST);
        let window = Arc::new(Window::new(self.threads * ROWS_A_THREAD + waiting));
        let (jobs, work) = channel::unbounded::<Job>();
        let (results, done) = channel::unbounded::<Outcome>();
        // Decoders share the memory they allow.
        let limits = DecodeLimits::default();
        std::thread::scope(|scope| {
            let reader = {
                let (window, results) = (window.clone(), results.clone());
                threads::spawn(scope, move || {
                    let read = self.read(&window, &jobs, &results);
                    if read.is_err() {
                        window.close();
                    }
                    read
                })?
            };
            let started: anyhow::Result<Vec<_>> = (0..self.threads)
                .map(|_| {
                    let (work, results, limits) = (work.clone(), results.clone(), limits.clone());
                    threads::spawn(scope, move || self.work(&work, &results, limits))
                })
                .collect();
            drop((work, results));
            let accepted = started.and_then(|_| self.reorder(&done, &window, accept));
            window.close();
            // Workers that still send find nobody, and end.
            drop(done);
            let read = reader.join();
            let read = read.unwrap_or_else(|_| Err(anyhow::anyhow!("the reading thread panicked")));
            match (accepted, read) {
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
                (Ok(rows), Ok(())) => Ok(rows),
            }
        })
    }

    /// Reads rows and hands them to who is next.
    fn read(
        &self,
        window: &Arc<Window>,
        jobs: &Sender<Job>,
        results: &Sender<Outcome>,
    ) -> anyhow::Result<()> {
        let mut position = self.rows.start;
        let stop = self.interrupt.stop();
        self.source.read(self.rows.clone(), &stop, &mut |input| {
            let Some(mut ticket) = window.admit(self.interrupt)? else {
                return Ok(false);
            };
            let at = position;
            position += 1;
            let row = match input {
                Ok(row) => row,
                Err(skip) => {
                    let outcome = Outcome {
                        position: at,
                        name: None,
                        facts: Facts::default(),
                        sample: Err(skip),
                        _ticket: ticket,
                    };
                    return Ok(results.send(outcome).is_ok());
                }
            };
            let bytes = match &row.image {
                ImageRef::Bytes(bytes, _) => bytes.len(),
                _ => 0,
            };
            ticket.hold(bytes as u64);
            match (&row.image, self.fetcher) {
                (ImageRef::Url(url), Some(fetcher)) => {
                    let (jobs, results) = (jobs.clone(), results.clone());
                    let url = url.clone();
                    fetcher.start(url, move |downloaded| {
                        // Whoever waited may have ended.
                        match downloaded {
                            Ok(bytes) => {
                                ticket.hold(bytes.len() as u64);
                                let _ = jobs.send(Job {
                                    position: at,
                                    row,
                                    downloaded: Some(bytes),
                                    ticket,
                                });
                            }
                            Err((cause, message)) => {
                                let skip = Skip::new(row.name.origin.clone(), cause, message);
                                let _ = results.send(Outcome {
                                    position: at,
                                    name: Some(row.name),
                                    facts: Facts::default(),
                                    sample: Err(skip),
                                    _ticket: ticket,
                                });
                            }
                        }
                    });
                    Ok(true)
                }
                _ => {
                    let job = Job {
                        position: at,
                        row,
                        downloaded: None,
                        ticket,
                    };
                    Ok(jobs.send(job).is_ok())
                }
            }
        })
    }

    fn work(&self, work: &Receiver<Job>, results: &Sender<Outcome>, limits: DecodeLimits) {
        let mut worker = Worker::new(self.recipe, limits);
        for job in work {
            let Job {
                position,
                row,
                downloaded,
                mut ticket,
            } = job;
            let name = row.name.clone();
            let (facts, sample) = worker.make(row, downloaded);
            if let Ok(sample) = &sample {
                ticket.hold(sample.image.len() as u64);
            }
            let outcome = Outcome {
                position,
                name: Some(name),
                facts,
                sample,
                _ticket: ticket,
            };
            if results.send(outcome).is_err() {
                break;
            }
        }
    }

    fn reorder(
        &self,
        done: &Receiver<Outcome>,
        window: &Window,
        accept: &mut dyn FnMut(Outcome) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let mut next = self.rows.start;
        let mut waiting = BTreeMap::new();
        loop {
            match done.recv_timeout(STOP_INTERVAL) {
                Ok(outcome) => {
                    waiting.insert(outcome.position, outcome);
                    while let Some(outcome) = waiting.remove(&next) {
                        self.interrupt.check()?;
                        next += 1;
                        accept(outcome)?;
                    }
                }
                Err(channel::RecvTimeoutError::Timeout) => self.interrupt.check()?,
                Err(channel::RecvTimeoutError::Disconnected) => break,
            }
        }
        // A reader that failed says why; rows that it did not wait for are not a result.
        if !waiting.is_empty() && !window.is_closed() {
            anyhow::bail!("row {next} was lost on the way; this is a bug");
        }
        Ok(next - self.rows.start)
    }
}

/// Bounds what is between reading and end.
struct Window {
    max_rows: usize,
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    rows: usize,
    bytes: u64,
    is_closed: bool,
}

impl Window {
    fn new(max_rows: usize) -> Window {
        Window {
            max_rows,
            held: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for a row; `None` once closed. (A row always fits into an empty window,
    /// and only the thread that reads waits here: those before it get on.)
    fn admit(self: &Arc<Self>, interrupt: &Interrupt) -> anyhow::Result<Option<Ticket>> {
        let mut held = self.lock();
        loop {
            if held.is_closed {
                return Ok(None);
            }
            if held.rows == 0 || (held.rows < self.max_rows && held.bytes < MAX_BYTES) {
                held.rows += 1;
                return Ok(Some(Ticket {
                    window: self.clone(),
                    bytes: 0,
                }));
            }
            let waited = self.changed.wait_timeout(held, STOP_INTERVAL);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
            interrupt.check()?;
        }
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.lock().is_closed
    }
}

/// A row's place in the window.
struct Ticket {
    window: Arc<Window>,
    bytes: u64,
}

impl Ticket {
    /// It holds so many bytes from now on.
    fn hold(&mut self, bytes: u64) {
        let mut held = self.window.lock();
        held.bytes = held.bytes.saturating_sub(self.bytes).saturating_add(bytes);
        self.bytes = bytes;
        drop(held);
        self.window.changed.notify_all();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.window.lock();
        held.rows = held.rows.saturating_sub(1);
        held.bytes = held.bytes.saturating_sub(self.bytes);
        drop(held);
        self.window.changed.notify_all();
    }
}
