//! What a run leaves out, by name: handed to whoever keeps a list of it, each sample once.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{SampleError, ShardError, SkipReason};

/// Reports that wait to be taken, at most: some 3 MB. Those beyond it are counted.
const MAX_WAITING: usize = 10_000;

/// Samples that [`NamedOnce`] remembers, at most: 18 MB.
const MAX_REMEMBERED: usize = 1_000_000;

/// Characters of a message that a report keeps.
const MAX_MESSAGE: usize = 400;

/// A sample that a run left out because it is bad, or the rest of a shard that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedSample {
    /// Its data set; empty for the only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub set: String,
    /// Epoch of its data set, from 0.
    pub epoch: u64,
    /// Why.
    pub reason: SkipReason,
    /// Path or URL of the shard.
    pub shard: String,
    /// Position of the sample in its shard, bad samples included; `None` for the rest of a shard.
    pub sample: Option<u32>,
    /// Its key; empty for the rest of a shard.
    pub key: String,
    /// Its offset, or that of the first byte which cannot be read, in the uncompressed shard.
    pub offset_bytes: u64,
    /// What is wrong.
    pub message: String,
}

impl SkippedSample {
    pub(crate) fn sample(set: &str, epoch: u64, error: &SampleError) -> SkippedSample {
        SkippedSample {
            set: set.to_string(),
            epoch,
            reason: error.reason,
            shard: error.id.shard.to_string(),
            sample: Some(error.id.sample_index),
            key: error.id.key.clone(),
            offset_bytes: error.id.offset_bytes,
            message: shortened(&error.message),
        }
    }

    pub(crate) fn rest_of_shard(set: &str, epoch: u64, error: &ShardError) -> SkippedSample {
        SkippedSample {
            set: set.to_string(),
            epoch,
            reason: SkipReason::UnreadableShard,
            shard: error.shard.clone(),
            sample: None,
            key: String::new(),
            offset_bytes: error.offset_bytes,
            message: shortened(&error.message),
        }
    }
}

fn shortened(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_string(),
    }
}

/// Samples that were left out and that nobody has taken yet, shared by a loader and its consumer.
#[derive(Clone, Debug, Default)]
pub struct SkipReports(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// With the number of the batch, from 1, that the loader was filling.
    reports: VecDeque<(u64, SkippedSample)>,
    unnamed: u64,
}

/// What was taken from [`SkipReports`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenReports {
    /// In the order of the run.
    pub named: Vec<SkippedSample>,
    /// Further ones, for which there was no room.
    pub unnamed: u64,
}

impl TakenReports {
    /// Whether nothing was left out.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.unnamed == 0
    }
}

impl SkipReports {
    pub(crate) fn push(&self, batch: u64, report: SkippedSample) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.reports.len() < MAX_WAITING {
            true => waiting.reports.push_back((batch, report)),
            false => waiting.unnamed += 1,
        }
    }

    /// Takes what was left out before the batch with this number was complete, counted from 1 over the
    /// whole run as in [`LoaderState::batches`](crate::resume::LoaderState::batches). `u64::MAX` takes all.
    pub fn take_before(&self, batch: u64) -> TakenReports {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.reports.partition_point(|(of, _)| *of <= batch);
        let named = waiting.reports.drain(..count).map(|(_, report)| report);
        let named = named.collect();
        TakenReports {
            named,
            unnamed: std::mem::take(&mut waiting.unnamed),
        }
    }
}

/// Tells samples that were named before from others, in bounded memory: exactly for the first million
/// bad samples; beyond those only what is bad in the first epoch counts as new.
#[derive(Debug)]
pub struct NamedOnce {
    first_epoch: u64,
    capacity: usize,
    seen: HashSet<u64>,
}

impl NamedOnce {
    /// Nothing was named yet; `first_epoch` is the first that the run sees.
    pub fn new(first_epoch: u64) -> NamedOnce {
        NamedOnce::with_capacity(first_epoch, MAX_REMEMBERED)
    }

    fn with_capacity(first_epoch: u64, capacity: usize) -> NamedOnce {
        NamedOnce {
            first_epoch,
            capacity,
            seen: HashSet::new(),
        }
    }

    /// Whether this sample (or, with `None`, the rest of this shard) was not named before.
    pub fn is_new(&mut self, shard: &str, sample: Option<u32>, epoch: u64) -> bool {
        let mut hasher = DefaultHasher::new();
        (shard, sample).hash(&mut hasher);
        let hash = hasher.finish();
        if self.seen.contains(&hash) {
            return false;
        }
        if self.seen.len() < self.capacity {
            self.seen.insert(hash);
            return true;
        }
        epoch <= self.first_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(number: u32) -> SkippedSample {
        SkippedSample {
            set: String::new(),
            epoch: 0,
            reason: SkipReason::BrokenImage,
            shard: "a.tar".into(),
            sample: Some(number),
            key: format!("{number:06}"),
            offset_bytes: 512,
            message: "x".into(),
        }
    }

    #[test]
    fn reports_are_taken_up_to_a_batch_and_bounded() {
        let reports = SkipReports::default();
        for number in 0..6 {
            reports.push(u64::from(number / 2) + 1, report(number));
        }
        let samples = |taken: TakenReports| -> Vec<Option<u32>> {
            taken.named.iter().map(|report| report.sample).collect()
        };
        assert!(reports.take_before(0).is_empty());
        assert_eq!(
            samples(reports.clone().take_before(2)),
            [Some(0), Some(1), Some(2), Some(3)]
        );
        assert_eq!(samples(reports.take_before(u64::MAX)), [Some(4), Some(5)]);
        for number in 0..MAX_WAITING as u32 + 3 {
            reports.push(1, report(number));
        }
        let taken = reports.take_before(1);
        assert_eq!((taken.named.len(), taken.unnamed), (MAX_WAITING, 3));
        assert!(reports.take_before(u64::MAX).is_empty());
    }

    #[test]
    fn a_sample_is_named_once_and_memory_is_bounded() {
        let mut named = NamedOnce::with_capacity(2, 2);
        assert!(named.is_new("a.tar", Some(1), 2));
        assert!(!named.is_new("a.tar", Some(1), 3));
        assert!(named.is_new("b.tar", Some(1), 3));
        assert!(!named.is_new("b.tar", Some(1), 2));
        // Full: the first epoch has each sample once.
        assert!(named.is_new("a.tar", Some(2), 2));
        assert!(!named.is_new("a.tar", Some(2), 3));
        assert!(!named.is_new("a.tar", None, 3));
        assert_eq!(named.seen.len(), 2);
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = "é".repeat(MAX_MESSAGE + 1);
        assert_eq!(shortened(&long).chars().count(), MAX_MESSAGE + 1);
        assert_eq!(shortened("short"), "short");
    }
}
