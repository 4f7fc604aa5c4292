//! Records what reading costs.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::loader::meters::stats::Meters;
use crate::shard::read::WatchReads;
use crate::source::ShardBytes;

/// Records the time and bytes of a shard's file reads under `read`, what decompression adds under
/// `decompress`; and traces both.
pub(crate) struct TimedReads {
    shard: Arc<str>,
    meters: Arc<Meters>,
    file_time: Rc<Cell<Duration>>,
}

impl TimedReads {
    pub(crate) fn new(shard: &Arc<str>, meters: &Arc<Meters>) -> TimedReads {
        TimedReads {
            shard: shard.clone(),
            meters: meters.clone(),
            file_time: Rc::default(),
        }
    }

    pub(crate) fn timed<R>(&self, file: R) -> TimedFile<R> {
        TimedFile {
            inner: file,
            shard: self.shard.clone(),
            meters: self.meters.clone(),
            time: self.file_time.clone(),
        }
    }
}

impl WatchReads for TimedReads {
    fn watch_open(
        &self,
        open: &mut dyn FnMut() -> io::Result<ShardBytes>,
    ) -> io::Result<ShardBytes> {
        let span = self.meters.span("open");
        let file = open();
        if let Some(span) = span {
            span.end(&[("shard", (&*self.shard).into())]);
        }
        file
    }

    fn watch_file(&self, file: ShardBytes) -> Box<dyn Read> {
        Box::new(self.timed(file))
    }

    fn watch_decompressor(&self, decompressor: Box<dyn Read>) -> Box<dyn Read> {
        Box::new(TimedDecompressor {
            inner: decompressor,
            shard: self.shard.clone(),
            meters: self.meters.clone(),
            file_time: self.file_time.clone(),
        })
    }
}

pub(crate) struct TimedFile<R> {
    inner: R,
    shard: Arc<str>,
    meters: Arc<Meters>,
    time: Rc<Cell<Duration>>,
}

impl<R: Seek> Seek for TimedFile<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl<R: Read> Read for TimedFile<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        let result = self.inner.read(buffer);
        let elapsed = start.elapsed();
        self.time.set(self.time.get() + elapsed);
        let count = result.as_ref().map_or(0, |count| *count as u64);
        let meter = &self.meters.read;
        meter.add_busy(elapsed);
        meter.add_bytes(count);
        meter.trace_read(&self.shard, count, start, elapsed);
        result
    }
}

struct TimedDecompressor {
    inner: Box<dyn Read>,
    shard: Arc<str>,
    meters: Arc<Meters>,
    file_time: Rc<Cell<Duration>>,
}

impl Read for TimedDecompressor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file_before = self.file_time.get();
        let start = Instant::now();
        let result = self.inner.read(buffer);
        let elapsed = start.elapsed();
        let in_file = self.file_time.get() - file_before;
        let count = result.as_ref().map_or(0, |count| *count as u64);
        let meter = &self.meters.decompress;
        meter.add_busy(elapsed.saturating_sub(in_file));
        meter.add_items(1);
        meter.add_bytes(count);
        // Reads of the file lie within.
        meter.trace_read(&self.shard, count, start, elapsed);
        result
    }
}
