//! Samples between the sequencer and collation.

use std::sync::Arc;

use crate::batch::{DecodedSample, EpochRows};
use crate::error::{PipelineError, SampleError};
use crate::loader::plan::position::Event;

/// What a worker makes of a sample.
pub(crate) type Finished = Result<DecodedSample, SampleError>;

/// What a position carries on its way to a batch.
#[allow(clippy::large_enum_variant)] // Nearly all are samples.
pub(crate) enum Pending {
    /// A sample with a row of its epoch, and what a worker made of it once it has; nothing, if the worker
    /// died.
    InRow(Arc<EpochRows>, Option<Finished>),
    /// It could not be read.
    Unreadable(SampleError),
}

/// An event in the reorder buffer, or why the sequencer cannot go on.
pub(crate) type Queued = Result<Event<Pending>, PipelineError>;
