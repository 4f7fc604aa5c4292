//! Pieces of a shard that are read as a whole.

use std::ops::Range;

/// A piece of a shard that is read as a whole: a zstd frame (or several) or an Arrow record batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredPiece {
    /// Its bytes in the shard file.
    pub(crate) stored: Range<u64>,
    /// A frame's uncompressed bytes, a batch's rows.
    pub(crate) content: u64,
}
