//! Keeps a shard in the cache while it is read.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::cache::{remove, Entry};
use super::read::RangeReader;

/// A reader that ends this close to the end of a shard (the padding of a tar archive, the footer of
/// an Arrow file) has still seen it whole: the rest is fetched as the reader is dropped,
const MAX_REST: u64 = 1 << 20;

/// if it comes within this time.
const REST_WAIT: Duration = Duration::from_millis(200);

/// Reads a shard from the store and writes it to the cache on the way.
pub(super) struct Keeping {
    inner: RangeReader,
    entry: Option<Entry>,
}

impl Keeping {
    /// Writes what is read from `inner`, which is the whole shard, to the cache.
    pub(super) fn new(entry: Entry, inner: RangeReader) -> Keeping {
        Keeping {
            inner,
            entry: Some(entry),
        }
    }

    /// What goes wrong in the cache is not the reader's trouble.
    fn keep(&mut self, bytes: &[u8]) {
        let Some(entry) = &mut self.entry else { return };
        let mut result = entry.write(bytes);
        let complete = entry.written == entry.bytes;
        if result.is_ok() && complete {
            result = entry.publish();
        }
        if let Err(error) = &result {
            log::warn!(
                "cache: {}: {error}; reading on without it",
                entry.paths.part.display()
            );
            remove(&entry.paths.notes);
        }
        if result.is_err() || complete {
            self.drop_entry();
        }
    }

    fn drop_entry(&mut self) {
        if let Some(entry) = self.entry.take() {
            // Gone where it was published.
            remove(&entry.paths.part);
        }
    }
}

impl Read for Keeping {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.keep(&out[..count]);
        Ok(count)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let rest = self
            .entry
            .as_ref()
            .map_or(0, |entry| entry.bytes - entry.written);
        if (1..=MAX_REST).contains(&rest) {
            self.inner.set_deadline(Instant::now() + REST_WAIT);
            let mut buffer = vec![0; 64 << 10];
            while self.entry.is_some() && self.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
        self.drop_entry();
    }
}
