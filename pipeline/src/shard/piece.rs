//! Pieces of a shard that are read as a whole.

use std::ops::Range;

/// A zstd frame, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredPiece {
    /// Its bytes in the shard file.
    pub(crate) stored: Range<u64>,
    /// Its uncompressed bytes.
    pub(crate) content: u64,
}

/// A record batch of an Arrow shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredBatch {
    /// Its message in the shard file.
    pub(crate) stored: Range<u64>,
    /// How many rows it has.
    pub(crate) rows: u64,
    /// CRC-32C of the message.
    pub(crate) crc32c: u32,
}
