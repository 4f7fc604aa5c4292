//! The reorder buffer in front of the collator: positions in their order, each with its result once a worker has it.
//!
//! Who waits is woken seldom: the collator when a batch is there, the sequencer when many positions are
//! free. A thread that wakes for every sample costs as much as some stages do.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::pending::{Finished, Pending, Queued};
use crate::loader::meters::queue::{Closed, QueueMeter, MIN_TRACED_WAIT};
use crate::loader::plan::position::Event;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::trace::Trace;

/// How much a reorder buffer may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReorderLimits {
    /// Positions.
    pub(crate) items: usize,
    /// Bytes that they hold together; a single heavier one stands alone.
    pub(crate) bytes: usize,
    /// So many that are not finished keep the workers busy.
    pub(crate) busy: usize,
}

struct Entry {
    event: Queued,
    bytes: usize,
    /// Whether a worker has it, or has had it.
    is_sample: bool,
    is_finished: bool,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    /// Number of the first entry, counted from the beginning of the run.
    first: u64,
    bytes: usize,
    /// Entries at the front that are finished, ...
    ready: usize,
    /// ... and those among them that are no samples.
    others: usize,
    /// What the collator waits for, while it does.
    wanted: Option<usize>,
    /// Since when the workers have had nothing of what it waits for, and when that was before.
    idle_since: Option<Instant>,
    idle: Vec<(Instant, Duration)>,
    /// Where it is traced.
    waiting: Option<Waiting>,
    /// Whether the sequencer waits for a free slot.
    is_full: bool,
    /// Nobody adds to it, or takes from it, any more.
    is_ended: bool,
    is_closed: bool,
}

/// Which sample the collator waits for longest.
struct Waiting {
    /// Since when the front of the buffer waits for a worker.
    since: Instant,
    longest: (Instant, Duration),
    slowest: usize,
}

impl Waiting {
    fn new() -> Waiting {
        let now = Instant::now();
        Waiting {
            since: now,
            longest: (now, Duration::ZERO),
            slowest: 0,
        }
    }

    /// The front grows with this entry.
    fn advance(&mut self, at: usize) {
        let now = Instant::now();
        let waited = now - self.since;
        if waited > self.longest.1 {
            (self.longest, self.slowest) = ((self.since, waited), at);
        }
        self.since = now;
    }

    fn trace(&self, trace: &Trace, entries: &VecDeque<Entry>) {
        let (start, waited) = self.longest;
        let slowest = entries.get(self.slowest).map(|entry| &entry.event);
        let Some(Ok(Event::Position(_, Pending::InRow(_, Some(finished))))) = slowest else {
            return;
        };
        if waited < MIN_TRACED_WAIT {
            return;
        }
        let id = match finished {
            Ok(sample) => &sample.id,
            Err(error) => &*error.id,
        };
        let args = [
            ("shard", (&*id.shard).into()),
            ("key", id.key.as_str().into()),
        ];
        trace.record("wait: sample in decoding", start, waited, &args);
    }
}

impl State {
    /// Whether the collator should take what is ready.
    fn is_due(&self, wanted: usize, busy: usize) -> bool {
        let unfinished = self.entries.len() - self.ready;
        let is_stuck = self.is_full && unfinished < busy;
        let is_enough = self.ready >= wanted || self.others > 0 || is_stuck;
        (self.ready > 0 && is_enough) || (self.is_ended && unfinished == 0)
    }

    /// Whether to wake the collator.
    fn is_awaited(&self, busy: usize) -> bool {
        self.wanted.is_some_and(|wanted| self.is_due(wanted, busy))
    }

    fn has_room(&self, bytes: usize, limits: &ReorderLimits) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= limits.bytes;
        self.entries.len() < limits.items && (fits || self.bytes == 0)
    }

    /// Whether the workers have nothing left to do in it.
    fn is_idle(&self) -> bool {
        self.ready == self.entries.len()
    }

    fn end_idle(&mut self) {
        if let Some(since) = self.idle_since.take() {
            self.idle.push((since, since.elapsed()));
        }
    }

    /// Counts what has become ready.
    fn advance(&mut self) {
        while let Some(entry) = self.entries.get(self.ready) {
            if !entry.is_finished {
                return;
            }
            self.others += usize::from(!entry.is_sample);
            self.ready += 1;
        }
    }
}

struct ReorderBuffer {
    state: Mutex<State>,
    /// The collator waits for the one, the sequencer for the other.
    due: Condvar,
    room: Condvar,
    limits: ReorderLimits,
    meter: Arc<QueueMeter>,
}

impl ReorderBuffer {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        on.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a change: wakes the collator if it is due.
    fn changed(&self, state: MutexGuard<'_, State>) {
        let wakes = state.is_awaited(self.limits.busy);
        drop(state);
        if wakes {
            self.due.notify_one();
        }
    }

    fn finish(&self, number: u64, finished: Option<Finished>) {
        let mut state = self.lock();
        // It stays in the buffer until it is finished.
        let at = number.wrapping_sub(state.first) as usize;
        let Some(entry) = state.entries.get_mut(at) else {
            return;
        };
        if let Ok(Event::Position(_, Pending::InRow(_, result))) = &mut entry.event {
            *result = finished;
        }
        entry.is_finished = true;
        if at == state.ready {
            if let Some(waiting) = &mut state.waiting {
                waiting.advance(at);
            }
            state.advance();
            if state.wanted.is_some() && state.is_idle() {
                state.idle_since = Some(Instant::now());
            }
        }
        self.changed(state);
    }
}

/// Adds to the end of a reorder buffer.
pub(crate) struct ReorderSender(Arc<ReorderBuffer>);

/// Takes from its front.
pub(crate) struct ReorderReceiver(Arc<ReorderBuffer>);

/// A sample in the buffer, that a worker has to finish. One that is dropped before says that there is nothing.
pub(crate) struct Ticket {
    buffer: Arc<ReorderBuffer>,
    number: u64,
    is_finished: bool,
}

/// A reorder buffer within limits, of which every one is at least 1 in effect.
pub(crate) fn reorder_buffer(
    limits: ReorderLimits,
    meter: Arc<QueueMeter>,
) -> (ReorderSender, ReorderReceiver) {
    let limits = ReorderLimits {
        items: limits.items.max(1),
        busy: limits.busy.max(1),
        ..limits
    };
    let buffer = Arc::new(ReorderBuffer {
        state: Mutex::default(),
        due: Condvar::new(),
        room: Condvar::new(),
        limits,
        meter,
    });
    (ReorderSender(buffer.clone()), ReorderReceiver(buffer))
}

impl ReorderSender {
    /// Adds what needs no worker.
    pub(crate) fn send(&self, event: Queued) -> Result<(), Closed> {
        self.push(event, 0, false).map(|_| ())
    }

    /// Adds a sample that a worker will finish, of so many bytes until then.
    pub(crate) fn send_pending(&self, event: Queued, bytes: usize) -> Result<Ticket, Closed> {
        let number = self.push(event, bytes, true)?;
        Ok(Ticket {
            buffer: self.0.clone(),
            number,
            is_finished: false,
        })
    }

    fn push(&self, event: Queued, bytes: usize, is_sample: bool) -> Result<u64, Closed> {
        let buffer = &*self.0;
        let start = Instant::now();
        let mut state = buffer.lock();
        while !state.is_closed && !state.has_room(bytes, &buffer.limits) {
            state.is_full = true;
            // Workers may have done all there is: nothing else would wake the collator.
            if state.is_awaited(buffer.limits.busy) {
                buffer.due.notify_one();
            }
            state = buffer.wait(&buffer.room, state);
        }
        state.is_full = false;
        if state.is_closed {
            return Err(Closed);
        }
        state.end_idle();
        let was_idle = state.is_idle();
        if let Some(waiting) = state.waiting.as_mut().filter(|_| was_idle) {
            waiting.since = Instant::now();
        }
        let number = state.first.wrapping_add(state.entries.len() as u64);
        state.bytes += bytes;
        state.entries.push_back(Entry {
            event,
            bytes,
            is_sample,
            is_finished: !is_sample,
        });
        if !is_sample {
            state.advance();
        }
        buffer.changed(state);
        buffer.meter.add_send(start);
        Ok(number)
    }
}

impl Drop for ReorderSender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_ended = true;
        self.0.changed(state);
    }
}

impl ReorderReceiver {
    /// Moves up to `wanted` positions from the front to `taken`, once so many are finished; fewer where there
    /// is other than samples among them, or the buffer can grow no longer. Nothing is moved at its end.
    pub(crate) fn take(&self, wanted: usize, taken: &mut VecDeque<Queued>) {
        let buffer = &*self.0;
        let start = Instant::now();
        let mut state = buffer.lock();
        state.wanted = Some(wanted);
        let trace = buffer.meter.trace();
        state.waiting = trace.map(|_| Waiting::new());
        if state.is_idle() {
            state.idle_since = Some(start);
        }
        while !state.is_due(wanted, buffer.limits.busy) {
            state = buffer.wait(&buffer.due, state);
        }
        state.end_idle();
        for (since, waited) in state.idle.drain(..) {
            buffer.meter.add_empty_waited(since, waited);
        }
        state.wanted = None;
        if let (Some(trace), Some(waiting)) = (trace, state.waiting.take()) {
            waiting.trace(trace, &state.entries);
        }
        let (count, fill) = (state.ready.min(wanted), state.entries.len());
        let (mut bytes, mut others) = (0, 0);
        taken.extend(state.entries.drain(..count).map(|entry| {
            bytes += entry.bytes;
            others += usize::from(!entry.is_sample);
            entry.event
        }));
        state.first = state.first.wrapping_add(count as u64);
        state.bytes -= bytes;
        state.ready -= count;
        state.others -= others;
        let wakes = state.is_full;
        drop(state);
        if wakes {
            buffer.room.notify_one();
        }
        buffer.meter.add_taken(start, fill as u64, count as u64);
    }
}

impl Drop for ReorderReceiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        // Samples that nobody takes hold memory.
        let entries = std::mem::take(&mut state.entries);
        state.ready = 0;
        drop(state);
        self.0.room.notify_one();
        drop(entries);
    }
}

impl Ticket {
    /// Whether anybody is there to take the sample.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.buffer.lock().is_closed
    }

    /// What the worker made of the sample.
    pub(crate) fn finish(mut self, finished: Finished) {
        self.is_finished = true;
        self.buffer.finish(self.number, Some(finished));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_finished {
            self.buffer.finish(self.number, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BufferPool, EpochRows, PlainAllocator};
    use crate::error::{SampleError, SkipReason};
    use crate::loader::plan::position::{PositionId, RowStart};
    use crate::sample::SampleId;

    const LIMITS: ReorderLimits = ReorderLimits {
        items: 8,
        bytes: 100,
        busy: 3,
    };

    pub(super) fn position() -> Queued {
        let start = Arc::new(RowStart {
            row: 0,
            sets: Vec::new(),
        });
        let id = PositionId {
            start,
            slot: 0,
            set: 0,
            epoch: 0,
        };
        let pool = BufferPool::new(Arc::new(PlainAllocator), 1);
        let rows = Arc::new(EpochRows::new(Arc::new(pool), 1));
        Ok(Event::Position(id, Pending::InRow(rows, None)))
    }

    /// A result that says which one it is.
    pub(super) fn finished(number: u32) -> Finished {
        let id = SampleId {
            shard: "s".into(),
            shard_index: 0,
            sample_index: number,
            key: String::new(),
            offset_bytes: 0,
        };
        Err(SampleError {
            id: Box::new(id),
            reason: SkipReason::NoImage,
            message: String::new(),
        })
    }

    fn number(event: Queued) -> Option<u32> {
        match event {
            Ok(Event::Position(_, Pending::InRow(_, result))) => {
                result.map(|result| result.unwrap_err().id.sample_index)
            }
            Ok(Event::Dropped(_, positions)) => Some(positions as u32),
            _ => panic!("another event"),
        }
    }

    pub(super) fn take(receiver: &ReorderReceiver, wanted: usize) -> Vec<Option<u32>> {
        let mut taken = VecDeque::new();
        receiver.take(wanted, &mut taken);
        taken.into_iter().map(number).collect()
    }

    #[test]
    fn results_come_in_the_order_of_places() {
        for bytes in [0, 1, 40, 60, 1000] {
            let (sender, receiver) = reorder_buffer(LIMITS, Arc::default());
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(4)
                .build()
                .unwrap();
            let sequencer = std::thread::spawn(move || {
                for number in 0..2000 {
                    if number % 50 == 7 {
                        let event = Event::Dropped(0, number.into());
                        sender.send(Ok(event)).unwrap();
                        continue;
                    }
                    let ticket = sender.send_pending(position(), bytes).unwrap();
                    pool.spawn_fifo(move || {
                        if number % 13 == 0 {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                        ticket.finish(finished(number));
                    });
                }
            });
            let mut next = 0;
            while next < 2000 {
                let some = take(&receiver, 5);
                assert!(!some.is_empty() && some.len() <= 5);
                for number in some {
                    assert_eq!(number, Some(next));
                    next += 1;
                }
            }
            assert!(take(&receiver, 5).is_empty(), "the end");
            sequencer.join().unwrap();
        }
    }

    #[test]
    fn a_batch_is_waited_for_and_what_ends_one_is_not() {
        let (sender, receiver) = reorder_buffer(LIMITS, Arc::default());
        let (told, seen) = std::sync::mpsc::channel();
        let collator = std::thread::spawn(move || {
            while let some @ [_, ..] = &*take(&receiver, 4) {
                told.send(some.to_vec()).unwrap();
            }
        });
        let mut tickets: VecDeque<_> = (0..6)
            .map(|_| sender.send_pending(position(), 1).unwrap())
            .collect();
        // The last first: it stays where it is.
        tickets.pop_back().unwrap().finish(finished(5));
        for number in 0..3 {
            tickets.pop_front().unwrap().finish(finished(number));
        }
        let early = seen.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "{early:?}");
        tickets.pop_front().unwrap().finish(finished(3));
        assert_eq!(seen.recv().unwrap(), [0, 1, 2, 3].map(Some));
        // A worker that died; and an event ends what fills.
        drop(tickets);
        sender.send(Ok(Event::Dropped(0, 6))).unwrap();
        assert_eq!(seen.recv().unwrap(), [None, Some(5), Some(6)]);
        drop(sender);
        collator.join().unwrap();
        assert!(seen.recv().is_err());
    }

    #[test]
    fn whoever_waits_hears_that_the_other_is_gone() {
        let (sender, receiver) = reorder_buffer(LIMITS, Arc::default());
        let ticket = sender.send_pending(position(), 90).unwrap();
        assert!(ticket.is_wanted());
        let blocked = std::thread::spawn(move || sender.send_pending(position(), 90).err());
        std::thread::sleep(Duration::from_millis(20));
        drop(receiver);
        assert_eq!(blocked.join().unwrap(), Some(Closed));
        assert!(!ticket.is_wanted());
        ticket.finish(finished(0));
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod schedules {
    use shuttle::sync::mpsc;
    use shuttle::thread;

    use super::tests::{finished, position, take};
    use super::*;
    use crate::sync::under_many_schedules;

    /// A sequencer, two workers and a collator. One worker dies with every fifth sample; every seventh position
    /// is an event.
    #[test]
    fn all_positions_come_in_order_and_nobody_waits_for_ever() {
        for (items, bytes, busy) in [(1, 1, 1), (2, 100, 2), (4, 5, 3)] {
            under_many_schedules(move || {
                const POSITIONS: u32 = 9;
                let limits = ReorderLimits { items, bytes, busy };
                let (sender, receiver) = reorder_buffer(limits, Arc::default());
                let workers: Vec<_> = (0..2)
                    .map(|_| {
                        let (job, jobs) = mpsc::channel::<(Ticket, u32)>();
                        let worker = thread::spawn(move || {
                            while let Ok((ticket, number)) = jobs.recv() {
                                if number % 5 == 3 {
                                    drop(ticket);
                                } else {
                                    ticket.finish(finished(number));
                                }
                            }
                        });
                        (job, worker)
                    })
                    .collect();
                let sequencer = thread::spawn(move || {
                    for number in 0..POSITIONS {
                        if number % 7 == 4 {
                            sender.send(Ok(Event::Dropped(0, number.into()))).unwrap();
                            continue;
                        }
                        let ticket = sender.send_pending(position(), 2).unwrap();
                        workers[number as usize % 2]
                            .0
                            .send((ticket, number))
                            .unwrap();
                    }
                    drop(sender);
                    workers.into_iter().for_each(|(job, worker)| {
                        drop(job);
                        worker.join().unwrap();
                    });
                });
                let mut next = 0;
                loop {
                    let some = take(&receiver, 3);
                    if some.is_empty() {
                        break;
                    }
                    for number in some {
                        assert_eq!(number, (next % 5 != 3).then_some(next));
                        next += 1;
                    }
                }
                assert_eq!(next, POSITIONS);
                sequencer.join().unwrap();
            });
        }
    }

    #[test]
    fn whoever_waits_hears_that_the_receiver_is_gone() {
        under_many_schedules(|| {
            let limits = ReorderLimits {
                items: 2,
                bytes: 100,
                busy: 1,
            };
            let (sender, receiver) = reorder_buffer(limits, Arc::default());
            let sequencer = thread::spawn(move || {
                let mut tickets = Vec::new();
                for number in 0..5 {
                    match sender.send_pending(position(), 1) {
                        Ok(ticket) => tickets.push((ticket, number)),
                        Err(Closed) => break,
                    }
                    if number == 1 {
                        tickets.drain(..).for_each(|(ticket, number)| {
                            ticket.finish(finished(number));
                        });
                    }
                }
            });
            assert_eq!(take(&receiver, 2), [Some(0), Some(1)]);
            drop(receiver);
            sequencer.join().unwrap();
        });
    }
}
