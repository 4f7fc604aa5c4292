//! What the loader's queues synchronise with: locks, condition variables and atomics of the standard library,
//! and crossbeam's bounded channel.
//!
//! With the feature `shuttle`, which tests alone turn on (`scripts/schedules.sh`), they are those of the
//! [shuttle](https://docs.rs/shuttle) checker: it runs a test under thousands of interleavings of its threads.

#[cfg(not(feature = "shuttle"))]
pub(crate) use crossbeam::channel;
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{atomic, Condvar, Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{atomic, Condvar, Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
pub(crate) mod channel {
    //! The part of `crossbeam::channel` that the queues use, on shuttle's channel.

    use std::sync::Arc;

    use shuttle::sync::mpsc::{sync_channel, RecvError, SendError, SyncSender};

    use super::atomic::{AtomicUsize, Ordering};

    pub(crate) struct Sender<T>(SyncSender<T>, Arc<AtomicUsize>);

    pub(crate) struct Receiver<T>(shuttle::sync::mpsc::Receiver<T>, Arc<AtomicUsize>);

    pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = sync_channel(capacity);
        let len = Arc::new(AtomicUsize::new(0));
        (Sender(sender, len.clone()), Receiver(receiver, len))
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, item: T) -> Result<(), SendError<T>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.send(item)
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            let item = self.0.recv()?;
            self.1.fetch_sub(1, Ordering::SeqCst);
            Ok(item)
        }

        pub(crate) fn len(&self) -> usize {
            self.1.load(Ordering::SeqCst)
        }
    }
}

/// Runs a test under so many interleavings of its threads, half of them drawn at random, half with few changes of
/// thread at the worst places. A deadlock panics with the interleaving that led to it.
#[cfg(all(test, feature = "shuttle"))]
pub(crate) fn under_many_schedules(test: impl Fn() + Send + Sync + Copy + 'static) {
    const CHANGES: usize = 3;
    let wanted = std::env::var("QF_SCHEDULES").ok();
    let count = wanted.map_or(2000, |text| text.parse().expect("QF_SCHEDULES is a number"));
    shuttle::check_random(test, count / 2);
    shuttle::check_pct(test, count / 2, CHANGES);
}
