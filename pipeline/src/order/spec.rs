//! What an order is drawn from.

use serde::{Deserialize, Serialize};

/// How the samples of an epoch are shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShuffleMode {
    /// Shards and samples in stored order, every epoch.
    None,
    /// Shards in a new random order each epoch, samples in stored order within them.
    Shards,
    /// Shards in a new random order each epoch, and samples among those that come near them.
    Buffer,
    /// All samples of the data set, each position equally likely; every shard needs an index.
    Full,
}

impl ShuffleMode {
    /// Every mode.
    pub const ALL: [ShuffleMode; 4] = [
        ShuffleMode::None,
        ShuffleMode::Shards,
        ShuffleMode::Buffer,
        ShuffleMode::Full,
    ];

    /// The name in configurations, e.g. `buffer`.
    pub fn name(self) -> &'static str {
        match self {
            ShuffleMode::None => "none",
            ShuffleMode::Shards => "shards",
            ShuffleMode::Buffer => "buffer",
            ShuffleMode::Full => "full",
        }
    }
}

/// What the order of one data set is drawn from, beside the samples of its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderSpec {
    /// Seed of the run.
    pub seed: u64,
    /// Which data set of a mixture, from 0: each has an order of its own.
    pub set: u32,
    /// How samples are shuffled.
    pub shuffle: ShuffleMode,
    /// Samples of a block, with [`ShuffleMode::Buffer`].
    pub block_samples: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_configurations() {
        for mode in ShuffleMode::ALL {
            let read = serde_json::from_str::<ShuffleMode>(&format!("\"{}\"", mode.name()));
            assert_eq!(read.expect("a mode"), mode);
        }
        assert_eq!(
            ShuffleMode::ALL.map(ShuffleMode::name),
            ["none", "shards", "buffer", "full"]
        );
    }
}
