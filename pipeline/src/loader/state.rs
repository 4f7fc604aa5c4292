//! Where a run stands in its data: saved with a checkpoint, it continues with the next batch.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::stats::Counters;
use crate::config::LoaderConfig;
use crate::error::PipelineError;
use crate::order::ShuffleMode;
use crate::source::ShardLocation;

/// Version of the state's meaning; raised whenever the same state would give another order.
const STATE_VERSION: u32 = 1;

/// The loader's position after some batch, and everything the order depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Version of this layout.
    pub version: u32,
    /// Epoch the next sample belongs to, from 0.
    pub epoch: u64,
    /// Places of the epoch's order that are used up, bad ones included.
    pub position: u64,
    /// Batches of the epoch that are used up.
    pub batches: u64,
    /// The run's books so far.
    pub counters: Counters,
    /// What the order was drawn from.
    pub order: OrderKey,
}

/// Everything that fixes the order of batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderKey {
    /// Number of shards.
    pub num_shards: u64,
    /// SHA-256 over the shards' base names and sizes, in order.
    pub shards_sha256: String,
    /// Seed of the order.
    pub seed: u64,
    /// Shuffle mode.
    pub shuffle: ShuffleMode,
    /// Bound of the shuffle buffer, in samples.
    pub shuffle_buffer_samples: u64,
    /// Bound of the shuffle buffer, in bytes.
    pub shuffle_buffer_bytes: u64,
    /// Images per batch.
    pub batch_size: u64,
    /// Whether a partial last batch is dropped.
    pub drop_last: bool,
}

impl OrderKey {
    /// The key of a configuration on a list of shards.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when a shard's size cannot be read.
    pub fn new(config: &LoaderConfig, shards: &[ShardLocation]) -> Result<Self, PipelineError> {
        let mut hasher = Sha256::new();
        for shard in shards {
            let size = shard.size().map_err(|source| PipelineError::Io {
                path: shard.name.as_ref().into(),
                source,
            })?;
            let name = shard.base_name();
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(size.to_le_bytes());
        }
        let digest = hasher.finalize();
        Ok(OrderKey {
            num_shards: shards.len() as u64,
            shards_sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            seed: config.seed,
            shuffle: config.shuffle,
            shuffle_buffer_samples: config.shuffle_buffer_samples as u64,
            shuffle_buffer_bytes: config.shuffle_buffer_bytes as u64,
            batch_size: config.batch_size as u64,
            drop_last: config.drop_last,
        })
    }

    /// Names the first difference, as `(setting, saved, now)`.
    fn difference(&self, now: &OrderKey) -> Option<(&'static str, String, String)> {
        let rows = [
            (
                "number of shards",
                self.num_shards.to_string(),
                now.num_shards.to_string(),
            ),
            (
                "shard names and sizes (sha256)",
                self.shards_sha256.clone(),
                now.shards_sha256.clone(),
            ),
            ("seed", self.seed.to_string(), now.seed.to_string()),
            (
                "shuffle",
                format!("{:?}", self.shuffle),
                format!("{:?}", now.shuffle),
            ),
            (
                "shuffle_buffer_samples",
                self.shuffle_buffer_samples.to_string(),
                now.shuffle_buffer_samples.to_string(),
            ),
            (
                "shuffle_buffer_bytes",
                self.shuffle_buffer_bytes.to_string(),
                now.shuffle_buffer_bytes.to_string(),
            ),
            (
                "batch_size",
                self.batch_size.to_string(),
                now.batch_size.to_string(),
            ),
            (
                "drop_last",
                self.drop_last.to_string(),
                now.drop_last.to_string(),
            ),
        ];
        rows.into_iter()
            .find(|(_, saved, current)| saved != current)
    }
}

impl LoaderState {
    /// The start of a run.
    pub fn start(order: OrderKey) -> Self {
        LoaderState {
            version: STATE_VERSION,
            epoch: 0,
            position: 0,
            batches: 0,
            counters: Counters::default(),
            order,
        }
    }

    /// Checks that continuing from this state gives the order it was saved from.
    ///
    /// # Errors
    /// [`PipelineError::State`] naming what differs, with both values.
    pub fn check(&self, now: &OrderKey) -> Result<(), PipelineError> {
        if self.version != STATE_VERSION {
            return Err(PipelineError::State(format!(
                "saved as version {}, this program reads version {STATE_VERSION}",
                self.version
            )));
        }
        match self.order.difference(now) {
            None => Ok(()),
            Some((what, saved, current)) => Err(PipelineError::State(format!(
                "it was saved with another {what} ({saved}) than the present one ({current}); \
                 resume with the same data and settings, or start a new run"
            ))),
        }
    }
}
