//! Whoever watches a run: a terminal, event files, a page.

use super::profile::RunProfile;
use super::record::MetricsRecord;
use crate::blip2::Blip2Qformer;

/// What a run tells of itself, on rank 0. Time that an observer takes is the run's.
pub trait Observer {
    /// Sees a line of metrics.jsonl.
    fn record(&mut self, record: &MetricsRecord);

    /// Sees the model after a validation and at the end of a run that ended well. It may compute with
    /// it: a step seeds torch's generator anew.
    fn view(&mut self, _view: &RunView<'_>) {}
}

/// A run as it stands between two steps.
pub struct RunView<'a> {
    /// The model, after `step` steps.
    pub model: &'a Blip2Qformer,
    /// Steps done.
    pub step: u64,
    /// Where the time went until now.
    pub profile: RunProfile,
    /// No step follows.
    pub is_last: bool,
}

impl<F: FnMut(&MetricsRecord)> Observer for F {
    fn record(&mut self, record: &MetricsRecord) {
        self(record);
    }
}
