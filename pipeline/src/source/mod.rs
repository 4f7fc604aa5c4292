//! Where shards live: turns the specifications a user gives into an ordered list of shards.

mod braces;
mod dataset;
mod local_path;
mod location;
mod resolve;

pub use dataset::{split_spec, DataSet};
/// A pattern of names, with `*`, `?` and `[x]`.
pub use glob::Pattern as NamePattern;
pub use local_path::{local_path, scheme};
pub use location::ShardLocation;
pub use resolve::{resolve_shards, resolve_shards_with};

pub use crate::remote::ShardBytes;
pub use crate::shard_spec::{DisplayUrl, ShardSpec};
