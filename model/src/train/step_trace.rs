//! The first steps of a run, thread by thread and operator by operator.

use std::ops::Range;

use qf_pipeline::trace::{Trace, TraceSummary};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::error::ModelError;
use crate::torch_profiler::{Recorded, TorchProfiler};

/// Steps, of those that are traced, whose operators and kernels are recorded too: after the first ones,
/// which allocate, and few, for a step has thousands.
const OPERATOR_STEPS: Range<u64> = 3..6;

/// Steps, the last of those that are traced, in which what a GPU does is recorded and nothing else: the
/// host is not slowed down, so its idle time is that of steps without a trace.
const GPU_STEPS: u64 = 10;

/// Part of their time that does not count, until the host is ahead of the GPU again.
const CATCHING_UP: f64 = 0.2;

/// Records the first steps of a run in a trace.
pub struct StepTrace {
    trace: Trace,
    /// Steps that are to be traced.
    steps: u64,
    /// Steps that were.
    done: u64,
    profiler: Option<(Recorded, TorchProfiler)>,
    report: Option<TraceReport>,
    gpu: GpuUse,
}

/// What was seen of a GPU.
#[derive(Clone, Copy, Debug, Default)]
struct GpuUse {
    idle_share: Option<f64>,
    operations_per_step: Option<f64>,
}

/// A trace that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceReport {
    /// The file.
    pub path: std::path::PathBuf,
    /// Steps in it.
    pub steps: u64,
    /// Events in it.
    pub events: u64,
    /// Events beyond its limit, which it dropped.
    pub dropped: u64,
    /// Share of the last ten of the steps in which the GPU did nothing, measured without recording
    /// operators; of three steps with them where fewer were traced. None on the CPU.
    pub gpu_idle_share: Option<f64>,
    /// Kernels, copies and fills of a step on the GPU; none on the CPU.
    #[serde(default)]
    pub gpu_operations_per_step: Option<f64>,
}

impl StepTrace {
    /// Traces the next `steps` steps; the loader should have been started with the same trace.
    pub fn new(trace: Trace, steps: u64) -> StepTrace {
        StepTrace {
            trace,
            steps: steps.max(1),
            done: 0,
            profiler: None,
            report: None,
            gpu: GpuUse::default(),
        }
    }

    /// Steps in which only a GPU is recorded; none where there are too few.
    fn gpu_steps(&self) -> Range<u64> {
        let first = OPERATOR_STEPS.end.max(self.steps.saturating_sub(GPU_STEPS));
        first..self.steps.max(first)
    }

    /// The trace while it records.
    pub(super) fn trace(&self) -> Option<&Trace> {
        match self.report {
            None => Some(&self.trace),
            Some(_) => None,
        }
    }

    /// What was written.
    pub(super) fn report(&self) -> Option<&TraceReport> {
        self.report.as_ref()
    }

    /// Before a step's first operator.
    pub(super) fn begin_step(&mut self, device: Device) -> Result<(), ModelError> {
        let last = self.steps.saturating_sub(1);
        // Of a trace of fewer steps the last one.
        let recorded = match self.done {
            _ if self.report.is_some() => return Ok(()),
            done if done == OPERATOR_STEPS.start.min(last) => Recorded::Operators,
            done if device.is_cuda() && done == self.gpu_steps().start => Recorded::Gpu,
            _ => return Ok(()),
        };
        self.profiler = Some((recorded, TorchProfiler::start(device, recorded)?));
        Ok(())
    }

    /// After a step.
    pub(super) fn end_step(&mut self, device: Device) -> Result<(), ModelError> {
        if self.report.is_some() {
            return Ok(());
        }
        self.done += 1;
        if self.done == OPERATOR_STEPS.end.min(self.steps) {
            self.take_operations(device)?;
        }
        match self.done >= self.steps {
            true => self.finish(device),
            false => Ok(()),
        }
    }

    /// Writes the file, also of a run that ends before all steps are traced.
    pub(super) fn finish(&mut self, device: Device) -> Result<(), ModelError> {
        if self.report.is_some() {
            return Ok(());
        }
        self.take_operations(device)?;
        let summary: TraceSummary = self.trace.finish()?;
        self.report = Some(TraceReport {
            path: self.trace.path().to_owned(),
            steps: self.done,
            events: summary.events,
            dropped: summary.dropped(),
            gpu_idle_share: self.gpu.idle_share,
            gpu_operations_per_step: self.gpu.operations_per_step,
        });
        Ok(())
    }

    /// Ends the recording that is under way, if one is.
    fn take_operations(&mut self, device: Device) -> Result<(), ModelError> {
        let Some((recorded, profiler)) = self.profiler.take() else {
            return Ok(());
        };
        let operations = profiler.stop(device)?;
        let (first, left_out) = match recorded {
            Recorded::Operators => {
                operations.record(&self.trace);
                let last = self.steps.saturating_sub(1);
                (OPERATOR_STEPS.start.min(last), 0.0)
            }
            Recorded::Gpu => (self.gpu_steps().start, CATCHING_UP),
        };
        let count = operations.gpu_operations();
        if count > 0 {
            let steps = self.done.saturating_sub(first).max(1);
            self.gpu = GpuUse {
                idle_share: operations.gpu_idle_share(left_out),
                operations_per_step: Some(count as f64 / steps as f64),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use qf_pipeline::trace::TraceLimits;

    use super::*;

    #[test]
    fn the_gpu_alone_is_recorded_in_the_last_steps() {
        let folder = tempfile::tempdir().unwrap();
        let gpu_steps = |steps| {
            let path = folder.path().join(format!("{steps}.json"));
            let trace = Trace::create(path, TraceLimits::default()).unwrap();
            StepTrace::new(trace, steps).gpu_steps()
        };
        assert_eq!(gpu_steps(50), 40..50);
        assert_eq!(gpu_steps(16), 6..16);
        assert_eq!(gpu_steps(9), 6..9);
        for few in [1, 3, 6] {
            assert!(gpu_steps(few).is_empty(), "{few}");
        }
    }
}
