//! Local shards that stay open, so that a member can be read later or a second time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use rustix::fs::{fadvise, Advice};

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
    len: u64,
    open: Arc<AtomicUsize>,
}

/// Reads a [`ShardFile`] from its beginning, whatever else is read of it.
pub(crate) struct ShardFileReader {
    shard: Arc<ShardFile>,
    position: u64,
    stop: Stop,
}

impl ShardFiles {
    /// Opens a shard that is a regular file of this machine. None if it is not, if it cannot be opened
    /// (as whoever reads it will find out), or if many are open.
    pub(crate) fn open(&self, shard: &ShardLocation) -> Option<Arc<ShardFile>> {
        let path = shard.path()?;
        // Counted before it is opened, and no more when it is dropped.
        let before = self.open.fetch_add(1, Ordering::AcqRel);
        // A pipe is not even opened: that might wait, and it can be read only once.
        let is_regular = || path.metadata().is_ok_and(|metadata| metadata.is_file());
        let file = match before < MAX_OPEN && is_regular() {
            true => File::open(path).ok(),
            false => None,
        };
        let len = file.as_ref().and_then(|file| file.metadata().ok());
        let (Some(file), Some(metadata)) = (file, len) else {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return None;
        };
        Some(Arc::new(ShardFile {
            file: Arc::new(file),
            len: metadata.len(),
            open: self.open.clone(),
        }))
    }
}

impl ShardFile {
    /// All its bytes, once: reading moves the position where the file stands.
    pub(crate) fn bytes(&self, stop: &Stop) -> ShardBytes {
        ShardLocation::bytes_of(self.file.clone(), stop)
    }

    /// Length when it was opened, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads it from its beginning, position by position.
    pub(crate) fn reader(self: &Arc<ShardFile>, stop: &Stop) -> ShardFileReader {
        ShardFileReader {
            shard: self.clone(),
            position: 0,
            stop: stop.clone(),
        }
    }

    /// Fills `buffer` with what stands at `offset`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Has the system read these bytes in the background: they will be asked for.
    pub(crate) fn will_need(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        // Advice: where it is not taken, reading waits for the disk.
        let _ = fadvise(&*self.file, offset, len, Advice::WillNeed);
    }
}

impl Read for ShardFileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        let count = self.shard.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for ShardFileReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.shard.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a place before the file");
        self.position = position.ok_or_else(outside)?;
        Ok(self.position)
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
        let mut reader = again.reader(&Stop::default());
        again.will_need(2, 4);
        assert_eq!(reader.seek(SeekFrom::End(-2)).unwrap(), again.len() - 2);
        assert_eq!(reader.seek(SeekFrom::Current(-3)).unwrap(), 5);
        assert!(reader.seek(SeekFrom::Current(-6)).is_err());
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "56789");
        drop((open, again, reader));
        assert!(files.open(&shard).is_none(), "it is gone");
        assert_eq!(files.open.load(Ordering::Acquire), 0);
    }
}
