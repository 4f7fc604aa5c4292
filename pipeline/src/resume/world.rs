//! The ranks that share a data set.

use crate::error::PipelineError;

/// This process among those that share the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    rank: u32,
    size: u32,
}

impl World {
    /// One process alone.
    pub const SINGLE: World = World { rank: 0, size: 1 };

    /// Rank `rank` of `size`.
    ///
    /// # Errors
    /// [`PipelineError::Config`] unless `rank < size`.
    pub fn new(rank: u32, size: u32) -> Result<World, PipelineError> {
        if rank >= size {
            return Err(PipelineError::Config {
                setting: "world_size",
                message: format!("rank {rank} of {size}: ranks are counted from 0"),
            });
        }
        Ok(World { rank, size })
    }

    /// This process, from 0.
    pub fn rank(self) -> u32 {
        self.rank
    }

    /// Number of processes.
    pub fn size(self) -> u32 {
        self.size
    }

    /// Whether this process speaks for all where one word is enough.
    pub(crate) fn is_first(self) -> bool {
        self.rank == 0
    }

    /// This rank's share of a global batch.
    ///
    /// # Errors
    /// [`PipelineError::Config`] when it cannot be shared evenly.
    pub fn share_of(self, global_batch: usize) -> Result<usize, PipelineError> {
        let size = self.size as usize;
        if global_batch == 0 {
            return Err(PipelineError::Config {
                setting: "batch_size",
                message: "must be at least 1".into(),
            });
        }
        if !global_batch.is_multiple_of(size) {
            return Err(PipelineError::Config {
                setting: "batch_size",
                message: format!(
                    "a global batch of {global_batch} does not divide among {size} ranks; use a \
                     world size that divides {global_batch}"
                ),
            });
        }
        Ok(global_batch / size)
    }
}

impl Default for World {
    fn default() -> Self {
        World::SINGLE
    }
}
