//! How shards are written.

use crate::shard::arrow::CaptionType;
use crate::shard::shard_format::ShardFormat;

/// How shards are written; the same for every shard of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// Container and compression.
    pub format: ShardFormat,
    /// Type of an Arrow shard's caption column. [`CaptionType::One`] keeps the first caption only.
    pub caption_type: CaptionType,
    /// Compression level: 0–9 for gzip, 1–22 for Zstandard, clamped to that. Photographs do not
    /// shrink at any level; raise it for uncompressed images.
    pub level: i32,
    /// Whether the shard's index is written beside it. Default yes.
    pub index: bool,
}

impl ShardOptions {
    /// The defaults for this format: a list of captions, gzip level 1, Zstandard level 3, an index.
    pub fn new(format: ShardFormat) -> Self {
        Self {
            format,
            caption_type: CaptionType::List,
            level: match format {
                ShardFormat::TarGz => 1,
                _ => 3,
            },
            index: true,
        }
    }
}
