//! Keeps the books of a run while its places come by.

use super::lanes::Lanes;
use super::place::{PlaceId, RowStart};
use super::state::LoaderState;
use super::stats::Counters;
use crate::config::OnBad;
use crate::error::{PipelineError, SampleError, ShardError};

/// Counts what became of each place, and knows the state after it.
pub(crate) struct Tracker {
    lanes: Lanes,
    state: LoaderState,
    last: Option<PlaceId>,
    on_bad_sample: OnBad,
    on_bad_shard: OnBad,
}

impl Tracker {
    pub(crate) fn new(
        state: LoaderState,
        lanes: Lanes,
        on_bad_sample: OnBad,
        on_bad_shard: OnBad,
    ) -> Tracker {
        Tracker {
            lanes,
            state,
            last: None,
            on_bad_sample,
            on_bad_shard,
        }
    }

    fn count(&mut self, set: u32, book: impl Fn(&mut Counters)) {
        book(&mut self.state.counters);
        if let Some(counters) = self.state.set_counters.get_mut(set as usize) {
            book(counters);
        }
    }

    /// A place came up; its sample is part of a batch, or will be.
    pub(crate) fn good(&mut self, place: PlaceId) {
        self.count(place.set, |counters| counters.read += 1);
        self.last = Some(place);
    }

    /// A place came up, and its sample is handed out by itself.
    pub(crate) fn sample(&mut self, place: PlaceId) {
        self.count(place.set, |counters| {
            counters.read += 1;
            counters.delivered += 1;
        });
        self.last = Some(place);
    }

    /// A place came up, and its sample is bad.
    pub(crate) fn bad_sample(
        &mut self,
        place: PlaceId,
        error: SampleError,
    ) -> Result<(), PipelineError> {
        self.count(place.set, |counters| {
            counters.read += 1;
            *counters.skipped.entry(error.reason).or_insert(0) += 1;
        });
        self.last = Some(place);
        // A filter that works is nothing to warn of.
        match self.on_bad_sample {
            _ if error.reason.is_filter() => log::debug!("left out {error}"),
            OnBad::Error => return Err(PipelineError::BadSample(error)),
            OnBad::Warn => log::warn!("skipped {error}"),
            OnBad::Skip => {}
        }
        Ok(())
    }

    /// Samples are missing; where all ranks notice it, one of them `counts`.
    pub(crate) fn bad_shard(
        &mut self,
        set: u32,
        error: ShardError,
        counts: bool,
    ) -> Result<(), PipelineError> {
        if counts {
            self.count(set, |counters| counters.bad_shards += 1);
        }
        match self.on_bad_shard {
            OnBad::Error => return Err(PipelineError::BadShard(error)),
            OnBad::Warn if counts => log::warn!("{error}; going on without the rest of it"),
            OnBad::Warn | OnBad::Skip => {}
        }
        Ok(())
    }

    /// Places at the end of an epoch that are not used.
    pub(crate) fn dropped(&mut self, set: u32, places: u64) {
        self.count(set, |counters| {
            counters.read += places;
            counters.dropped_last += places;
        });
    }

    /// An epoch ends that batches do not span: whatever is handed on now, the run goes on at `next`.
    pub(crate) fn end_epoch(&mut self, next: &RowStart) {
        self.last = None;
        self.state.row = next.row;
        self.state.sets.clone_from(&next.sets);
        self.state.lanes = self.lanes.used_before(next.row);
    }

    /// Good samples of these sets are left of that epoch, and no batch will have them.
    pub(crate) fn left_over(&mut self, sets: impl IntoIterator<Item = u32>) {
        for set in sets {
            self.count(set, |counters| counters.dropped_last += 1);
        }
        self.state.rows_without_batch = self.state.row.saturating_sub(self.state.batches);
    }

    /// The run has this many rows.
    pub(crate) fn last_row(&mut self, rows: u64) {
        self.state.last_row = Some(rows);
    }

    /// Whether there was a batch for each of this many rows, those apart that never gave one.
    pub(crate) fn has_done(&self, rows: u64) -> bool {
        self.state
            .batches
            .saturating_add(self.state.rows_without_batch)
            >= rows
    }

    /// A batch of samples of these sets is complete; all their places have come up.
    pub(crate) fn batch(&mut self, sets: impl IntoIterator<Item = u32>) -> LoaderState {
        for set in sets {
            self.count(set, |counters| counters.delivered += 1);
        }
        self.state.batches += 1;
        self.state()
    }

    /// The state after the last place.
    pub(crate) fn state(&self) -> LoaderState {
        let mut state = self.state.clone();
        if let Some(PlaceId { start, lane, .. }) = &self.last {
            state.row = start.row;
            state.sets.clone_from(&start.sets);
            state.lanes = self.lanes.used(start.row, *lane);
        }
        state
    }

    pub(crate) fn batches(&self) -> u64 {
        self.state.batches
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.state.counters
    }
}
