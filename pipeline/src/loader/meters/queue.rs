//! A queue between two stages, bounded by items and by bytes, that measures who waits for whom.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::{channel, Condvar, Mutex, MutexGuard};
use crate::trace::Trace;

/// Shorter waits are booked and not traced: nobody could see them.
pub(crate) const MIN_TRACED_WAIT: Duration = Duration::from_micros(100);

/// The queues of a loader.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum QueueName {
    #[default]
    ReadAhead,
    InDecoding,
    Batches,
}

impl QueueName {
    /// In reports, and of its counter in a trace.
    pub(crate) fn name(self) -> &'static str {
        match self {
            QueueName::ReadAhead => "samples read ahead",
            QueueName::InDecoding => "samples in decoding",
            QueueName::Batches => "batches ready",
        }
    }

    fn full_wait(self) -> &'static str {
        match self {
            QueueName::ReadAhead => "wait: samples read ahead full",
            QueueName::InDecoding => "wait: samples in decoding full",
            QueueName::Batches => "wait: batches full",
        }
    }

    fn empty_wait(self) -> &'static str {
        match self {
            QueueName::ReadAhead => "wait: samples read ahead empty",
            QueueName::InDecoding => "wait: samples in decoding empty",
            QueueName::Batches => "wait: batches empty",
        }
    }
}

/// What a queue (or several of one kind) went through.
#[derive(Default)]
pub(crate) struct QueueMeter {
    pub(crate) name: QueueName,
    pub(crate) items: AtomicU64,
    /// Sum over receives of the items that lay in the queue.
    pub(crate) occupancy_sum: AtomicU64,
    /// Time producers were blocked because it was full, in ns.
    pub(crate) full_wait_ns: AtomicU64,
    /// Time consumers were blocked because it was empty, in ns.
    pub(crate) empty_wait_ns: AtomicU64,
    trace: Option<Trace>,
    /// The fill that the trace knows of.
    traced_fill: AtomicU64,
}

impl QueueMeter {
    pub(crate) fn new(name: QueueName, trace: Option<&Trace>) -> QueueMeter {
        QueueMeter {
            name,
            trace: trace.cloned(),
            traced_fill: AtomicU64::new(u64::MAX),
            ..QueueMeter::default()
        }
    }

    /// Records that something was put in, which was asked for at `start`.
    pub(crate) fn add_send(&self, start: Instant) {
        let waited = start.elapsed();
        add_ns(&self.full_wait_ns, waited);
        self.trace_wait(self.name.full_wait(), start, waited);
    }

    /// Records the time that a consumer has waited since `start`.
    pub(crate) fn add_empty_wait(&self, start: Instant) {
        self.add_empty_waited(start, start.elapsed());
    }

    /// Records that a consumer waited from `start` on.
    pub(crate) fn add_empty_waited(&self, start: Instant, waited: Duration) {
        add_ns(&self.empty_wait_ns, waited);
        self.trace_wait(self.name.empty_wait(), start, waited);
    }

    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// Records that `items` were taken out, which were asked for at `start` and found `fill` of them.
    pub(crate) fn add_taken(&self, start: Instant, fill: u64, items: u64) {
        self.items.fetch_add(items, Ordering::Relaxed);
        self.occupancy_sum
            .fetch_add(fill * items, Ordering::Relaxed);
        if let Some(trace) = &self.trace {
            if trace.is_recording() && self.traced_fill.swap(fill, Ordering::Relaxed) != fill {
                trace.counter_at(self.name.name(), start, fill as f64);
            }
        }
    }

    fn trace_wait(&self, name: &str, start: Instant, waited: Duration) {
        if let Some(trace) = &self.trace {
            if waited >= MIN_TRACED_WAIT {
                trace.record(name, start, waited, &[]);
            }
        }
    }
}

/// The other end is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

struct Budget {
    state: Mutex<BudgetState>,
    changed: Condvar,
    max_bytes: usize,
}

struct BudgetState {
    used: usize,
    closed: bool,
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        // The state is two plain numbers: a panic elsewhere cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` fit; anything fits an empty queue.
    fn acquire(&self, bytes: usize) -> Result<(), Closed> {
        let mut state = self.lock();
        while !state.closed && state.used > 0 && state.used.saturating_add(bytes) > self.max_bytes {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(Closed);
        }
        state.used = state.used.saturating_add(bytes);
        Ok(())
    }

    fn release(&self, bytes: usize) {
        self.lock().used -= bytes;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

pub(crate) struct QueueSender<T> {
    channel: channel::Sender<(T, usize)>,
    budget: Arc<Budget>,
    meter: Arc<QueueMeter>,
}

pub(crate) struct QueueReceiver<T> {
    channel: channel::Receiver<(T, usize)>,
    budget: Arc<Budget>,
    meter: Arc<QueueMeter>,
}

/// A queue of at most `max_items` items (at least 1) that together weigh at most `max_bytes`; a
/// single heavier item passes alone.
pub(crate) fn bounded<T>(
    max_items: usize,
    max_bytes: usize,
    meter: Arc<QueueMeter>,
) -> (QueueSender<T>, QueueReceiver<T>) {
    let (sender, receiver) = channel::bounded(max_items.max(1));
    let state = Mutex::new(BudgetState {
        used: 0,
        closed: false,
    });
    let budget = Arc::new(Budget {
        state,
        changed: Condvar::new(),
        max_bytes,
    });
    (
        QueueSender {
            channel: sender,
            budget: budget.clone(),
            meter: meter.clone(),
        },
        QueueReceiver {
            channel: receiver,
            budget,
            meter,
        },
    )
}

impl<T> QueueSender<T> {
    /// Puts an item in, waiting while the queue is full.
    pub(crate) fn send(&self, item: T, bytes: usize) -> Result<(), Closed> {
        let start = Instant::now();
        self.budget.acquire(bytes)?;
        let sent = self.channel.send((item, bytes)).map_err(|_| Closed);
        self.meter.add_send(start);
        sent
    }
}

impl<T> QueueReceiver<T> {
    /// Takes the next item, waiting while the queue is empty; `None` when the sender is gone.
    pub(crate) fn recv(&self) -> Option<T> {
        let occupancy = self.channel.len() as u64;
        let start = Instant::now();
        let (item, bytes) = self.channel.recv().ok()?;
        self.meter.add_empty_wait(start);
        self.meter.add_taken(start, occupancy, 1);
        self.budget.release(bytes);
        Some(item)
    }
}

impl<T> Drop for QueueReceiver<T> {
    fn drop(&mut self) {
        self.budget.close();
    }
}

/// Adds a time in ns.
pub(crate) fn add_ns(total_ns: &AtomicU64, time: Duration) {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    total_ns.fetch_add(ns, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_bound_the_queue_and_a_heavy_item_passes_alone() {
        let (sender, receiver) = bounded(100, 10, Arc::default());
        let producer = std::thread::spawn(move || {
            for item in 0..1000usize {
                sender
                    .send(item, if item % 100 == 0 { 1000 } else { 4 })
                    .unwrap();
            }
        });
        for expected in 0..1000 {
            assert!(
                receiver.channel.len() <= 2,
                "at most two 4-byte items fit 10 bytes"
            );
            assert_eq!(receiver.recv(), Some(expected));
        }
        producer.join().unwrap();
        assert_eq!(receiver.recv(), None);
    }

    #[test]
    fn a_blocked_sender_wakes_when_the_receiver_goes() {
        let (sender, receiver) = bounded(100, 10, Arc::default());
        sender.send(0, 10).unwrap();
        let blocked = std::thread::spawn(move || sender.send(1, 10));
        while Arc::strong_count(&receiver.budget) < 2 {
            std::thread::yield_now();
        }
        drop(receiver);
        assert_eq!(blocked.join().unwrap(), Err(Closed));
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod schedules {
    use shuttle::thread;

    use super::*;
    use crate::sync::under_many_schedules;

    /// The receiver takes so many items of twelve, then goes.
    #[test]
    fn all_items_come_in_order_and_a_sender_hears_that_the_receiver_is_gone() {
        for taken in [0, 1, 5, 12] {
            under_many_schedules(move || {
                let (sender, receiver) = bounded(3, 10, Arc::default());
                let producer = thread::spawn(move || {
                    let weights = [4, 4, 1000, 1, 0, 6];
                    (0..12usize).try_for_each(|item| sender.send(item, weights[item % 6]))
                });
                for expected in 0..taken {
                    assert_eq!(receiver.recv(), Some(expected));
                }
                if taken == 12 {
                    assert_eq!(receiver.recv(), None);
                }
                drop(receiver);
                let sent = producer.join().unwrap();
                assert!(sent.is_err() || taken > 5, "more than the queue holds");
            });
        }
    }
}
