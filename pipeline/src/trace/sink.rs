//! Where lines of events go: a thread writes them in chunks, and nobody waits for it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{JoinHandle, ThreadId};

use crossbeam::channel;

use super::line::{push, write_str};
use crate::atomic_file::AtomicFile;
use crate::error::PipelineError;

/// Bytes handed over to the writing thread at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// Chunks that may wait for the disk: 8 MiB.
const MAX_CHUNKS: usize = 64;

/// Threads of a loader in the order of its flow, by the beginnings of their names; others come after
/// them in order of appearance.
const FLOW: [&str; 4] = ["qf-read", "qf-sequence", "qf-work", "qf-collate"];

pub(super) struct Sink {
    /// Lines that are not handed over.
    chunk: Vec<u8>,
    /// `None` once the trace has ended.
    chunks: Option<channel::Sender<Vec<u8>>>,
    writer: Option<JoinHandle<io::Result<AtomicFile>>>,
    /// Spans and counter values that were taken.
    events: u64,
    threads: HashMap<ThreadId, u32>,
    named: HashMap<String, u32>,
    tracks: u32,
}

/// A trace to which nothing is added any more.
pub(super) struct Ended {
    pub(super) events: u64,
    rest: Vec<u8>,
    writer: JoinHandle<io::Result<AtomicFile>>,
}

impl Ended {
    /// Waits for the writing thread; what it gives back ends with a whole event.
    pub(super) fn into_file(self) -> io::Result<AtomicFile> {
        let died = |_| io::Error::other("the thread qf-trace died; this is a bug");
        let mut file = self.writer.join().map_err(died)??;
        file.write_all(&self.rest)?;
        Ok(file)
    }
}

impl Sink {
    /// Begins a file. The writing thread clears `recording` where it cannot write any more.
    pub(super) fn start(
        file: AtomicFile,
        recording: Arc<AtomicBool>,
    ) -> Result<Sink, PipelineError> {
        let (chunks, to_write) = channel::bounded::<Vec<u8>>(MAX_CHUNKS);
        let body = move || {
            let written = write_chunks(file, &to_write);
            if written.is_err() {
                recording.store(false, Ordering::Relaxed);
            }
            written
        };
        let writer = std::thread::Builder::new()
            .name("qf-trace".into())
            .spawn(body)
            .map_err(|error| {
                PipelineError::Thread(format!("cannot start thread qf-trace: {error}"))
            })?;
        // The first event has no comma before it, and every trace has it.
        let mut chunk = b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n".to_vec();
        let labels = concat!("qf-pipeline ", env!("CARGO_PKG_VERSION"));
        metadata(&mut chunk, "", 0, "process_labels", "labels", |line| {
            write_str(line, labels);
        });
        Ok(Sink {
            chunk,
            chunks: Some(chunks),
            writer: Some(writer),
            events: 0,
            threads: HashMap::new(),
            named: HashMap::new(),
            tracks: 0,
        })
    }

    /// Takes the line of an event, or leaves it out where the disk is behind.
    pub(super) fn event(&mut self, line: &[u8]) {
        if self.has_room() {
            self.chunk.extend_from_slice(line);
            self.events += 1;
        }
    }

    fn has_room(&mut self) -> bool {
        let Some(chunks) = &self.chunks else {
            return false;
        };
        if self.chunk.len() < CHUNK_BYTES {
            return true;
        }
        // Only this end, under the lock of the trace, puts chunks in.
        if chunks.is_full() {
            return false;
        }
        let next = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        match chunks.try_send(std::mem::replace(&mut self.chunk, next)) {
            Ok(()) => true,
            Err(channel::TrySendError::Full(chunk)) => {
                self.chunk = chunk;
                false
            }
            // The thread met an error: what it says comes out at the end.
            Err(channel::TrySendError::Disconnected(_)) => {
                self.chunks = None;
                false
            }
        }
    }

    pub(super) fn track_of_this_thread(&mut self) -> u32 {
        let thread = std::thread::current();
        if let Some(track) = self.threads.get(&thread.id()) {
            return *track;
        }
        let track = self.new_track();
        self.threads.insert(thread.id(), track);
        match thread.name() {
            Some(name) => self.name_track(track, name),
            None => self.name_track(track, &format!("thread {track}")),
        }
        track
    }

    pub(super) fn name_this_thread(&mut self, name: &str) {
        let track = match self.threads.get(&std::thread::current().id()) {
            Some(track) => *track,
            None => {
                let track = self.new_track();
                self.threads.insert(std::thread::current().id(), track);
                track
            }
        };
        self.name_track(track, name);
    }

    pub(super) fn named_track(&mut self, name: &str) -> u32 {
        if let Some(track) = self.named.get(name) {
            return *track;
        }
        let track = self.new_track();
        self.named.insert(name.to_string(), track);
        self.name_track(track, name);
        track
    }

    pub(super) fn name_process(&mut self, name: &str) {
        metadata(&mut self.chunk, ",", 0, "process_name", "name", |line| {
            write_str(line, name);
        });
    }

    fn new_track(&mut self) -> u32 {
        self.tracks += 1;
        self.tracks
    }

    /// Names are written whatever the disk does: there are as many as threads.
    fn name_track(&mut self, track: u32, name: &str) {
        metadata(&mut self.chunk, ",", track, "thread_name", "name", |line| {
            write_str(line, name);
        });
        let place = sort_index(track, name);
        metadata(
            &mut self.chunk,
            ",",
            track,
            "thread_sort_index",
            "sort_index",
            |line| push(line, format_args!("{place}")),
        );
    }

    /// Takes nothing more; `None` if that was so before.
    pub(super) fn end(&mut self) -> Option<Ended> {
        self.chunks = None;
        let writer = self.writer.take()?;
        Some(Ended {
            events: self.events,
            rest: std::mem::take(&mut self.chunk),
            writer,
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The temporary file is gone when this returns, not some time after.
        drop(self.end().map(Ended::into_file));
    }
}

fn write_chunks(
    mut file: AtomicFile,
    chunks: &channel::Receiver<Vec<u8>>,
) -> io::Result<AtomicFile> {
    for chunk in chunks {
        file.write_all(&chunk)?;
    }
    Ok(file)
}

/// The line of a metadata event with one argument.
fn metadata(
    line: &mut Vec<u8>,
    comma: &str,
    track: u32,
    name: &str,
    arg: &str,
    value: impl FnOnce(&mut Vec<u8>),
) {
    let process = std::process::id();
    push(
        line,
        format_args!(
            "{comma}{{\"ph\":\"M\",\"pid\":{process},\"tid\":{track},\"name\":\"{name}\",\
             \"args\":{{\"{arg}\":"
        ),
    );
    value(line);
    line.extend_from_slice(b"}}\n");
}

/// Where a viewer puts a track.
fn sort_index(track: u32, name: &str) -> u64 {
    const PER_STAGE: u64 = 1_000_000;
    let place = FLOW.iter().position(|start| name.starts_with(start));
    let (stage, number) = match place {
        Some(stage) => {
            let number = name.rsplit('-').next().and_then(|end| end.parse().ok());
            (stage, number.unwrap_or(0))
        }
        None => (FLOW.len(), u64::from(track)),
    };
    stage as u64 * PER_STAGE + number.min(PER_STAGE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracks_follow_the_flow() {
        let names = [
            "qf-read-0",
            "qf-read-10",
            "qf-sequence",
            "qf-work-2",
            "qf-work-11",
            "qf-collate",
            "train",
            "GPU copies",
        ];
        let places: Vec<u64> = (1..).zip(names).map(|(t, n)| sort_index(t, n)).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(sort_index(u32::MAX, "qf-read-18446744073709551615") < sort_index(1, "qf-work-0"));
    }

    #[test]
    fn a_slow_disk_costs_events_and_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = AtomicFile::create(folder.path().join("trace.json")).unwrap();
        let mut sink = Sink::start(file, Arc::new(AtomicBool::new(true))).unwrap();
        // In place of the writing thread: nobody takes chunks.
        let (chunks, _stuck) = channel::bounded(2);
        let writer = sink.chunks.replace(chunks);
        let line = vec![b'x'; CHUNK_BYTES];
        for _ in 0..100 {
            sink.event(&line);
        }
        assert_eq!(sink.events, 3);
        assert!(sink.chunk.len() <= 2 * CHUNK_BYTES);
        drop(writer);
    }
}
