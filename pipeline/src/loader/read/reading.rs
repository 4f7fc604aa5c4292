//! What reading needs beside the data set.

use std::sync::Arc;

use super::recycle::BytePool;
use super::shard_file::ShardFiles;
use crate::loader::meters::stats::Meters;
use crate::shard::read::ReadOptions;
use crate::stop::Stop;

/// What reading needs beside the data set.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) options: Arc<ReadOptions>,
    pub(crate) meters: Arc<Meters>,
    /// Where readers find memory for images.
    pub(crate) bytes: Arc<BytePool>,
    pub(crate) stop: Stop,
    pub(crate) io_threads: usize,
    /// Local shards that are open, of all data sets.
    pub(crate) shard_files: ShardFiles,
    /// Whether a remote shard is kept on this machine before single samples of it are read.
    pub(crate) prefetches: bool,
    /// Bytes of samples read ahead.
    pub(crate) read_ahead_bytes: usize,
    /// Bytes of samples that wait in memory for their turn in a shuffled order.
    pub(crate) shuffle_bytes: usize,
    /// Passes over the data; 0 means without end.
    pub(crate) epochs: u64,
}
