//! What reading an object gives.

use std::io::Read;

/// A shard's bytes, in order.
pub type ShardBytes = Box<dyn Read + Send>;
