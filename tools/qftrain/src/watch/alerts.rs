//! What somebody who trains wants to be told at once: one line each, and not twice for one cause.

use std::time::{Duration, Instant};

use qf_model::train::StepRecord;

use super::smooth::Smooth;

/// Records before anything is said: the first ones are of no mean.
const WARM_UP: u64 = 20;

/// A loss that lies more than so many mean distances, and more than this share of the mean, above the
/// mean is a spike.
const SPIKE_DISTANCES: f64 = 8.0;
const SPIKE_SHARE: f64 = 0.2;

/// Records without another word about spikes.
const SPIKE_SILENCE: u64 = 50;

/// Waiting beyond this share of the time means that the loader is the bottleneck.
const WAIT_SHARE: f64 = 0.05;

/// Time in which the first batches may be late.
const WAIT_GRACE: Duration = Duration::from_secs(20);

/// Samples over which the share of bad ones is taken.
const BAD_WINDOW: u64 = 2000;

/// A share of bad samples below this is no news.
const BAD_SHARE: f64 = 0.005;

/// Looks at logged steps.
#[derive(Debug)]
pub(crate) struct Alerts {
    started: Instant,
    loss: Smooth,
    silent_until: u64,
    waits: bool,
    /// Samples read and bad at the end of the last window, and its share of bad ones.
    window: Option<(u64, u64)>,
    bad_share: Option<f64>,
}

impl Alerts {
    pub(crate) fn new() -> Alerts {
        Alerts {
            started: Instant::now(),
            loss: Smooth::default(),
            silent_until: WARM_UP,
            waits: false,
            window: None,
            bad_share: None,
        }
    }

    /// What is to be said after this step.
    pub(crate) fn look_at(&mut self, record: &StepRecord) -> Vec<String> {
        let lines = [self.spike(record), self.wait(record), self.bad(record)];
        lines.into_iter().flatten().collect()
    }

    fn spike(&mut self, record: &StepRecord) -> Option<String> {
        let (mean, distance, seen) = (self.loss.mean(), self.loss.distance(), self.loss.values());
        self.loss.add(record.loss);
        let limit = mean + (SPIKE_DISTANCES * distance).max(SPIKE_SHARE * mean.abs());
        // NaN has an alert of its own.
        if seen < self.silent_until || record.loss.is_nan() || record.loss <= limit {
            return None;
        }
        self.silent_until = seen + SPIKE_SILENCE;
        Some(format!(
            "loss spike at step {}: {:.3} after a mean of {mean:.3} (gradient norm {:.2}); if it does not come \
             down again, lower --lr or set optimizer.max_grad_norm=1",
            record.step, record.loss, record.grad_norm
        ))
    }

    fn wait(&mut self, record: &StepRecord) -> Option<String> {
        let waited = self.waits;
        self.waits = record.data_wait_share > WAIT_SHARE;
        if self.started.elapsed() < WAIT_GRACE {
            self.waits = false;
        }
        (self.waits && !waited).then(|| {
            format!(
                "{:.0} % of the time goes into waiting for data: the loader is the bottleneck; `qfdata profile` \
                 names the stage and the setting to change",
                100.0 * record.data_wait_share
            )
        })
    }

    fn bad(&mut self, record: &StepRecord) -> Option<String> {
        let now = (record.samples_read, record.samples_bad);
        let (read, bad) = *self.window.get_or_insert(now);
        let read = now.0.saturating_sub(read);
        if read < BAD_WINDOW {
            return None;
        }
        let share = now.1.saturating_sub(bad) as f64 / read as f64;
        self.window = Some(now);
        let before = self.bad_share.replace(share);
        // The first window is news where it is bad at all, a later one where it is twice as bad.
        let rises = before.is_none_or(|before| share > 2.0 * before);
        (rises && share > BAD_SHARE).then(|| {
            let before = match before {
                Some(before) => format!(", after {:.1} % of those before", 100.0 * before),
                None => String::new(),
            };
            format!(
                "{:.1} % of the last {read} samples are bad{before}; skipped.jsonl names them",
                100.0 * share
            )
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    pub(crate) fn record(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            epoch: 0,
            loss,
            loss_itc: loss / 2.0,
            loss_itm: loss / 4.0,
            loss_lm: loss / 4.0,
            grad_norm: 3.0,
            lr: 1e-4,
            temperature: Some(0.07),
            images_per_s: 100.0,
            data_wait_share: 0.0,
            samples_read: 32 * step,
            samples_skipped: 0,
            samples_bad: 0,
            skipped_by_reason: BTreeMap::new(),
            memory_bytes: None,
        }
    }

    fn alerts(records: impl Iterator<Item = StepRecord>) -> Vec<(u64, String)> {
        let mut alerts = Alerts::new();
        // The grace is over.
        alerts.started = Instant::now().checked_sub(2 * WAIT_GRACE).unwrap();
        let mut said = Vec::new();
        for record in records {
            let lines = alerts.look_at(&record);
            said.extend(lines.into_iter().map(|line| (record.step, line)));
        }
        said
    }

    #[test]
    fn a_spike_is_told_once_and_noise_is_not() {
        let noisy = |step: u64| 5.0 + 0.3 * ((step * 7919 % 100) as f64 / 50.0 - 1.0);
        let quiet = alerts((1..400).map(|step| record(step, noisy(step))));
        assert_eq!(quiet, []);
        let falling = alerts((1..400).map(|step| record(step, 9.0 / (step as f64).sqrt())));
        assert_eq!(falling, []);
        let said = alerts((1..400).map(|step| match step {
            200..205 => record(step, 9.0),
            _ => record(step, noisy(step)),
        }));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].0 == 200 && said[0].1.contains("loss spike at step 200: 9.000"));
        // NaN is told where it happens, and ruins no mean.
        let said =
            alerts((1..100).map(|step| record(step, if step == 50 { f64::NAN } else { 5.0 })));
        assert_eq!(said, []);
    }

    #[test]
    fn a_loader_that_is_too_slow_is_told_once_until_it_recovers() {
        let said = alerts((1..100).map(|step| StepRecord {
            data_wait_share: if (30..40).contains(&step) || step > 60 {
                0.12
            } else {
                0.01
            },
            ..record(step, 5.0)
        }));
        let steps: Vec<u64> = said.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [30, 61], "{said:?}");
        assert!(said[0].1.starts_with("12 % of the time"), "{said:?}");
    }

    #[test]
    fn a_rising_share_of_bad_samples_is_told() {
        // One in a thousand bad to begin with, one in fifty from sample 8000 on.
        let bad = |read: u64| read.min(8000) / 1000 + read.saturating_sub(8000) / 50;
        let said = alerts((0..1000).map(|step| StepRecord {
            samples_bad: bad(32 * step),
            ..record(step, 5.0)
        }));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!((8000 / 32..12000 / 32).contains(&said[0].0), "{said:?}");
        assert!(said[0].1.contains("skipped.jsonl"), "{said:?}");
    }
}
