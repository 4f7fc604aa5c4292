//! Positions of the order, on their way from the data sets to whoever decodes them.

use std::sync::Arc;

use crate::error::{PipelineError, SampleError, ShardError};
use crate::resume::SetPosition;
use crate::sample::EncodedSample;

/// What a data set has at a position of its order.
pub(crate) enum Item {
    /// The sample, or why it is none.
    Read(Result<EncodedSample, SampleError>),
    /// Where it is: shard of the set, and sample of the shard.
    Unread { shard: u32, sample: u32 },
    /// A position that the caller did not want.
    Skipped,
}

/// What a data set says next.
pub(crate) enum Next {
    Position(Item),
    /// Samples are missing here.
    BadShard(ShardError),
    EndOfEpoch,
}

/// The samples of one data set, epoch after epoch.
pub(crate) trait Source: Send {
    /// What comes next; `wanted` tells whether the caller has a use for the sample, should it be one.
    ///
    /// # Errors
    /// [`PipelineError`] where it cannot go on.
    fn next(&mut self, wanted: bool) -> Result<Next, PipelineError>;

    /// Epoch of the next sample, and samples of that epoch before it.
    fn position(&self) -> (u64, u64);
}

/// The beginning of a row.
#[derive(Debug)]
pub(crate) struct RowStart {
    pub(crate) row: u64,
    pub(crate) sets: Vec<SetPosition>,
}

/// Which position it is.
#[derive(Clone, Debug)]
pub(crate) struct PositionId {
    pub(crate) start: Arc<RowStart>,
    pub(crate) slot: u64,
    pub(crate) set: u32,
    pub(crate) epoch: u64,
}

/// What happens next to this rank.
pub(crate) enum Event<I> {
    Position(PositionId, I),
    /// Samples of this set are missing; whether this rank counts it, if all notice it.
    BadShard(u32, ShardError, bool),
    /// This many positions at the end of an epoch are not used.
    Dropped(u32, u64),
    /// An epoch of this set is over; what comes next begins there.
    EndOfEpoch(u32, Arc<RowStart>),
    /// All passes over the data are over; the whole run has this many rows.
    LastRow(u64),
}
