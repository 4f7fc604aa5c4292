//! Samples copied from shards into shards of any format, file by file and byte by byte: what `merge`, `split`,
//! `convert` and `verify --repair` have in common.

mod engine;
mod options;
mod sink;
mod unit;

pub(crate) use engine::{copy_shard, Copied, CopyOptions};
pub(crate) use options::{CopyArgs, Target};
pub(crate) use sink::{refuse_same_stems, stem, Limits, Sink};
