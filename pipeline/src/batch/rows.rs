//! Rows of batches that are being filled, given out before it is known which samples are good.
//!
//! The sequencer gives each sample the row that it will have if all samples still in decoding turn
//! out well, so that a worker writes its pixels where they belong. When one does not, those behind
//! it in decoding are one row too far; the collator, which goes through them in order, moves each
//! up. Rows given out after that are right again.
//!
//! A row is never given out below the one that its sample will have in the end, so the row that the
//! collator needs is free when it comes to it.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::{BufferPool, PooledBuffer};
use crate::error::PipelineError;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The rows of one epoch, from the first that this run fills.
pub(crate) struct EpochRows {
    pool: Arc<BufferPool>,
    batch_size: u64,
    open: Mutex<Open>,
    /// Samples that were given a row and turned out bad.
    bad: AtomicU64,
}

struct Open {
    /// Batch number of the first buffer.
    first: u64,
    buffers: VecDeque<Arc<shared::Rows>>,
}

/// Where the pixels of a sample are.
pub(crate) enum Pixels {
    /// In this row of its epoch.
    Row(u64, shared::Row),
    /// Outside of all batches: its row was not free.
    Overflow(Vec<u8>),
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pixels::Row(at, _) => write!(f, "row {at}"),
            Pixels::Overflow(_) => f.write_str("overflow"),
        }
    }
}

impl Pixels {
    /// `[3, S, S]` u8.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Pixels::Row(_, row) => row.as_mut_slice(),
            Pixels::Overflow(pixels) => pixels,
        }
    }
}

impl EpochRows {
    pub(crate) fn new(pool: Arc<BufferPool>, batch_size: usize) -> EpochRows {
        EpochRows {
            pool,
            batch_size: batch_size.max(1) as u64,
            open: Mutex::new(Open {
                first: 0,
                buffers: VecDeque::new(),
            }),
            bad: AtomicU64::new(0),
        }
    }

    /// The row of the sample that follows `given` others; `None` if it is not free.
    ///
    /// # Errors
    /// [`PipelineError::Config`] when there is no memory for a batch.
    pub(crate) fn give(&self, given: u64) -> Result<Option<Pixels>, PipelineError> {
        let at = given.saturating_sub(self.bad.load(Ordering::Acquire));
        let row = self.claim(at)?;
        Ok(row.map(|row| Pixels::Row(at, row)))
    }

    /// Puts the pixels of the next good sample into row `at`; gives back a spare buffer.
    ///
    /// # Errors
    /// [`PipelineError::Thread`] when the row is not free, which is a bug.
    pub(crate) fn put(&self, at: u64, pixels: Pixels) -> Result<Option<Vec<u8>>, PipelineError> {
        let taken = || PipelineError::Thread("a row of a batch is taken; this is a bug".into());
        match pixels {
            Pixels::Row(given, _) if given == at => Ok(None),
            Pixels::Row(_, row) => {
                let mut target = self.claim(at)?.ok_or_else(taken)?;
                target.as_mut_slice().copy_from_slice(row.as_slice());
                Ok(None)
            }
            Pixels::Overflow(spare) => {
                let mut target = self.claim(at)?.ok_or_else(taken)?;
                target.as_mut_slice().copy_from_slice(&spare);
                Ok(Some(spare))
            }
        }
    }

    /// Notes that a sample with a row has no pixels.
    pub(crate) fn count_bad(&self) {
        self.bad.fetch_add(1, Ordering::Release);
    }

    /// The pixels of the oldest batch, all of whose rows have been put.
    ///
    /// # Errors
    /// [`PipelineError::Thread`] when someone still writes to it, which is a bug.
    pub(crate) fn finish_batch(&self) -> Result<PooledBuffer, PipelineError> {
        let mut open = self.lock();
        open.first += 1;
        let buffer = open.buffers.pop_front().and_then(shared::Rows::into_buffer);
        buffer.ok_or_else(|| PipelineError::Thread("a batch is not whole; this is a bug".into()))
    }

    fn claim(&self, at: u64) -> Result<Option<shared::Row>, PipelineError> {
        let mut open = self.lock();
        let Some(number) = (at / self.batch_size).checked_sub(open.first) else {
            return Ok(None);
        };
        while open.buffers.len() as u64 <= number {
            let rows = shared::Rows::new(self.pool.take()?, self.batch_size as usize);
            open.buffers.push_back(Arc::new(rows));
        }
        let rows = &open.buffers[number as usize];
        Ok(shared::Rows::claim(rows, (at % self.batch_size) as usize))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Half a change is impossible: every step leaves it whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(unsafe_code)]
mod shared {
    //! A buffer whose rows are written by different threads at a time.

    use std::ptr::NonNull;

    use super::{Arc, AtomicBool, Ordering, PooledBuffer};

    pub(crate) struct Rows {
        /// Untouched from the moment `start` was taken until all rows are gone.
        buffer: PooledBuffer,
        start: NonNull<u8>,
        row_len: usize,
        /// Whether a [`Row`] of this index exists.
        taken: Box<[AtomicBool]>,
    }

    // SAFETY: `start` points into `buffer`, which is Send; through it go only the `Row`s, of which
    // there is one per index at a time (`taken`), each within its own bytes.
    unsafe impl Send for Rows {}
    // SAFETY: as above; `&Rows` gives no other access to the bytes.
    unsafe impl Sync for Rows {}

    impl Rows {
        /// Splits a buffer into `count` rows.
        pub(super) fn new(mut buffer: PooledBuffer, count: usize) -> Rows {
            let bytes = buffer.as_mut_slice();
            let row_len = bytes.len() / count.max(1);
            let start = NonNull::from(bytes).cast();
            Rows {
                buffer,
                start,
                row_len,
                taken: (0..count).map(|_| AtomicBool::new(false)).collect(),
            }
        }

        /// Exclusive access to a row; `None` if someone has it, or if there is none of this index.
        pub(super) fn claim(rows: &Arc<Rows>, index: usize) -> Option<Row> {
            let taken = rows.taken.get(index)?.swap(true, Ordering::Acquire);
            (!taken).then(|| Row {
                rows: rows.clone(),
                index,
            })
        }

        /// The buffer; `None` while there are rows.
        pub(super) fn into_buffer(rows: Arc<Rows>) -> Option<PooledBuffer> {
            Arc::into_inner(rows).map(|rows| rows.buffer)
        }
    }

    /// Exclusive access to one row.
    pub(crate) struct Row {
        rows: Arc<Rows>,
        index: usize,
    }

    impl Row {
        pub(super) fn as_slice(&self) -> &[u8] {
            let Rows { start, row_len, .. } = *self.rows;
            // SAFETY: the index is below the count of rows, so the bytes lie within the buffer,
            // which lives as long as `self.rows`; `&self` excludes `as_mut_slice`, and there is no
            // other `Row` of this index.
            unsafe {
                let row = start.add(self.index * row_len);
                std::slice::from_raw_parts(row.as_ptr(), row_len)
            }
        }

        pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
            let Rows { start, row_len, .. } = *self.rows;
            // SAFETY: as in `as_slice`; `&mut self` makes the access exclusive.
            unsafe {
                let row = start.add(self.index * row_len);
                std::slice::from_raw_parts_mut(row.as_ptr(), row_len)
            }
        }
    }

    impl Drop for Row {
        fn drop(&mut self) {
            self.rows.taken[self.index].store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::PlainAllocator;

    proptest! {
        /// Whatever turns out bad, and however late the sequencer hears of it: the good samples
        /// stand in their order, and without bad ones nothing is moved.
        #[test]
        fn good_samples_in_order(
            bad in prop::collection::vec(prop::bool::weighted(0.2), 1..60),
            in_flight in 1usize..12,
            batch_size in 1usize..5,
        ) {
            let pool = Arc::new(BufferPool::new(Arc::new(PlainAllocator), batch_size * 2));
            let rows = EpochRows::new(pool, batch_size);
            let good: Vec<u8> = (0..bad.len()).filter(|&i| !bad[i]).map(|i| i as u8).collect();
            let (mut decoding, mut found, mut filled) = (VecDeque::new(), Vec::new(), 0u64);
            for number in 0..bad.len() + in_flight {
                if number < bad.len() {
                    let given = rows.give(number as u64).expect("memory");
                    let mut pixels = given.unwrap_or(Pixels::Overflow(vec![0; 2]));
                    if bad.iter().all(|bad| !bad) {
                        prop_assert!(matches!(pixels, Pixels::Row(at, _) if at == number as u64));
                    }
                    pixels.as_mut_slice().fill(number as u8);
                    decoding.push_back((number, pixels));
                }
                if decoding.len() < in_flight && number < bad.len() {
                    continue;
                }
                let Some((number, pixels)) = decoding.pop_front() else { continue };
                if bad[number] {
                    drop(pixels);
                    rows.count_bad();
                    continue;
                }
                rows.put(filled, pixels).expect("its row is free");
                filled += 1;
                if filled % batch_size as u64 == 0 {
                    found.extend(rows.finish_batch().expect("whole").as_slice().to_vec());
                }
            }
            while let Some((number, pixels)) = decoding.pop_front() {
                if bad[number] {
                    continue;
                }
                rows.put(filled, pixels).expect("its row is free");
                filled += 1;
                if filled % batch_size as u64 == 0 {
                    found.extend(rows.finish_batch().expect("whole").as_slice().to_vec());
                }
            }
            if filled % batch_size as u64 != 0 {
                found.extend(rows.finish_batch().expect("whole").as_slice().to_vec());
            }
            found.truncate(good.len() * 2);
            let expected: Vec<u8> = good.iter().flat_map(|&i| [i, i]).collect();
            prop_assert_eq!(found, expected);
        }
    }

    /// Else each bad sample would cost a copy of all that follow it.
    #[test]
    fn rows_given_after_a_bad_sample_are_right_again() {
        let pool = Arc::new(BufferPool::new(Arc::new(PlainAllocator), 8));
        let rows = EpochRows::new(pool, 4);
        let row = |given| match rows.give(given).expect("memory").expect("free") {
            Pixels::Row(at, _) => at,
            Pixels::Overflow(_) => panic!("a row"),
        };
        assert_eq!((row(0), row(1), row(2)), (0, 1, 2));
        rows.count_bad();
        assert_eq!((row(3), row(4)), (2, 3));
        rows.count_bad();
        rows.count_bad();
        assert_eq!(row(5), 2);
    }

    #[test]
    fn a_row_has_one_owner() {
        let pool = Arc::new(BufferPool::new(Arc::new(PlainAllocator), 8));
        let rows = EpochRows::new(pool, 2);
        let first = rows.give(0).expect("memory").expect("free");
        assert!(rows.give(0).expect("memory").is_none());
        assert!(rows.finish_batch().is_err(), "someone writes to it");
        drop(first);
        assert!(rows.give(0).expect("memory").is_none(), "its batch is over");
        assert!(rows.give(2).expect("memory").is_some());
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod schedules {
    use shuttle::sync::mpsc;
    use shuttle::thread;

    use super::*;
    use crate::batch::PlainAllocator;
    use crate::sync::under_many_schedules;

    /// A sequencer gives rows to two workers, of which each fills every second; the collator puts those of good
    /// samples together.
    #[test]
    fn good_samples_stand_in_order_while_others_are_filled() {
        under_many_schedules(|| {
            const SAMPLES: u64 = 9;
            const BATCH: usize = 2;
            let is_bad = |number: u64| matches!(number, 1 | 4 | 5);
            let pool = Arc::new(BufferPool::new(Arc::new(PlainAllocator), BATCH * 3));
            let rows = Arc::new(EpochRows::new(pool, BATCH));
            let (mut jobs, mut results) = (Vec::new(), Vec::new());
            for _ in 0..2 {
                let (job, to_do) = mpsc::sync_channel::<(u64, Pixels)>(1);
                let (result, done) = mpsc::sync_channel(1);
                thread::spawn(move || {
                    while let Ok((number, mut pixels)) = to_do.recv() {
                        pixels.as_mut_slice().fill(number as u8);
                        result.send((!is_bad(number)).then_some(pixels)).unwrap();
                    }
                });
                jobs.push(job);
                results.push(done);
            }
            let given = rows.clone();
            let sequencer = thread::spawn(move || {
                for number in 0..SAMPLES {
                    let pixels = given.give(number).expect("memory");
                    let pixels = pixels.unwrap_or(Pixels::Overflow(vec![0; 3]));
                    jobs[number as usize % 2].send((number, pixels)).unwrap();
                }
            });
            let (mut filled, mut found) = (0u64, Vec::new());
            for number in 0..SAMPLES {
                let Some(pixels) = results[number as usize % 2].recv().unwrap() else {
                    rows.count_bad();
                    continue;
                };
                rows.put(filled, pixels).expect("its row is free");
                filled += 1;
                if filled % BATCH as u64 == 0 {
                    let batch = rows.finish_batch().expect("nobody writes to it");
                    found.extend(batch.as_slice().to_vec());
                }
            }
            sequencer.join().unwrap();
            let expected: Vec<u8> = (0..SAMPLES)
                .filter(|&number| !is_bad(number))
                .flat_map(|number| [number as u8; 3])
                .collect();
            assert_eq!(found, expected);
        });
    }
}
