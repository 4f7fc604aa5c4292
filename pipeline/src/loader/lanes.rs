//! What of the order is used up, whoever used it.
//!
//! A global batch has as many lanes as images; a row is one place in each lane. Rank `r` of `W` owns
//! the lanes `r · G/W ..` and goes through its places row by row, passing over bad samples, so ranks
//! may stand in different rows after the same number of batches. In every lane, though, what is used
//! up is always a number of rows from the beginning. That number for each lane says all, and nothing
//! of it depends on how lanes were shared among ranks.

use serde::{Deserialize, Serialize};

use super::state::LoaderState;
use super::world::World;

/// Neighbouring lanes with equally many rows used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneRun {
    /// Number of lanes.
    pub lanes: u64,
    /// Rows used up, counted from the row of the state.
    pub rows: u64,
}

/// The lanes of a run from where it was resumed, seen from one rank.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    /// Lanes of one rank.
    per_rank: u64,
    ranks: u64,
    first_own: u64,
    /// Row that `ahead` counts from.
    start: u64,
    ahead: Vec<LaneRun>,
    /// The largest of `ahead`.
    most_ahead: u64,
}

impl Lanes {
    pub(crate) fn new(state: &LoaderState, batch_size: usize, world: World) -> Lanes {
        let per_rank = batch_size as u64;
        Lanes {
            per_rank,
            ranks: u64::from(world.size()),
            first_own: per_rank * u64::from(world.rank()),
            start: state.row,
            ahead: state.lanes.clone(),
            most_ahead: state.lanes.iter().map(|run| run.rows).max().unwrap_or(0),
        }
    }

    /// Lanes in all.
    pub(crate) fn count(&self) -> u64 {
        self.per_rank * self.ranks
    }

    /// Whether a place is this rank's, and not used up before it was resumed.
    pub(crate) fn is_due(&self, row: u64, lane: u64) -> bool {
        let own = lane >= self.first_own && lane < self.first_own + self.per_rank;
        own && (row >= self.resumed_until() || row >= self.start + self.ahead_of(lane))
    }

    /// The row from which on no lane was used before the run was resumed.
    pub(crate) fn resumed_until(&self) -> u64 {
        self.start + self.most_ahead
    }

    fn ahead_of(&self, lane: u64) -> u64 {
        let mut end = 0;
        for run in &self.ahead {
            end += run.lanes;
            if lane < end {
                return run.rows;
            }
        }
        0
    }

    /// Rows from `row` on that are used up in each lane, once this rank has used its place in
    /// (`row`, `lane`) and if the others have used as many.
    pub(crate) fn used(&self, row: u64, lane: u64) -> Vec<LaneRun> {
        let reached = lane - self.first_own + 1;
        let mut runs = Vec::new();
        for _ in 0..self.ranks {
            push(&mut runs, reached, 1);
            push(&mut runs, self.per_rank - reached, 0);
        }
        if self.resumed_until() <= row {
            return runs;
        }
        // Some lanes were ahead of this row when the run was resumed.
        let mut lane = 0;
        let mut merged = Vec::new();
        for run in runs {
            for _ in 0..run.lanes {
                let before = (self.start + self.ahead_of(lane)).saturating_sub(row);
                push(&mut merged, 1, run.rows.max(before));
                lane += 1;
            }
        }
        merged
    }

    /// Rows from `row` on that were used up in each lane before the run was resumed.
    pub(crate) fn used_before(&self, row: u64) -> Vec<LaneRun> {
        let mut runs = Vec::new();
        if self.resumed_until() > row {
            for run in &self.ahead {
                let rows = (self.start + run.rows).saturating_sub(row);
                push(&mut runs, run.lanes, rows);
            }
        }
        runs
    }

    /// Lanes that runs describe; `None` if they are more than numbers can count.
    pub(crate) fn total(runs: &[LaneRun]) -> Option<u64> {
        runs.iter()
            .try_fold(0u64, |sum, run| sum.checked_add(run.lanes))
    }

    /// Of each rank's state its own lanes, counted from the smallest row.
    pub(crate) fn merge(states: &[LoaderState], per_rank: u64) -> Vec<LaneRun> {
        let base = states.iter().map(|state| state.row).min().unwrap_or(0);
        let mut merged = Vec::new();
        for (rank, state) in states.iter().enumerate() {
            let own = rank as u64 * per_rank..(rank as u64 + 1) * per_rank;
            let beyond = state.row - base;
            if state.lanes.is_empty() {
                push(&mut merged, per_rank, beyond);
                continue;
            }
            let mut start = 0;
            for run in &state.lanes {
                let end = start + run.lanes;
                let within = end.min(own.end).saturating_sub(start.max(own.start));
                push(&mut merged, within, beyond + run.rows);
                start = end;
            }
        }
        merged
    }
}

fn push(runs: &mut Vec<LaneRun>, lanes: u64, rows: u64) {
    if lanes == 0 {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.rows == rows => last.lanes += lanes,
        _ => runs.push(LaneRun { lanes, rows }),
    }
}
