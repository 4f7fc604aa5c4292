//! What a caller of the readers may do beside taking samples: watch the reads, provide memory, and leave
//! members in the file.

use std::io::{self, Read};

use super::arrow::ChosenColumns;
use super::forward::ReadSeek;
use super::tar::Leave;
use crate::source::ShardBytes;

/// Wraps a raw or a decompressing reader, so that a caller can time it or count bytes.
pub trait WatchReads {
    /// Opens the file, which calls `open` once.
    ///
    /// # Errors
    /// Those of `open`.
    fn watch_open(
        &self,
        open: &mut dyn FnMut() -> io::Result<ShardBytes>,
    ) -> io::Result<ShardBytes> {
        open()
    }
    /// Called once with the file.
    fn watch_file(&self, file: ShardBytes) -> Box<dyn Read> {
        file
    }
    /// Called with the decompressor, if the shard is compressed.
    fn watch_decompressor(&self, decompressor: Box<dyn Read>) -> Box<dyn Read> {
        decompressor
    }
    /// Called with the columns of an Arrow shard that hold images and captions.
    fn chosen_columns(&self, columns: &ChosenColumns) {
        let _ = columns;
    }
}

/// Provides the memory that members are read into.
pub trait MemberMemory {
    /// Makes the vector that a member's data is read into: `len` bytes, whatever they are. A
    /// caller that takes members apart can put their memory to use again here.
    fn new_bytes(&self, len: usize) -> Vec<u8> {
        vec![0; len]
    }
}

/// Decides which members stay in their file, to be read later.
pub trait LeaveMembers {
    /// The shard's file once more from its beginning, and how long it is, where it is a file that can
    /// be read at any position. Asked for where what is passed over then need not be read.
    fn seekable_reader(&self) -> Option<(Box<dyn ReadSeek>, u64)> {
        None
    }
    /// Whether a member's `len` bytes at `offset` of the file of
    /// [`seekable_reader`](LeaveMembers::seekable_reader) stay there, to be read later.
    fn leaves(&self, offset: u64, len: u64) -> Leave {
        let _ = (offset, len);
        Leave::Never
    }
}

/// All that a caller may do while a shard is read; see [`read_shard`](super::read::read_shard).
pub trait ReadObserver: WatchReads + MemberMemory + LeaveMembers {}

impl<T: WatchReads + MemberMemory + LeaveMembers> ReadObserver for T {}

/// Watches nothing, allocates anew, leaves nothing.
pub struct NoObserver;

impl WatchReads for NoObserver {}

impl MemberMemory for NoObserver {}

impl LeaveMembers for NoObserver {}
