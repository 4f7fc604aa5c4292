//! Local shards that stay open, so that a member can be read a second time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::source::{ShardBytes, ShardLocation};
use crate::stop::Stop;

/// Most files that are open at a time: a process may have 1024 in all.
const MAX_OPEN: usize = 64;

/// Opens shards, of one loader.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardFiles {
    open: Arc<AtomicUsize>,
}

/// A shard that is open until nobody needs it, also when it is replaced or removed meanwhile.
#[derive(Debug)]
pub(crate) struct ShardFile {
    file: Arc<File>,
    open: Arc<AtomicUsize>,
}

impl ShardFiles {
    /// Opens a shard that is a file of this machine. None if it is not, if it cannot be opened (as
    /// whoever reads it will find out), or if many are open.
    pub(crate) fn open(&self, shard: &ShardLocation) -> Option<Arc<ShardFile>> {
        let path = shard.path()?;
        // Counted before it is opened, and no more when it is dropped.
        let before = self.open.fetch_add(1, Ordering::AcqRel);
        let file = match before < MAX_OPEN {
            true => File::open(path).ok(),
            false => None,
        };
        let Some(file) = file else {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return None;
        };
        Some(Arc::new(ShardFile {
            file: Arc::new(file),
            open: self.open.clone(),
        }))
    }
}

impl ShardFile {
    /// All its bytes, once: reading moves the place where the file stands.
    pub(crate) fn bytes(&self, stop: &Stop) -> ShardBytes {
        ShardLocation::bytes_of(self.file.clone(), stop)
    }

    /// Fills `buffer` with what stands at `offset`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Drop for ShardFile {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_open_and_removed_ones_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, b"0123456789").unwrap();
        let shard = ShardLocation::local(&path);
        let files = ShardFiles::default();
        let mut open: Vec<_> = (0..MAX_OPEN).map(|_| files.open(&shard)).collect();
        assert!(open.iter().all(Option::is_some));
        assert!(files.open(&shard).is_none());
        open.pop();
        let again = files.open(&shard).expect("there is room again");
        std::fs::remove_file(&path).unwrap();
        let mut buffer = [0; 3];
        again.read_at(&mut buffer, 4).unwrap();
        assert_eq!(&buffer, b"456");
        assert!(again.read_at(&mut buffer, 8).is_err());
        drop((open, again));
        assert!(files.open(&shard).is_none(), "it is gone");
        assert_eq!(files.open.load(Ordering::Acquire), 0);
    }
}
