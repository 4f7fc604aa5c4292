//! Host memory for pixels: plain, or page-locked through whoever has a device.

use std::sync::Arc;

use crossbeam::queue::SegQueue;

use crate::error::PipelineError;

/// A fixed block of host memory.
pub trait HostBuffer: Send + Sync {
    /// Its bytes.
    fn as_slice(&self) -> &[u8];
    /// Its bytes, to fill.
    fn as_mut_slice(&mut self) -> &mut [u8];
}

/// Makes host buffers. The trainer passes one whose memory is page-locked when a GPU is there, so
/// that copies to the device run beside the compute.
pub trait HostAllocator: Send + Sync {
    /// A buffer of `len` bytes, zeroed.
    ///
    /// # Errors
    /// A message when the memory cannot be had.
    fn allocate(&self, len: usize) -> Result<Box<dyn HostBuffer>, String>;
}

/// Ordinary memory.
#[derive(Debug, Default)]
pub struct PlainAllocator;

impl HostAllocator for PlainAllocator {
    fn allocate(&self, len: usize) -> Result<Box<dyn HostBuffer>, String> {
        let mut buffer = Vec::new();
        buffer
            .try_reserve_exact(len)
            .map_err(|error| error.to_string())?;
        buffer.resize(len, 0u8);
        Ok(Box::new(buffer))
    }
}

impl HostBuffer for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }
}

/// Recycles buffers of one size: allocated on first need, as many as are in flight at once.
pub(crate) struct BufferPool {
    free: SegQueue<Box<dyn HostBuffer>>,
    allocator: Arc<dyn HostAllocator>,
    len: usize,
}

impl BufferPool {
    pub(crate) fn new(allocator: Arc<dyn HostAllocator>, len: usize) -> Self {
        BufferPool {
            free: SegQueue::new(),
            allocator,
            len,
        }
    }

    pub(crate) fn take(self: &Arc<Self>) -> Result<PooledBuffer, PipelineError> {
        let buffer = match self.free.pop() {
            Some(buffer) => buffer,
            None => self
                .allocator
                .allocate(self.len)
                .map_err(|message| PipelineError::Config {
                    setting: "batch_size",
                    message: format!(
                        "no host memory for a batch of {} bytes: {message}",
                        self.len
                    ),
                })?,
        };
        Ok(PooledBuffer::new(buffer, self.clone()))
    }

    pub(super) fn give_back(&self, buffer: Box<dyn HostBuffer>) {
        self.free.push(buffer);
    }
}

/// A host buffer on loan from a pool.
pub(crate) struct PooledBuffer {
    buffer: Option<Box<dyn HostBuffer>>,
    pool: Arc<BufferPool>,
}

impl PooledBuffer {
    pub(crate) fn new(buffer: Box<dyn HostBuffer>, pool: Arc<BufferPool>) -> Self {
        PooledBuffer {
            buffer: Some(buffer),
            pool,
        }
    }

    /// No buffer: an empty slice.
    pub(crate) fn none(pool: Arc<BufferPool>) -> Self {
        PooledBuffer { buffer: None, pool }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| buffer.as_slice())
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.buffer
            .as_mut()
            .map_or(&mut [], |buffer| buffer.as_mut_slice())
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what it allocates, and has memory for so many buffers.
    struct Counting(AtomicUsize, usize);

    impl HostAllocator for Counting {
        fn allocate(&self, len: usize) -> Result<Box<dyn HostBuffer>, String> {
            match self.0.fetch_add(1, Ordering::Relaxed) < self.1 {
                true => PlainAllocator.allocate(len),
                false => Err("none left".into()),
            }
        }
    }

    /// A trainer's page-locked memory takes long to get: as many buffers as are in flight at once, and no more.
    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let allocator = Arc::new(Counting(AtomicUsize::new(0), 2));
        let pool = Arc::new(BufferPool::new(allocator.clone(), 6));
        for round in 0..5 {
            let mut first = pool.take().expect("memory");
            let second = pool.take().expect("memory");
            assert_eq!((first.as_slice().len(), second.as_slice().len()), (6, 6));
            first.as_mut_slice().fill(round);
            assert_eq!(first.as_slice(), [round; 6]);
        }
        assert_eq!(allocator.0.load(Ordering::Relaxed), 2);
        let _in_flight = (pool.take(), pool.take());
        let error = pool.take().map(drop).expect_err("no memory for a third");
        let message = error.to_string();
        assert!(message.contains("batch_size") && message.contains("6 bytes: none left"));
    }

    #[test]
    fn no_buffer_is_an_empty_slice_and_none_is_given_back() {
        let allocator = Arc::new(Counting(AtomicUsize::new(0), 1));
        let pool = Arc::new(BufferPool::new(allocator, 6));
        let mut none = PooledBuffer::none(pool.clone());
        assert!(none.as_slice().is_empty() && none.as_mut_slice().is_empty());
        drop(none);
        assert_eq!(pool.take().expect("memory").as_slice(), [0; 6]);
    }
}
