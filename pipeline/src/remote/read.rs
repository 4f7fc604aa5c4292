//! Reads a range of an object with several requests ahead of the reader.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::failure::{Failure, Tries};
use super::object::{RemoteObject, Version};
use super::runtime::STOP_INTERVAL;
use super::store::TRY_LATER;
use crate::stop::Stop;

/// The bytes of a range, in order.
pub(super) struct RangeReader {
    object: Arc<RemoteObject>,
    version: Version,
    /// The next byte that the reader gets.
    offset: u64,
    end: u64,
    /// The first byte that no request has been made for.
    next: u64,
    /// Requests under way, in the order of their bytes.
    parts: VecDeque<Part>,
    /// Memory of parts that were read, for those to come.
    spare: Vec<VecDeque<u8>>,
    stop: Stop,
    deadline: Option<Instant>,
}

/// One range request and what has come of it.
struct Part {
    buffer: Arc<Buffer>,
    request: AbortHandle,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.request.abort();
    }
}

impl RangeReader {
    pub(super) fn new(
        object: Arc<RemoteObject>,
        version: Version,
        range: Range<u64>,
        stop: Stop,
    ) -> Self {
        RangeReader {
            object,
            version,
            offset: range.start,
            end: range.end.max(range.start),
            next: range.start,
            parts: VecDeque::new(),
            spare: Vec::new(),
            stop,
            deadline: None,
        }
    }

    /// Has every read fail that would wait beyond `deadline`.
    pub(super) fn hurry(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Makes as many requests as may be under way.
    fn ask_ahead(&mut self) -> io::Result<()> {
        let options = &self.object.store.options;
        let (parallel, part) = (options.parallel(), options.part());
        while self.next < self.end && self.parts.len() < parallel {
            let start = self.next;
            let (stretch, room) = if self.object.sends_whole_only() {
                let room = part.saturating_mul(parallel as u64);
                (Stretch::FromTheBeginning(start..self.end), room)
            } else {
                let end = self.end.min(start.saturating_add(part));
                (Stretch::Exactly(start..end), part)
            };
            self.next = stretch.range().end;
            let buffer = Arc::new(Buffer::new(room.min(self.next - start), self.spare.pop()));
            let filling = fill(
                self.object.clone(),
                self.version.clone(),
                stretch,
                buffer.clone(),
            );
            let request = self.object.store.runtime.spawn(filling)?;
            self.parts.push_back(Part { buffer, request });
        }
        Ok(())
    }
}

impl Read for RangeReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            self.ask_ahead()?;
            let Some(part) = self.parts.front() else {
                return Ok(0);
            };
            match part.buffer.take(out, &self.stop, self.deadline)? {
                Taken::Bytes(count) => {
                    self.offset += count as u64;
                    return Ok(count);
                }
                Taken::End => {
                    self.spare.push(part.buffer.take_memory());
                    self.parts.pop_front();
                }
                Taken::NoRanges => {
                    // From where the reader is, in one stream.
                    self.parts.clear();
                    self.next = self.offset;
                }
            }
        }
    }
}

/// The bytes that a request is for.
enum Stretch {
    Exactly(Range<u64>),
    /// Of a server that sends whole objects: the bytes before the range come too.
    FromTheBeginning(Range<u64>),
}

impl Stretch {
    fn range(&self) -> &Range<u64> {
        match self {
            Stretch::Exactly(range) | Stretch::FromTheBeginning(range) => range,
        }
    }
}

/// Fills `buffer` with the bytes of `stretch`: asks again from the byte reached while that may help.
async fn fill(object: Arc<RemoteObject>, version: Version, stretch: Stretch, buffer: Arc<Buffer>) {
    let buffer = Finishing(&buffer);
    let options = &object.store.options;
    let mut tries = Tries::new(options);
    let mut reached = stretch.range().start;
    let mut counted_from = reached;
    let failure = loop {
        let failure = match request(&object, &version, &stretch, &mut reached, buffer.0).await {
            Ok(()) => return buffer.0.finish(None),
            Err(failure) => failure,
        };
        let Failure::Passing { what, after } = failure else {
            break failure;
        };
        // Only a stream of the whole object is longer than a part, and it may fail more often.
        if reached - counted_from >= options.part() {
            counted_from = reached;
            tries = Tries::new(options);
        }
        let url = &object.url;
        match tries.next(after) {
            Some(pause) => {
                log::debug!("{url}: {what} at byte {reached}; asking again in {pause:?}");
                tokio::time::sleep(pause).await;
            }
            None => {
                let message = format!(
                    "{url}: cannot be read on from byte {reached}: {what}, after {} requests; {TRY_LATER}",
                    tries.made()
                );
                break Failure::Final(io::Error::other(message));
            }
        }
    };
    if matches!(failure, Failure::NoRanges) {
        object.whole_only.store(true, Ordering::Relaxed);
    }
    buffer.0.finish(Some(failure));
}

/// No reader waits for a request that ended without a word.
struct Finishing<'a>(&'a Buffer);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        self.0
            .finish(Some(Failure::passing("the request was ended")));
    }
}

/// Makes one request from `reached` on and moves that along with the bytes that come.
async fn request(
    object: &RemoteObject,
    version: &Version,
    stretch: &Stretch,
    reached: &mut u64,
    buffer: &Buffer,
) -> Result<(), Failure> {
    let end = stretch.range().end;
    if *reached >= end {
        return Ok(());
    }
    let (range, whole) = match stretch {
        Stretch::Exactly(_) => (Some(*reached..end), false),
        Stretch::FromTheBeginning(_) => (None, true),
    };
    let stall = object.store.options.stall_timeout;
    let mut at = if whole { 0 } else { *reached };
    let mut body = object.get(version, range).await?.into_stream();
    while *reached < end {
        let chunk = match tokio::time::timeout(stall, body.next()).await {
            Err(_) => {
                let seconds = stall.as_secs_f64();
                return Err(Failure::passing(format!(
                    "the server fell silent for {seconds} s"
                )));
            }
            Ok(None) => return Err(Failure::passing("the answer ends early")),
            Ok(Some(Err(error))) => {
                let reason = inmost(&error);
                return Err(Failure::passing(format!(
                    "the answer breaks off ({reason})"
                )));
            }
            Ok(Some(Ok(chunk))) => chunk,
        };
        let mut bytes = &chunk[..];
        // Of a whole object, what came before the byte reached.
        let before = usize::try_from(*reached - at)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        at += before as u64;
        bytes = &bytes[before..];
        let wanted = usize::try_from(end - *reached).unwrap_or(usize::MAX);
        if bytes.len() > wanted {
            if !whole {
                return Err(Failure::passing(
                    "the answer is longer than the range asked for",
                ));
            }
            bytes = &bytes[..wanted];
        }
        while !bytes.is_empty() {
            let count = buffer.put(bytes).await;
            bytes = &bytes[count..];
            *reached += count as u64;
            at += count as u64;
        }
    }
    Ok(())
}

fn inmost(error: &dyn std::error::Error) -> String {
    let mut inmost = error;
    while let Some(source) = inmost.source() {
        inmost = source;
    }
    inmost.to_string()
}

/// Bytes on their way from a request to the reader, never more than it was made for.
struct Buffer {
    state: Mutex<Filling>,
    room: usize,
    /// For the reader.
    arrived: Condvar,
    /// For the request.
    taken: Notify,
}

struct Filling {
    bytes: VecDeque<u8>,
    /// Nothing more comes: because all has come, or the reason.
    end: Option<Option<Failure>>,
}

enum Taken {
    Bytes(usize),
    End,
    NoRanges,
}

impl Buffer {
    /// With room for so many bytes, in the memory of another if there is one.
    fn new(room: u64, memory: Option<VecDeque<u8>>) -> Self {
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        // Of a size that the settings give; the system commits what is written to.
        let mut bytes = memory.unwrap_or_default();
        bytes.reserve_exact(room);
        Buffer {
            state: Mutex::new(Filling { bytes, end: None }),
            room,
            arrived: Condvar::new(),
            taken: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Filling> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in some of `bytes`, at least one, when there is room; returns how many.
    async fn put(&self, bytes: &[u8]) -> usize {
        loop {
            let taken = self.taken.notified();
            {
                let mut filling = self.lock();
                let count = bytes.len().min(self.room - filling.bytes.len());
                if count > 0 {
                    filling.bytes.extend(&bytes[..count]);
                    self.arrived.notify_one();
                    return count;
                }
            }
            taken.await;
        }
    }

    /// Its memory, once all bytes are taken.
    fn take_memory(&self) -> VecDeque<u8> {
        std::mem::take(&mut self.lock().bytes)
    }

    fn finish(&self, failure: Option<Failure>) {
        // The first word counts.
        self.lock().end.get_or_insert(failure);
        self.arrived.notify_one();
    }

    /// Waits for bytes and moves them to `out`.
    fn take(&self, out: &mut [u8], stop: &Stop, deadline: Option<Instant>) -> io::Result<Taken> {
        let mut filling = self.lock();
        loop {
            if !filling.bytes.is_empty() {
                let count = filling.bytes.read(out)?;
                self.taken.notify_one();
                return Ok(Taken::Bytes(count));
            }
            match &filling.end {
                Some(None) => return Ok(Taken::End),
                Some(Some(Failure::NoRanges)) => return Ok(Taken::NoRanges),
                Some(Some(Failure::Final(error))) => {
                    return Err(io::Error::new(error.kind(), error.to_string()))
                }
                Some(Some(Failure::Passing { what, .. })) => {
                    return Err(io::Error::other(what.clone()))
                }
                None => {}
            }
            stop.check()?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ErrorKind::TimedOut.into());
            }
            let waited = self.arrived.wait_timeout(filling, STOP_INTERVAL);
            filling = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
