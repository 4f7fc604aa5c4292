//! What is odd about a shard that was read to its end.

use std::fmt;

/// Something that a reader passes over, or reads although others do not: worth one line, no error.
///
/// Displayed as a sentence that follows the shard's name. Offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ShardNote {
    /// A tar archive that does not end with a block of zeros: whole members may be missing.
    NoEndMarker,
    /// Another tar archive begins behind the end of the first, at this offset of the uncompressed
    /// stream. It is read as well.
    Concatenated {
        /// Where.
        offset: u64,
    },
    /// What follows the end of the archive, from this offset of the uncompressed stream on, is of no
    /// archive. It is passed over.
    NoArchive {
        /// Where.
        offset: u64,
    },
    /// What follows the compressed data, from this offset of the file on, is not compressed. It is
    /// passed over.
    NotCompressed {
        /// Where.
        offset: u64,
    },
}

impl fmt::Display for ShardNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShardNote::NoEndMarker => f.write_str(
                "ends without an end-of-archive marker; it may have been cut short",
            ),
            ShardNote::Concatenated { offset } => write!(
                f,
                "is several archives in one: another begins at byte {offset}, behind the end of the \
                 first; all are read (webdataset and GNU tar without --ignore-zeros read the first \
                 alone)"
            ),
            ShardNote::NoArchive { offset } => write!(
                f,
                "has bytes behind the end of its archive, from byte {offset} on, that are of no \
                 archive; they are passed over"
            ),
            ShardNote::NotCompressed { offset } => write!(
                f,
                "has bytes behind its compressed data, from byte {offset} of the file on, that are \
                 not compressed; they are passed over"
            ),
        }
    }
}
