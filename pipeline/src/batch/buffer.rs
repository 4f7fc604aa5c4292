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
