//! How much of a shard with an index is compared with it.

use serde::{Deserialize, Serialize};

/// What of a shard with an index is compared with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// Lengths, and the keys of samples that are read.
    Off,
    /// Also, at the start, the fingerprint of a local shard: a checksum of its beginning, middle and end.
    Index,
    /// Also the checksum of every sample that is read.
    #[default]
    Samples,
}
