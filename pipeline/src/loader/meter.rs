//! Books what reading costs.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recycle::BytePool;
use super::shard_file::ShardFile;
use super::stats::Meters;
use crate::shard::read::ReadObserver;
use crate::source::ShardBytes;
use crate::stop::Stop;

/// Books the time and bytes of a shard's file reads under `read`, what decompression adds under
/// `decompress`; and traces both.
pub(crate) struct TimedReads {
    shard: Arc<str>,
    meters: Arc<Meters>,
    bytes: Arc<BytePool>,
    file_time: Rc<Cell<Duration>>,
    /// The shard, where it is open already.
    opened: Option<(Arc<ShardFile>, Stop)>,
}

impl TimedReads {
    pub(crate) fn new(shard: &Arc<str>, meters: &Arc<Meters>, bytes: &Arc<BytePool>) -> TimedReads {
        TimedReads {
            shard: shard.clone(),
            meters: meters.clone(),
            bytes: bytes.clone(),
            file_time: Rc::default(),
            opened: None,
        }
    }

    /// Reads from this file, if there is one, instead of opening the shard.
    pub(crate) fn with_file(self, file: Option<Arc<ShardFile>>, stop: &Stop) -> TimedReads {
        TimedReads {
            opened: file.map(|file| (file, stop.clone())),
            ..self
        }
    }
}

impl ReadObserver for TimedReads {
    fn new_bytes(&self, len: usize) -> Vec<u8> {
        self.bytes.take(len)
    }

    fn watch_open(
        &self,
        open: &mut dyn FnMut() -> io::Result<ShardBytes>,
    ) -> io::Result<ShardBytes> {
        let span = self.meters.span("open");
        let file = match &self.opened {
            Some((file, stop)) => Ok(file.bytes(stop)),
            None => open(),
        };
        if let Some(span) = span {
            span.end(&[("shard", (&*self.shard).into())]);
        }
        file
    }

    fn watch_file(&self, file: ShardBytes) -> Box<dyn Read> {
        Box::new(TimedFile {
            inner: file,
            shard: self.shard.clone(),
            meters: self.meters.clone(),
            time: self.file_time.clone(),
        })
    }

    fn watch_decompressor(&self, decompressor: Box<dyn Read>) -> Box<dyn Read> {
        let meters = self.meters.clone();
        Box::new(TimedDecompressor {
            inner: decompressor,
            shard: self.shard.clone(),
            meters,
            file_time: self.file_time.clone(),
        })
    }
}

struct TimedFile {
    inner: Box<dyn Read>,
    shard: Arc<str>,
    meters: Arc<Meters>,
    time: Rc<Cell<Duration>>,
}

impl Read for TimedFile {
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
