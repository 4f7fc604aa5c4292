//! Records what reading costs.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recycle::BytePool;
use super::shard_file::ShardFile;
use super::shuffle_budget::ShuffleBudget;
use super::spill::MIN_BYTES as MIN_LEFT_BYTES;
use crate::loader::meters::stats::Meters;
use crate::shard::forward::ReadSeek;
use crate::shard::read::{Leave, ReadObserver};
use crate::source::ShardBytes;
use crate::stop::Stop;

/// Records the time and bytes of a shard's file reads under `read`, what decompression adds under
/// `decompress`; and traces both.
pub(crate) struct TimedReads {
    shard: Arc<str>,
    meters: Arc<Meters>,
    bytes: Arc<BytePool>,
    file_time: Rc<Cell<Duration>>,
    /// The shard, where it is open already.
    opened: Option<(Arc<ShardFile>, Stop)>,
    /// Of a shuffle that takes long members from the shard when their turn comes, once it is full.
    budget: Option<Arc<ShuffleBudget>>,
}

impl TimedReads {
    pub(crate) fn new(shard: &Arc<str>, meters: &Arc<Meters>, bytes: &Arc<BytePool>) -> TimedReads {
        TimedReads {
            shard: shard.clone(),
            meters: meters.clone(),
            bytes: bytes.clone(),
            file_time: Rc::default(),
            opened: None,
            budget: None,
        }
    }

    /// Leaves members in the file that are over a shuffle's budget.
    pub(crate) fn with_budget(self, budget: Option<Arc<ShuffleBudget>>) -> TimedReads {
        TimedReads { budget, ..self }
    }

    /// Reads from this file, if there is one, instead of opening the shard.
    pub(crate) fn with_file(self, file: Option<Arc<ShardFile>>, stop: &Stop) -> TimedReads {
        TimedReads {
            opened: file.map(|file| (file, stop.clone())),
            ..self
        }
    }

    fn timed<R>(&self, file: R) -> TimedFile<R> {
        TimedFile {
            inner: file,
            shard: self.shard.clone(),
            meters: self.meters.clone(),
            time: self.file_time.clone(),
        }
    }
}

impl ReadObserver for TimedReads {
    fn new_bytes(&self, len: usize) -> Vec<u8> {
        self.bytes.take(len)
    }

    fn seekable_reader(&self) -> Option<(Box<dyn ReadSeek>, u64)> {
        let (shard, stop) = self.opened.as_ref()?;
        // Some file systems do not tell lengths.
        if shard.len() == 0 {
            return None;
        }
        Some((Box::new(self.timed(shard.reader(stop))), shard.len()))
    }

    fn leaves(&self, offset: u64, len: u64) -> Leave {
        let (Some((shard, _)), Some(budget)) = (&self.opened, &self.budget) else {
            return Leave::Never;
        };
        // What is cut off is read, so that it says so before the sample goes on.
        let is_whole = offset
            .checked_add(len)
            .is_some_and(|end| end <= shard.len());
        if len < MIN_LEFT_BYTES || !is_whole {
            return Leave::Never;
        }
        if budget.is_for(len) {
            return Leave::IfUnreadable;
        }
        shard.will_need(offset, len);
        Leave::Now
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
        Box::new(self.timed(file))
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

struct TimedFile<R> {
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
