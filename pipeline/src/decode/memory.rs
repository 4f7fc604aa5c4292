//! The bytes that all decoders of a loader may use together.
//!
//! A picture that takes little is decoded without asking. Before a larger one, a decoder takes the
//! bytes it will use from a [`DecodeMemory`], and waits while others hold them; so the peak does not
//! depend on how many threads meet a large picture at the same moment.

use std::sync::{Arc, PoisonError};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Pictures that take no more than this are decoded without asking, in memory that their decoder
/// keeps from one to the next.
pub(super) const SMALL_BYTES: u64 = 16 << 20;

/// A budget of bytes that decoders share; a clone is a handle to the same budget.
#[derive(Clone, Debug)]
pub struct DecodeMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: u64,
    /// Who comes first is served first: a large picture is not passed by small ones for ever.
    next_ticket: u64,
    serving: u64,
}

/// Bytes taken from a budget; they go back when it is dropped. Whoever holds one waits for nothing
/// else, so that no two can wait for each other.
#[derive(Debug)]
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl DecodeMemory {
    /// 512 MiB, three bytes for each of the default limit's 178,956,970 pixels.
    pub const DEFAULT_BYTES: u64 = 512 << 20;

    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> DecodeMemory {
        DecodeMemory(Arc::new(Shared {
            total: bytes,
            state: Mutex::new(State {
                free: bytes,
                next_ticket: 0,
                serving: 0,
            }),
            changed: Condvar::new(),
        }))
    }

    /// All bytes of the budget, free or not.
    pub fn bytes(&self) -> u64 {
        self.0.total
    }

    /// Waits until `bytes` are free and takes them; `None` if there are never as many.
    pub(super) fn acquire(&self, bytes: u64) -> Option<Reservation> {
        if bytes > self.0.total {
            return None;
        }
        let mut state = self.0.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.serving != ticket || state.free < bytes {
            let woken = self.0.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.serving += 1;
        state.free -= bytes;
        drop(state);
        self.0.changed.notify_all();
        Some(Reservation {
            shared: self.0.clone(),
            bytes,
        })
    }
}

impl Default for DecodeMemory {
    fn default() -> DecodeMemory {
        DecodeMemory::new(DecodeMemory::DEFAULT_BYTES)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.lock().free += self.bytes;
        self.shared.changed.notify_all();
    }
}

/// Pixels of a crop: in memory that a decoder keeps, or, of a large picture, in memory of their own
/// that is given back with them.
#[derive(Debug)]
pub(crate) enum Pixels<'a> {
    Kept(&'a [u8]),
    Own(Vec<u8>, #[allow(dead_code)] Reservation), // Held for its drop.
}

impl std::ops::Deref for Pixels<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Pixels::Kept(pixels) => pixels,
            Pixels::Own(pixels, _) => pixels,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn threads_never_hold_more_than_the_budget_and_all_are_served() {
        let memory = DecodeMemory::new(100);
        assert!(memory.acquire(101).is_none());
        let (held, peak, served) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (memory, held, peak, served) = (memory.clone(), &held, &peak, &served);
                scope.spawn(move || {
                    for round in 0..50 {
                        let bytes = [100, 7, 51, 30][(thread + round) % 4];
                        let reservation = memory.acquire(bytes).expect("within the budget");
                        peak.fetch_max(
                            held.fetch_add(bytes, Ordering::SeqCst) + bytes,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        drop(reservation);
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(served.into_inner(), 400);
        assert_eq!(
            peak.into_inner(),
            100,
            "the largest fill the budget, nothing exceeds it"
        );
        assert_eq!(memory.0.lock().free, 100);
    }

    #[test]
    fn who_comes_first_is_served_first() {
        let memory = DecodeMemory::new(10);
        let held = memory.acquire(6).expect("free");
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (number, bytes) in [(0, 10), (1, 1)] {
                let (memory, order) = (&memory, &order);
                scope.spawn(move || {
                    let _taken = memory.acquire(bytes);
                    order.lock().expect("no panic").push(number);
                });
                while memory.0.lock().next_ticket < number + 2 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            drop(held);
        });
        assert_eq!(order.into_inner().expect("no panic"), [0, 1]);
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod schedules {
    use std::sync::atomic::{AtomicU64, Ordering};

    use shuttle::thread;

    use super::*;
    use crate::sync::under_many_schedules;

    #[test]
    fn all_are_served_and_never_hold_more_than_the_budget() {
        under_many_schedules(|| {
            let memory = DecodeMemory::new(100);
            let held = Arc::new(AtomicU64::new(0));
            let threads: Vec<_> = [[100, 7], [51, 30], [60, 100], [1, 40]]
                .into_iter()
                .map(|sizes| {
                    let (memory, held) = (memory.clone(), held.clone());
                    thread::spawn(move || {
                        for bytes in sizes {
                            let reservation = memory.acquire(bytes).expect("within the budget");
                            let now = held.fetch_add(bytes, Ordering::SeqCst) + bytes;
                            assert!(now <= 100, "{now} of 100 bytes");
                            thread::yield_now();
                            held.fetch_sub(bytes, Ordering::SeqCst);
                            drop(reservation);
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            assert_eq!(memory.0.lock().free, 100);
        });
    }
}
