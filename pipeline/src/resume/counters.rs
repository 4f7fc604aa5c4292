//! What became of the samples of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::SkipReason;

/// The counters of a run: `read = delivered + skipped by reason + dropped_last`, at every batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Samples that came up in the order, good or bad.
    pub read: u64,
    /// Samples that were part of a batch.
    pub delivered: u64,
    /// Samples that were not, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
    /// Good samples at the end of an epoch that did not fill a batch.
    pub dropped_last: u64,
    /// Shards whose rest could not be read.
    pub bad_shards: u64,
}

impl Counters {
    /// All skipped samples.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Skipped samples that are bad: those that a filter left out are not.
    pub fn bad_total(&self) -> u64 {
        self.skipped_by(|reason| !reason.is_filter())
    }

    /// Samples whose members or images were looked at: all that were read but those that a filter left
    /// out, or the end of an epoch.
    pub fn looked_at(&self) -> u64 {
        let unseen = self.skipped_by(SkipReason::is_filter) + self.dropped_last;
        self.read.saturating_sub(unseen)
    }

    fn skipped_by(&self, counts: impl Fn(SkipReason) -> bool) -> u64 {
        let skipped = self.skipped.iter().filter(|(reason, _)| counts(**reason));
        skipped.map(|(_, count)| count).sum()
    }

    /// Adds another rank's counters.
    pub fn add(&mut self, other: &Counters) {
        self.read += other.read;
        self.delivered += other.delivered;
        for (&reason, count) in &other.skipped {
            *self.skipped.entry(reason).or_insert(0) += count;
        }
        self.dropped_last += other.dropped_last;
        self.bad_shards += other.bad_shards;
    }

    /// Whether every sample is accounted for.
    pub fn balance(&self) -> bool {
        self.read == self.delivered + self.skipped_total() + self.dropped_last
    }

    /// Every counter.
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> + '_ {
        let fixed = [
            self.read,
            self.delivered,
            self.dropped_last,
            self.bad_shards,
        ];
        fixed.into_iter().chain(self.skipped.values().copied())
    }
}
