//! Positions of the order, on their way from the data sets to whoever decodes them.

use std::sync::Arc;

use crate::error::{PipelineError, SampleError, ShardError};
use crate::resume::SetPosition;
use crate::sample::EncodedSample;

/// A sample, or why it is none.
pub(crate) type Sample = Result<EncodedSample, SampleError>;

/// What a data set has at a position of its order.
pub(crate) enum Item {
    Read(Sample),
    /// Where it is: shard of the set, and sample of the shard.
    Unread {
        shard: u32,
        sample: u32,
    },
}

/// What a data set has next. It knows neither its number nor global steps: the mixer makes an [`Event`] of it.
pub(crate) enum FromSet {
    /// A position; without an item if the caller does not want it.
    Position(Option<Item>),
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
    fn next(&mut self, wanted: bool) -> Result<FromSet, PipelineError>;

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

/// What happens next to this rank, from the mixer to the collator.
///
/// `T` is what a position carries there: an [`Item`] behind the mixer, a [`Sample`] behind the sequencer, and in the
/// reorder buffer what a worker makes of it.
pub(crate) enum Event<T> {
    Position(PositionId, T),
    /// Samples of this set are missing; whether this rank counts it, if all notice it.
    BadShard(u32, ShardError, bool),
    /// This many positions at the end of an epoch are not used.
    Dropped(u32, u64),
    /// An epoch of this set is over; what comes next begins there.
    EndOfEpoch(u32, Arc<RowStart>),
    /// All passes over the data are over; the whole run has this many rows.
    LastRow(u64),
}

impl<T> Event<T> {
    /// The same event; a position carries what `change` makes of what it carried.
    ///
    /// # Errors
    /// Those of `change`.
    pub(crate) fn try_map<U>(
        self,
        change: impl FnOnce(&PositionId, T) -> Result<U, PipelineError>,
    ) -> Result<Event<U>, PipelineError> {
        Ok(match self {
            Event::Position(id, carried) => {
                let changed = change(&id, carried)?;
                Event::Position(id, changed)
            }
            Event::BadShard(set, error, counts) => Event::BadShard(set, error, counts),
            Event::Dropped(set, positions) => Event::Dropped(set, positions),
            Event::EndOfEpoch(set, next) => Event::EndOfEpoch(set, next),
            Event::LastRow(row) => Event::LastRow(row),
        })
    }
}
