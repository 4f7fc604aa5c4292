//! Reads a range of an object with several requests ahead of the reader.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::failure::Failure;
use super::object::RemoteObject;
use super::patience::Patience;
use super::runtime::STOP_INTERVAL;
use super::store::Body;
use super::version::Version;
use crate::stop::Stop;

/// The bytes of a range, in order.
pub(super) struct RangeReader {
    object: Arc<RemoteObject>,
    version: Version,
    /// The next byte that the reader gets.
    offset: u64,
    /// One past the last byte; of an object of unknown length as far as can be.
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
    /// Reads `range`, or all there is.
    pub(super) fn new(
        object: Arc<RemoteObject>,
        version: Version,
        range: Option<Range<u64>>,
        stop: Stop,
    ) -> Self {
        let range = range.unwrap_or(0..version.size.unwrap_or(u64::MAX));
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
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
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
    let store = &object.store;
    let mut patience = store.patience(&object.name, store.options.outage);
    let mut reached = stretch.range().start;
    let failure = loop {
        let request = request(
            &object,
            &version,
            &stretch,
            &mut reached,
            buffer.0,
            &mut patience,
        );
        let failure = match request.await {
            Ok(()) => {
                patience.done();
                return buffer.0.finish(None);
            }
            Err(failure) => failure,
        };
        let Failure::Transient { what, after, .. } = failure else {
            store.health.answered();
            break failure;
        };
        let name = &object.name;
        match patience.failed(&what, after) {
            Some(pause) => {
                log::debug!("{name}: {what} at byte {reached}; asking again in {pause:?}");
                patience.pause(pause).await;
            }
            None => {
                let what = patience.complaint(&what);
                let message = format!("{name}: cannot be read on from byte {reached}: {what}");
                break Failure::last(ErrorKind::Other, message);
            }
        }
    };
    if matches!(failure, Failure::NoRanges) {
        object.note_whole_only();
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
    patience: &mut Patience,
) -> Result<(), Failure> {
    let end = stretch.range().end;
    if *reached >= end {
        return Ok(());
    }
    let (range, whole) = match stretch {
        Stretch::Exactly(_) => (Some(*reached..end), false),
        Stretch::FromTheBeginning(_) => (None, true),
    };
    let mut at = if whole { 0 } else { *reached };
    let answer = object.get(version, range);
    let mut body = object.store.once(patience, answer).await?;
    let mut pace = Pace::new(object);
    while *reached < end {
        let before = patience.waited();
        let chunk = match pace.next(&mut body, patience).await? {
            Some(chunk) => chunk,
            // The end is where the server says, since nobody knew.
            None if version.size.is_none() => return Ok(()),
            None => return Err(Failure::passing("the answer ends early")),
        };
        let mut bytes = &chunk[..];
        // Of a whole object, what came before the byte reached.
        let known = usize::try_from(*reached - at)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        if known > 0 {
            patience.forgive(before);
        }
        at += known as u64;
        bytes = &bytes[known..];
        let wanted = usize::try_from(end - *reached).unwrap_or(usize::MAX);
        if bytes.len() > wanted {
            if !whole {
                return Err(Failure::passing(
                    "the answer is longer than the range asked for",
                ));
            }
            bytes = &bytes[..wanted];
        }
        patience.got(bytes.len());
        while !bytes.is_empty() {
            let count = buffer.put(bytes).await;
            bytes = &bytes[count..];
            *reached += count as u64;
            at += count as u64;
        }
    }
    Ok(())
}

/// Watches that an answer brings bytes fast enough.
struct Pace {
    /// Time in which as many bytes have to come as [`Pace::least`].
    window: Duration,
    least: u64,
    /// Of the present window: time waited, bytes that came.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(object: &RemoteObject) -> Pace {
        let options = &object.store.options;
        let window = options.stall_timeout;
        let least = f64::from(options.least_bytes_per_s) * window.as_secs_f64();
        Pace {
            window,
            least: (least as u64).max(1),
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The next bytes; none at the end of the answer.
    async fn next(
        &mut self,
        body: &mut Body,
        patience: &mut Patience,
    ) -> Result<Option<super::store::Chunk>, Failure> {
        loop {
            let start = Instant::now();
            let left = self.window.saturating_sub(self.waited);
            let chunk = patience.wait(left, body.chunk()).await;
            self.waited += start.elapsed();
            match chunk {
                Some(Ok(chunk)) => {
                    self.bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                    return Ok(chunk);
                }
                Some(Err(reason)) => {
                    return Err(Failure::passing(format!(
                        "the answer breaks off ({reason})"
                    )))
                }
                None => {}
            }
            let is_over = self.waited >= self.window;
            if !is_over || self.bytes < self.least {
                let seconds = self.waited.as_secs_f64();
                if let Some(failure) = patience.earlier_failure() {
                    return Err(Failure::passing(failure));
                }
                return Err(Failure::passing(match self.bytes {
                    0 => format!("the server fell silent for {seconds:.1} s"),
                    bytes => format!("the server sent {bytes} bytes in {seconds:.1} s"),
                }));
            }
            self.waited = Duration::ZERO;
            self.bytes = 0;
        }
    }
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
                Some(Some(Failure::Final { error, .. })) => {
                    return Err(io::Error::new(error.kind(), error.to_string()))
                }
                Some(Some(Failure::Transient { what, .. })) => {
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
