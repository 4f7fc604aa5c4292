//! What a writer was given so far, for who stands above the writers in between.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A count of bytes, and a checksum of those since some moment. One thread writes; it is shared to be asked.
#[derive(Debug, Default)]
pub(crate) struct Written {
    bytes: AtomicU64,
    crc32c: AtomicU32,
}

impl Written {
    /// Takes note of bytes.
    pub(crate) fn note(&self, bytes: &[u8]) {
        let sum = crc32c::crc32c_append(self.crc32c(), bytes);
        self.crc32c.store(sum, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Begins a new sum.
    pub(crate) fn begin_sum(&self) {
        self.crc32c.store(0, Ordering::Relaxed);
    }

    /// CRC-32C of the bytes since [`Written::begin_sum`].
    pub(crate) fn crc32c(&self) -> u32 {
        self.crc32c.load(Ordering::Relaxed)
    }
}
