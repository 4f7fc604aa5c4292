//! Reading: samples ahead of their turn, and the memory that they wait in.

pub(crate) mod fetch;
pub(crate) mod leave;
pub(crate) mod observe;
pub(crate) mod reading;
pub(crate) mod recycle;
pub(crate) mod shard_file;
mod shards;
mod shuffle;
pub(crate) mod shuffle_budget;
pub(crate) mod spill;
pub(crate) mod stream;
pub(crate) mod timed;
