//! The statistics that stand beside the shards of a run, written last: `PREFIX.FORMAT_stats.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::Settings;

/// What a run wrote: the same for equal input and settings. Fields are in the order of their names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Statistics {
    pub(super) bytes: u64,
    pub(super) captions: u64,
    pub(super) dropped_captions: u64,
    pub(super) format: String,
    pub(super) found: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held_out: Option<HeldOutStatistics>,
    pub(super) input_fingerprint: String,
    pub(super) renamed_keys: u64,
    pub(super) samples: u64,
    pub(super) settings: Settings,
    pub(super) shards: Vec<ShardStatistics>,
    pub(super) skipped: BTreeMap<String, u64>,
}

/// What of all that is held out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct HeldOutStatistics {
    pub(super) bytes: u64,
    pub(super) captions: u64,
    pub(super) samples: u64,
    pub(super) seed: u64,
    /// That was asked for.
    pub(super) share: f64,
    pub(super) shards: u64,
}

/// What one shard holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ShardStatistics {
    pub(super) bytes: u64,
    pub(super) captions: u64,
    pub(super) file: String,
    pub(super) samples: u64,
    pub(super) skipped: BTreeMap<String, u64>,
}
