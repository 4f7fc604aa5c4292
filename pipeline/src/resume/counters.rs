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

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(numbers: [u64; 4], skipped: &[(SkipReason, u64)]) -> Counters {
        let [read, delivered, dropped_last, bad_shards] = numbers;
        Counters {
            read,
            delivered,
            skipped: skipped.iter().copied().collect(),
            dropped_last,
            bad_shards,
        }
    }

    /// Two ranks, one of which has skipped for a reason that the other does not know.
    #[test]
    fn the_counters_of_ranks_add_up() {
        let filter = SkipReason::ALL
            .into_iter()
            .find(|reason| reason.is_filter());
        let filter = filter.expect("a filter");
        let (broken, foreign) = (SkipReason::UnsupportedImage, SkipReason::UnknownImageFormat);
        let mut sum = counters([20, 12, 2, 1], &[(broken, 2), (filter, 4)]);
        sum.add(&counters([11, 5, 1, 3], &[(broken, 2), (foreign, 3)]));
        let expected = [(broken, 4), (foreign, 3), (filter, 4)];
        assert_eq!(sum, counters([31, 17, 3, 4], &expected));
        assert!(sum.balance());
        assert_eq!((sum.skipped_total(), sum.bad_total()), (11, 7));
        // All but those that a filter left out, and the end of the epoch.
        assert_eq!(sum.looked_at(), 31 - 4 - 3);
        let mut all: Vec<u64> = sum.all().collect();
        all.sort_unstable();
        assert_eq!(all, [3, 3, 4, 4, 4, 17, 31]);
        sum.read += 1;
        assert!(!sum.balance());
    }
}
