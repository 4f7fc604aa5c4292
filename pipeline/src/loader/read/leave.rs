//! Members that stay in an open shard until their turn comes.

use std::sync::Arc;

use super::shard_file::ShardFile;
use super::shuffle_budget::ShuffleBudget;
use super::spill::MIN_BYTES as MIN_LEFT_BYTES;
use crate::shard::read::Leave;
use crate::stop::Stop;

/// A shard that is open already.
pub(crate) struct OpenShard {
    pub(crate) file: Arc<ShardFile>,
    pub(crate) stop: Stop,
    /// Of a shuffle that takes long members from the shard when their turn comes, once it is full.
    pub(crate) budget: Option<Arc<ShuffleBudget>>,
}

impl OpenShard {
    /// Whether `len` bytes at `offset` stay in the file: long ones over the shuffle's budget.
    pub(crate) fn leaves(&self, offset: u64, len: u64) -> Leave {
        let Some(budget) = &self.budget else {
            return Leave::Never;
        };
        // What is cut off is read, so that it says so before the sample goes on.
        let is_whole = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.file.len());
        if len < MIN_LEFT_BYTES || !is_whole {
            return Leave::Never;
        }
        if budget.is_for(len) {
            return Leave::IfUnreadable;
        }
        self.file.will_need(offset, len);
        Leave::Now
    }
}
