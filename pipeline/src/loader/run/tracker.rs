//! Keeps the counters of a run while its positions come by.

use super::skips::{NamedOnce, SkipReports, SkippedSample};
use crate::config::{LoaderConfig, OnBad};
use crate::error::{PipelineError, SampleError, ShardError};
use crate::loader::plan::position::{PositionId, RowStart};
use crate::resume::BatchSlots;
use crate::resume::Counters;
use crate::resume::LoaderState;
use crate::warnings::Warnings;

/// Counts what became of each position, and knows the state after it.
pub(crate) struct Tracker {
    slots: BatchSlots,
    state: LoaderState,
    last: Option<PositionId>,
    policy: Policy,
    named: NamedOnce,
    warnings: Warnings,
}

/// What becomes of bad samples and shards.
pub(crate) struct Policy {
    on_bad_sample: OnBad,
    on_bad_shard: OnBad,
    max_bad_share: f64,
    /// Where they are named, if not in the log.
    reports: Option<SkipReports>,
}

impl Policy {
    pub(crate) fn new(config: &LoaderConfig, reports: Option<SkipReports>) -> Policy {
        Policy {
            on_bad_sample: config.on_bad_sample,
            on_bad_shard: config.on_bad_shard,
            max_bad_share: config.max_bad_share,
            reports,
        }
    }
}

/// Samples of a data set that a rank has looked at before their bad share can end the run.
const MIN_LOOKED_AT: u64 = 1000;

impl Tracker {
    pub(crate) fn new(state: LoaderState, slots: BatchSlots, policy: Policy) -> Tracker {
        Tracker {
            slots,
            last: None,
            policy,
            named: NamedOnce::new(state.epoch()),
            state,
            warnings: Warnings::default(),
        }
    }

    /// The counters of a data set.
    fn set_counters(&self, set: u32) -> &Counters {
        let counters = self.state.set_counters.get(set as usize);
        counters.unwrap_or(&self.state.counters)
    }

    fn set_name(&self, set: u32) -> &str {
        let key = self.state.order.sets.get(set as usize);
        key.map_or("", |key| &key.name)
    }

    fn count(&mut self, set: u32, change: impl Fn(&mut Counters)) {
        change(&mut self.state.counters);
        if let Some(counters) = self.state.set_counters.get_mut(set as usize) {
            change(counters);
        }
    }

    /// A position came up; its sample is part of a batch, or will be.
    pub(crate) fn good(&mut self, place: PositionId) {
        self.count(place.set, |counters| counters.read += 1);
        self.last = Some(place);
    }

    /// A position came up, and its sample is handed out by itself.
    pub(crate) fn sample(&mut self, place: PositionId) {
        self.count(place.set, |counters| {
            counters.read += 1;
            counters.delivered += 1;
        });
        self.last = Some(place);
    }

    /// A position came up, and its sample is bad.
    pub(crate) fn bad_sample(
        &mut self,
        place: PositionId,
        error: SampleError,
    ) -> Result<(), PipelineError> {
        self.count(place.set, |counters| {
            counters.read += 1;
            *counters.skipped.entry(error.reason).or_insert(0) += 1;
        });
        let (set, epoch) = (place.set, place.epoch);
        self.last = Some(place);
        if error.reason.is_filter() {
            // A filter that works is nothing to warn of.
            log::debug!("left out {error}");
            return Ok(());
        }
        if self.policy.on_bad_sample == OnBad::Error {
            return Err(PipelineError::BadSample(error));
        }
        match &self.policy.reports {
            Some(reports) => {
                let report = SkippedSample::sample(self.set_name(set), epoch, &error);
                reports.push(self.state.batches + 1, report);
            }
            None if self.policy.on_bad_sample == OnBad::Warn => {
                let id = &error.id;
                if self.named.is_new(&id.shard, Some(id.sample_index), epoch) {
                    let kind = error.reason.name();
                    self.warnings.warn(kind, format_args!("skipped {error}"));
                }
            }
            None => {}
        }
        self.check_share(set, error)
    }

    /// Ends the run where too many of a data set's samples are bad.
    fn check_share(&self, set: u32, last: SampleError) -> Result<(), PipelineError> {
        let counters = self.set_counters(set);
        let (bad, looked_at) = (counters.bad_total(), counters.looked_at());
        let share = bad as f64 / looked_at.max(1) as f64;
        if looked_at < MIN_LOOKED_AT || share <= self.policy.max_bad_share {
            return Ok(());
        }
        let bad_by_reason = counters.skipped.iter().filter(|(r, _)| !r.is_filter());
        Err(PipelineError::TooManyBad {
            set: self.set_name(set).to_string(),
            bad,
            looked_at,
            max_bad_share: self.policy.max_bad_share,
            reasons: bad_by_reason.map(|(&r, &count)| (r, count)).collect(),
            last,
        })
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
        if self.policy.on_bad_shard == OnBad::Error {
            return Err(PipelineError::BadShard(error));
        }
        if !counts {
            return Ok(());
        }
        let epoch = self.last.as_ref().map_or(0, |place| place.epoch);
        match &self.policy.reports {
            Some(reports) => {
                let report = SkippedSample::rest_of_shard(self.set_name(set), epoch, &error);
                reports.push(self.state.batches + 1, report);
            }
            None if self.policy.on_bad_shard == OnBad::Warn
                && self.named.is_new(&error.shard, None, epoch) =>
            {
                let message = format_args!("{error}; going on without the rest of it");
                self.warnings.warn("bad_shard", message);
            }
            None => {}
        }
        Ok(())
    }

    /// Positions at the end of an epoch that are not used.
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
        self.state.slots = self.slots.used_before(next.row);
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

    /// A batch of samples of these sets is complete; all their positions have come up.
    pub(crate) fn batch(&mut self, sets: impl IntoIterator<Item = u32>) -> LoaderState {
        for set in sets {
            self.count(set, |counters| counters.delivered += 1);
        }
        self.state.batches += 1;
        self.state()
    }

    /// The state after the last position.
    pub(crate) fn state(&self) -> LoaderState {
        let mut state = self.state.clone();
        if let Some(PositionId { start, slot, .. }) = &self.last {
            state.row = start.row;
            state.sets.clone_from(&start.sets);
            state.slots = self.slots.used(start.row, *slot);
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
