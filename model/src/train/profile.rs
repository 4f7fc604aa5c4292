//! Where a run's time went, step by step and stage by stage.

use std::collections::VecDeque;
use std::time::Instant;

use qf_pipeline::loader::{LoaderReport, StageReport};
use serde::{Deserialize, Serialize};

use super::secs;
use crate::feed::DeviceFeed;

/// What the training thread does in a step, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a batch on the device.
    Wait,
    /// Agreeing with the other ranks on a step.
    Agree,
    /// Vision tower, Q-Former passes and losses.
    Forward,
    /// Gradients.
    Backward,
    /// AdamW.
    Optimiser,
    /// Copying weights and moments for a checkpoint, which is then written beside training.
    Snapshot,
    /// Losses and retrieval on held-out data.
    Validate,
}

const PHASE_NAMES: [&str; 7] = [
    "wait",
    "agree",
    "forward",
    "backward",
    "optimiser",
    "snapshot",
    "validate",
];

/// Steps over which the throughput shown while training is averaged.
const RECENT_STEPS: usize = 50;

/// Waiting beyond this share of the time means that the loader is the bottleneck.
const WAIT_SHARE: f64 = 0.05;

/// Adds up the time of each phase.
///
/// On a GPU these are the times the host takes: kernels run on after a call has returned, and
/// their time shows up in the next phase that needs a result.
#[derive(Debug)]
pub struct Phases {
    started: Instant,
    busy_secs: [f64; PHASE_NAMES.len()],
    /// The wait for the first batch, while the loader starts.
    first_batch_secs: Option<f64>,
    steps: u64,
    images: u64,
    /// End and images of recent steps.
    recent: VecDeque<(Instant, u64)>,
}

impl Phases {
    /// Starts the clock.
    pub fn start() -> Self {
        let started = Instant::now();
        Phases {
            started,
            busy_secs: [0.0; PHASE_NAMES.len()],
            first_batch_secs: None,
            steps: 0,
            images: 0,
            recent: VecDeque::from([(started, 0)]),
        }
    }

    /// Runs `work` as part of a phase.
    pub fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let busy = secs(start);
        match (phase, self.first_batch_secs) {
            (Phase::Wait, None) => self.first_batch_secs = Some(busy),
            _ => self.busy_secs[phase as usize] += busy,
        }
        result
    }

    /// Counts a step of `images` images.
    pub fn end_step(&mut self, images: u64) {
        self.steps += 1;
        self.images += images;
        self.recent.push_back((Instant::now(), images));
        if self.recent.len() > RECENT_STEPS + 1 {
            self.recent.pop_front();
        }
    }

    /// Images per second over the last 50 steps.
    pub fn images_per_s(&self) -> f64 {
        let (Some((first, _)), Some((last, _))) = (self.recent.front(), self.recent.back()) else {
            return 0.0;
        };
        let images: u64 = self.recent.iter().skip(1).map(|(_, images)| images).sum();
        images as f64 / last.duration_since(*first).as_secs_f64().max(1e-9)
    }

    /// Share of the time since the first batch that was spent waiting for the next ones.
    pub fn wait_share(&self) -> f64 {
        let running = secs(self.started) - self.first_batch_secs.unwrap_or(0.0);
        self.busy_secs[Phase::Wait as usize] / running.max(1e-9)
    }

    /// The profile of the run up to now.
    pub fn profile(&self, feed: &DeviceFeed) -> RunProfile {
        let wall_secs = secs(self.started);
        let phases = PHASE_NAMES
            .iter()
            .zip(self.busy_secs)
            .map(|(name, busy_secs)| {
                StageReport::new(name, 1, self.images, 0, busy_secs, wall_secs)
            });
        let phases: Vec<_> = phases.collect();
        let loader = feed.report();
        RunProfile {
            wall_secs,
            steps: self.steps,
            images: self.images,
            images_per_s: self.images as f64 / wall_secs.max(1e-9),
            first_batch_secs: self.first_batch_secs.unwrap_or(0.0),
            data_wait_share: self.wait_share(),
            bottleneck: bottleneck(&phases, &loader, self.wait_share()),
            phases,
            loader,
        }
    }
}

/// Throughput of a run since it was started or resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunProfile {
    /// Wall time of the training loop.
    pub wall_secs: f64,
    /// Steps done in it.
    pub steps: u64,
    /// Images seen in it.
    pub images: u64,
    /// Images per second.
    pub images_per_s: f64,
    /// Time until the first batch was there.
    pub first_batch_secs: f64,
    /// Share of the time after that which was spent waiting for data.
    pub data_wait_share: f64,
    /// One sentence: what limits the throughput and what would raise it.
    pub bottleneck: String,
    /// The training thread: what each of its phases took.
    pub phases: Vec<StageReport>,
    /// The loader's threads and queues.
    pub loader: LoaderReport,
}

fn bottleneck(phases: &[StageReport], loader: &LoaderReport, wait_share: f64) -> String {
    if wait_share > WAIT_SHARE {
        return format!(
            "the loader: {:.0} % of the time went into waiting for data; {}",
            100.0 * wait_share,
            loader.bottleneck()
        );
    }
    let compute = || phases.iter().filter(|phase| phase.name != PHASE_NAMES[0]);
    let busy: f64 = compute().map(|phase| phase.busy_secs).sum();
    match compute().max_by(|a, b| a.busy_secs.total_cmp(&b.busy_secs)) {
        Some(phase) => format!(
            "the model: data was ready {:.1} % of the time, and {} takes {:.0} % of a step; a \
             faster device or a smaller model would raise images/s, more loader threads would not",
            100.0 * (1.0 - wait_share),
            phase.name,
            100.0 * phase.busy_secs / busy.max(1e-9)
        ),
        None => "nothing ran".into(),
    }
}
