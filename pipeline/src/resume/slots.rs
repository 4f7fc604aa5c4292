//! What of the order is used up, whoever used it.
//!
//! A global batch has as many slots as images; a row (a global step) is one position in each. Rank `r` of `W` owns
//! the slots `r · G/W ..` and goes through its positions row by row, passing over bad samples, so ranks
//! may stand in different rows after the same number of batches. In every slot, though, what is used
//! up is always a number of rows from the beginning. That number for each slot says all, and nothing
//! of it depends on how slots were shared among ranks.

use serde::{Deserialize, Serialize};

use super::world::World;

/// Neighbouring slots with equally many rows used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotRun {
    /// Number of slots.
    #[serde(rename = "lanes")]
    pub slots: u64,
    /// Rows used up, counted from the row of the state.
    pub rows: u64,
}

/// The slots of a run from where it was resumed, seen from one rank.
#[derive(Clone, Debug)]
pub(crate) struct BatchSlots {
    /// Slots of one rank.
    per_rank: u64,
    ranks: u64,
    first_own: u64,
    /// Row that `ahead` counts from.
    start: u64,
    ahead: Vec<SlotRun>,
    /// The largest of `ahead`.
    most_ahead: u64,
}

impl BatchSlots {
    /// The slots of a run that goes on from row `start`, with `ahead` used up from there on.
    pub(crate) fn new(
        start: u64,
        ahead: &[SlotRun],
        batch_size: usize,
        world: World,
    ) -> BatchSlots {
        let per_rank = batch_size as u64;
        BatchSlots {
            per_rank,
            ranks: u64::from(world.size()),
            first_own: per_rank * u64::from(world.rank()),
            start,
            ahead: ahead.to_vec(),
            most_ahead: ahead.iter().map(|run| run.rows).max().unwrap_or(0),
        }
    }

    /// Slots in all.
    pub(crate) fn count(&self) -> u64 {
        self.per_rank * self.ranks
    }

    /// Whether a position is this rank's, and not used up before it was resumed.
    pub(crate) fn is_due(&self, row: u64, slot: u64) -> bool {
        let own = slot >= self.first_own && slot < self.first_own + self.per_rank;
        own && (row >= self.resumed_until() || row >= self.start + self.ahead_of(slot))
    }

    /// The row from which on no slot was used before the run was resumed.
    pub(crate) fn resumed_until(&self) -> u64 {
        self.start + self.most_ahead
    }

    fn ahead_of(&self, slot: u64) -> u64 {
        let mut end = 0;
        for run in &self.ahead {
            end += run.slots;
            if slot < end {
                return run.rows;
            }
        }
        0
    }

    /// Rows from `row` on that are used up in each slot, once this rank has used its position in
    /// (`row`, `slot`) and if the others have used as many.
    pub(crate) fn used(&self, row: u64, slot: u64) -> Vec<SlotRun> {
        let reached = slot - self.first_own + 1;
        let mut runs = Vec::new();
        for _ in 0..self.ranks {
            push(&mut runs, reached, 1);
            push(&mut runs, self.per_rank - reached, 0);
        }
        if self.resumed_until() <= row {
            return runs;
        }
        // Some slots were ahead of this row when the run was resumed.
        let mut slot = 0;
        let mut merged = Vec::new();
        for run in runs {
            for _ in 0..run.slots {
                let before = (self.start + self.ahead_of(slot)).saturating_sub(row);
                push(&mut merged, 1, run.rows.max(before));
                slot += 1;
            }
        }
        merged
    }

    /// Rows from `row` on that were used up in each slot before the run was resumed.
    pub(crate) fn used_before(&self, row: u64) -> Vec<SlotRun> {
        let mut runs = Vec::new();
        if self.resumed_until() > row {
            for run in &self.ahead {
                let rows = (self.start + run.rows).saturating_sub(row);
                push(&mut runs, run.slots, rows);
            }
        }
        runs
    }

    /// Slots that runs describe; `None` if they are more than numbers can count.
    pub(crate) fn total(runs: &[SlotRun]) -> Option<u64> {
        runs.iter()
            .try_fold(0u64, |sum, run| sum.checked_add(run.slots))
    }

    /// Of each rank's row and runs its own slots, counted from the smallest row.
    pub(crate) fn merge<'a>(
        ranks: impl Iterator<Item = (u64, &'a [SlotRun])> + Clone,
        per_rank: u64,
    ) -> Vec<SlotRun> {
        let base = ranks.clone().map(|(row, _)| row).min().unwrap_or(0);
        let mut merged = Vec::new();
        for (rank, (row, runs)) in ranks.enumerate() {
            let own = rank as u64 * per_rank..(rank as u64 + 1) * per_rank;
            let beyond = row - base;
            if runs.is_empty() {
                push(&mut merged, per_rank, beyond);
                continue;
            }
            let mut start = 0;
            for run in runs {
                let end = start + run.slots;
                let within = end.min(own.end).saturating_sub(start.max(own.start));
                push(&mut merged, within, beyond + run.rows);
                start = end;
            }
        }
        merged
    }
}

fn push(runs: &mut Vec<SlotRun>, slots: u64, rows: u64) {
    if slots == 0 {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.rows == rows => last.slots += slots,
        _ => runs.push(SlotRun { slots, rows }),
    }
}
