//! Tests against Apache's `arrow-ipc`: what it writes we read, what we write it reads; then damage.

mod hostile;
mod oracle;
mod samples;

use std::sync::Arc;

use super::{ArrowReadOptions, ArrowShardReader};
use crate::error::{SampleError, ShardError};
use crate::sample::EncodedSample;

/// A reader over bytes with default options.
fn open(bytes: &[u8]) -> Result<ArrowShardReader<&[u8]>, ShardError> {
    open_with(bytes, &ArrowReadOptions::default())
}

fn open_with<'a>(
    bytes: &'a [u8],
    options: &ArrowReadOptions,
) -> Result<ArrowShardReader<&'a [u8]>, ShardError> {
    ArrowShardReader::new(Arc::from("t.arrow"), 3, bytes, options)
}

/// All rows, and the error that ended the shard, if one did.
fn read_all(bytes: &[u8]) -> (Vec<Result<EncodedSample, SampleError>>, Option<ShardError>) {
    let mut reader = match open(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut rows = Vec::new();
    let mut failure = None;
    for item in reader.by_ref() {
        assert!(failure.is_none(), "an item after the shard's error");
        match item {
            Ok(row) => rows.push(row),
            Err(error) => failure = Some(error),
        }
    }
    assert!(reader.next_sample().is_none());
    (rows, failure)
}

/// The message that opening or reading ends with.
fn error_of(bytes: &[u8]) -> String {
    read_all(bytes)
        .1
        .map_or_else(|| "no error".to_string(), |error| error.to_string())
}

/// Pseudo-random numbers, the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
