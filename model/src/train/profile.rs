//! Where a run's time went, step by step and stage by stage.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use qf_config::model::Precision;
use qf_pipeline::loader::{LoaderReport, StageReport};
use qf_pipeline::process::rss_bytes;
use qf_pipeline::trace::{Arg, Trace};
use serde::{Deserialize, Serialize};
use tch::Device;

use super::step_trace::TraceReport;
use crate::accelerator::memory;
use crate::error::ModelError;
use crate::feed::{BatchWait, DeviceFeed};
use crate::flops::matmul_peak;

/// What the training thread does in a step, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a batch on the device.
    Wait,
    /// Waiting for the tower that runs ahead of the steps.
    Tower,
    /// Agreeing with the other ranks on a step.
    Agree,
    /// Vision tower (unless it runs ahead), Q-Former passes and losses.
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

const PHASE_NAMES: [&str; 8] = [
    "wait",
    "tower",
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
pub struct Phases {
    started: Instant,
    busy_secs: [f64; PHASE_NAMES.len()],
    /// The wait for the first batch, while the loader starts.
    first_batch_secs: Option<f64>,
    steps: u64,
    images: u64,
    /// Operations of all steps.
    flop: f64,
    trace: Option<Trace>,
    step_started: Instant,
    /// Ends of recent steps.
    recent: VecDeque<StepEnd>,
    /// What was measured of the memory last, and when: a step takes less than asking.
    memory: Cell<Option<(Instant, Option<u64>)>>,
}

/// Where a step ended.
struct StepEnd {
    at: Instant,
    images: u64,
    /// Of each phase until then.
    busy_secs: [f64; PHASE_NAMES.len()],
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
            flop: 0.0,
            trace: None,
            step_started: started,
            recent: VecDeque::from([StepEnd {
                at: started,
                images: 0,
                busy_secs: [0.0; PHASE_NAMES.len()],
            }]),
            memory: Cell::new(None),
        }
    }

    /// Records phases and steps in this trace from now on, or in none.
    pub(super) fn set_trace(&mut self, trace: Option<&Trace>) {
        self.trace = trace.cloned();
    }

    /// Runs `work` as part of a phase.
    pub fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let elapsed = start.elapsed();
        if let Some(trace) = &self.trace {
            trace.record(PHASE_NAMES[phase as usize], start, elapsed, &[]);
        }
        self.busy_secs[phase as usize] += elapsed.as_secs_f64();
        result
    }

    /// Runs `wait`, which says how long it waited for what.
    pub(super) fn time_wait<T>(&mut self, wait: impl FnOnce() -> (T, BatchWait)) -> T {
        let start = Instant::now();
        let (result, waited) = wait();
        let parts = [(Phase::Wait, waited.data), (Phase::Tower, waited.tower)];
        let mut at = start;
        for (phase, elapsed) in parts {
            // A wait in each step, also for a batch that was there.
            let is_told = phase == Phase::Wait || !elapsed.is_zero();
            if let Some(trace) = self.trace.as_ref().filter(|_| is_told) {
                trace.record(PHASE_NAMES[phase as usize], at, elapsed, &[]);
            }
            at += elapsed;
        }
        match self.first_batch_secs {
            None => self.first_batch_secs = Some(start.elapsed().as_secs_f64()),
            Some(_) => {
                for (phase, elapsed) in parts {
                    self.busy_secs[phase as usize] += elapsed.as_secs_f64();
                }
            }
        }
        result
    }

    /// Begins a step.
    pub(super) fn begin_step(&mut self) {
        self.step_started = Instant::now();
    }

    /// Counts operations of the step.
    pub(super) fn add_flop(&mut self, flop: f64) {
        self.flop += flop;
    }

    /// Counts the step `number`, of `images` images.
    pub(super) fn end_step(&mut self, number: u64, images: u64) {
        let now = Instant::now();
        if let Some(trace) = &self.trace {
            let name = format!("step {number}");
            let args = [("images", Arg::from(images))];
            trace.record(&name, self.step_started, now - self.step_started, &args);
        }
        self.steps += 1;
        self.images += images;
        self.recent.push_back(StepEnd {
            at: now,
            images,
            busy_secs: self.busy_secs,
        });
        if self.recent.len() > RECENT_STEPS + 1 {
            self.recent.pop_front();
        }
    }

    /// Images per second over the last 50 steps.
    pub fn images_per_s(&self) -> f64 {
        self.last_steps().images_per_s
    }

    /// On a GPU, bytes that its tensors hold, else the resident memory of the process; as of a second ago
    /// at most.
    pub(super) fn memory_bytes(&self, device: Device) -> Option<u64> {
        const FRESH: Duration = Duration::from_secs(1);
        if let Some((_, bytes)) = (self.memory.get()).filter(|(at, _)| at.elapsed() < FRESH) {
            return bytes;
        }
        let bytes = match device {
            Device::Cpu => rss_bytes(),
            _ => memory(device).map(|memory| memory.allocated),
        };
        self.memory.set(Some((Instant::now(), bytes)));
        bytes
    }

    /// The last 50 steps.
    fn last_steps(&self) -> LastSteps {
        let (Some(first), Some(last)) = (self.recent.front(), self.recent.back()) else {
            return LastSteps::default();
        };
        let secs = last.at.duration_since(first.at).as_secs_f64();
        let images: u64 = self.recent.iter().skip(1).map(|end| end.images).sum();
        let of_phase = |at: usize| last.busy_secs[at] - first.busy_secs[at];
        let phases = PHASE_NAMES.iter().enumerate();
        LastSteps {
            steps: self.recent.len() as u64 - 1,
            secs,
            images_per_s: images as f64 / secs.max(1e-9),
            data_wait_share: of_phase(Phase::Wait as usize) / secs.max(1e-9),
            phase_secs: phases
                .map(|(at, name)| (name.to_string(), of_phase(at)))
                .collect(),
        }
    }

    /// Share of the time since the first batch that was spent waiting for the next ones.
    pub fn wait_share(&self) -> f64 {
        let running = secs(self.started) - self.first_batch_secs.unwrap_or(0.0);
        self.busy_secs[Phase::Wait as usize] / running.max(1e-9)
    }

    /// The profile of the run up to now.
    pub(super) fn profile(&self, feed: &DeviceFeed, place: &Place) -> RunProfile {
        let wall_secs = secs(self.started);
        let phases = PHASE_NAMES
            .iter()
            .zip(self.busy_secs)
            .map(|(name, busy_secs)| {
                StageReport::new(name, 1, self.images, 0, busy_secs, wall_secs)
            });
        let phases: Vec<_> = phases.collect();
        let loader = feed.report();
        let busy = |phase: Phase| self.busy_secs[phase as usize];
        let beside = busy(Phase::Wait) + busy(Phase::Snapshot) + busy(Phase::Validate);
        let first_batch_secs = self.first_batch_secs.unwrap_or(0.0);
        let stepping = (wall_secs - beside - first_batch_secs).max(1e-9);
        RunProfile {
            wall_secs,
            steps: self.steps,
            images: self.images,
            images_per_s: self.images as f64 / wall_secs.max(1e-9),
            first_batch_secs,
            data_wait_share: self.wait_share(),
            last_steps: self.last_steps(),
            flop_per_step: self.flop / self.steps.max(1) as f64,
            flop_per_s: self.flop / stepping,
            bottleneck: bottleneck(&phases, &loader, self.wait_share(), place),
            phases,
            loader,
            device_memory_peak_bytes: memory(place.device).map(|memory| memory.peak),
            roofline: None,
            trace: place.trace.clone(),
        }
    }
}

/// Where a run computes, as far as it matters for what limits it.
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) precision: Precision,
    pub(super) trace: Option<TraceReport>,
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
    /// The last steps, when everything had settled.
    #[serde(default)]
    pub last_steps: LastSteps,
    /// Floating-point operations of a step on this rank, forward and backward, counted from its
    /// shapes.
    pub flop_per_step: f64,
    /// Those of all steps over the time in which the run neither waited for data nor validated nor
    /// copied a checkpoint.
    pub flop_per_s: f64,
    /// One sentence: what limits the throughput and what would raise it.
    pub bottleneck: String,
    /// The training thread: what each of its phases took.
    pub phases: Vec<StageReport>,
    /// The loader's threads and queues.
    pub loader: LoaderReport,
    /// The most that tensors held at once on a GPU.
    pub device_memory_peak_bytes: Option<u64>,
    /// What the machine could do, where that was measured.
    pub roofline: Option<Roofline>,
    /// The trace of its first steps, where one was written.
    pub trace: Option<TraceReport>,
}

/// Throughput of the last 50 steps, from the end of the one before them to the end of the last one;
/// what follows a step, such as a last checkpoint, does not count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastSteps {
    /// Steps, 50 unless the run had fewer.
    pub steps: u64,
    /// Wall time.
    pub secs: f64,
    /// Images per second.
    pub images_per_s: f64,
    /// Share of the time that was spent waiting for data.
    pub data_wait_share: f64,
    /// Time of the training thread by phase. On a GPU the host starts work and goes on.
    pub phase_secs: BTreeMap<String, f64>,
}

/// What a run reaches of what the machine can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// FLOP/s of a large matrix product in the run's precision on its device, measured after the run.
    pub matmul_flop_per_s: f64,
    /// The run's own FLOP/s as a share of that.
    pub share: f64,
    /// Bytes of shards read per second.
    pub read_bytes_per_s: f64,
    /// Bytes copied to the device per second.
    pub upload_bytes_per_s: f64,
    /// What a copy to the device reaches while it lasts, bytes per second.
    pub upload_peak_bytes_per_s: f64,
}

impl RunProfile {
    /// Measures what the device can do, and sets [`RunProfile::roofline`]. Takes a second or two.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn measure_roofline(
        &mut self,
        device: Device,
        precision: Precision,
    ) -> Result<(), ModelError> {
        let peak = matmul_peak(device, precision)?;
        let stage = |name: &str| self.loader.stages.iter().find(|stage| stage.name == name);
        let bytes = |name: &str| stage(name).map_or(0.0, |stage| stage.bytes as f64);
        let wall = self.wall_secs.max(1e-9);
        let uploading = stage("upload").map_or(0.0, |stage| stage.busy_secs);
        self.roofline = Some(Roofline {
            matmul_flop_per_s: peak,
            share: self.flop_per_s / peak.max(1.0),
            read_bytes_per_s: bytes("read") / wall,
            upload_bytes_per_s: bytes("upload") / wall,
            upload_peak_bytes_per_s: bytes("upload") / uploading.max(1e-9),
        });
        Ok(())
    }
}

/// A GPU that does nothing for more than this share of a step is waiting for the host.
const IDLE_SHARE: f64 = 0.1;

fn bottleneck(
    phases: &[StageReport],
    loader: &LoaderReport,
    wait_share: f64,
    place: &Place,
) -> String {
    let computing = [Phase::Forward, Phase::Backward, Phase::Optimiser];
    let computing = computing.map(|phase| match (place.device, phases.get(phase as usize)) {
        (Device::Cpu, Some(phase)) => phase.busy_secs,
        _ => 0.0,
    });
    if let Some(clause) = loader.starvation(computing.iter().sum()) {
        return clause;
    }
    if wait_share > WAIT_SHARE {
        return format!(
            "the loader: {:.0} % of the time went into waiting for data; {}",
            100.0 * wait_share,
            loader.bottleneck()
        );
    }
    let compute = || phases.iter().filter(|phase| phase.name != PHASE_NAMES[0]);
    let busy: f64 = compute().map(|phase| phase.busy_secs).sum();
    let Some(most) = compute().max_by(|a, b| a.busy_secs.total_cmp(&b.busy_secs)) else {
        return "nothing ran".into();
    };
    let share = 100.0 * most.busy_secs / busy.max(1e-9);
    let ready = 100.0 * (1.0 - wait_share);
    if most.name == PHASE_NAMES[Phase::Agree as usize] {
        return format!(
            "another rank: {share:.0} % of a step went into waiting for it, while this one's data was \
             ready {ready:.1} % of the time; look at the profile of the slowest"
        );
    }
    let idle = place.trace.as_ref().and_then(|trace| trace.gpu_idle_share);
    let remedy = match (place.device, place.precision, idle) {
        (Device::Cuda(_), Precision::F32, _) => {
            "precision = \"bf16\" would raise images/s".to_string()
        }
        (Device::Cuda(_), _, Some(idle)) if idle > IDLE_SHARE => format!(
            "the GPU does nothing {:.0} % of the time, waiting for the host to start its kernels: a \
             larger data.batch_size would raise images/s",
            100.0 * idle
        ),
        (Device::Cuda(_), ..) => "more GPUs or a smaller model would raise images/s".into(),
        _ => "a GPU or a smaller model would raise images/s".into(),
    };
    format!(
        "the model: data was ready {ready:.1} % of the time, and {} takes {share:.0} % of a step; {remedy}, \
         more loader threads would not",
        most.name
    )
}

/// Seconds since `start`.
pub(super) fn secs(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
