//! Books what reading costs.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recycle::BytePool;
use super::stats::Meters;
use crate::shard::read::ReadObserver;
use crate::source::ShardBytes;

/// Books the time and bytes of file reads under `read`, what decompression adds under `decompress`.
pub(crate) struct TimedReads {
    meters: Arc<Meters>,
    bytes: Arc<BytePool>,
    file_time: Rc<Cell<Duration>>,
}

impl TimedReads {
    pub(crate) fn new(meters: &Arc<Meters>, bytes: &Arc<BytePool>) -> TimedReads {
        TimedReads {
            meters: meters.clone(),
            bytes: bytes.clone(),
            file_time: Rc::default(),
        }
    }
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
