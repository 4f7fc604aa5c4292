//! The part of a plan that a run makes.

use std::ops::Range;

use anyhow::bail;

use super::file::{Plan, PlannedPart};
use crate::shard::source::any::Source;

/// Which part of a plan a run makes.
#[derive(Clone, Debug)]
pub(in crate::shard) struct PartOfPlan {
    pub(super) plan: Plan,
    pub(super) part: PlannedPart,
}

impl PartOfPlan {
    /// The rows of the input that belong to it.
    pub(in crate::shard) fn rows(&self) -> Range<u64> {
        self.part.rows.clone()
    }

    /// What tells its shards from those of any other part or plan.
    pub(in crate::shard) fn settings(&self) -> [(&'static str, String); 2] {
        let part = format!("{}/{}", self.part.part, self.plan.parts.len());
        [("plan", self.plan.id.clone()), ("--part", part)]
    }

    /// That the input is still the one of the plan.
    pub(in crate::shard) fn check_input(&self, source: &Source) -> anyhow::Result<()> {
        if source.fingerprint() != self.plan.input_fingerprint {
            bail!(
                "the input is not the one that the plan was made of: its files changed (name, size or time), \
                 or this machine sees others; make the plan again with `qfdata plan`"
            );
        }
        Ok(())
    }
}
