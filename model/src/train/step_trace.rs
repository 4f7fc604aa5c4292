//! The first steps of a run, thread by thread and operator by operator.

use std::ops::Range;

use qf_pipeline::trace::{Trace, TraceSummary};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::error::ModelError;
use crate::torch_profiler::TorchProfiler;

/// Steps, of those that are traced, whose operators and kernels are recorded too: after the first ones,
/// which allocate, and few, for a step has thousands.
const OPERATOR_STEPS: Range<u64> = 3..6;

/// Records the first steps of a run in a trace.
pub struct StepTrace {
    trace: Trace,
    /// Steps that are to be traced.
    steps: u64,
    /// Steps that were.
    done: u64,
    profiler: Option<TorchProfiler>,
    report: Option<TraceReport>,
    gpu_idle_share: Option<f64>,
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
    /// Events that it had no room for.
    pub dropped: u64,
    /// Share of three of the steps in which the GPU did nothing; none on the CPU.
    pub gpu_idle_share: Option<f64>,
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
            gpu_idle_share: None,
        }
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
        if self.report.is_none() && self.done == OPERATOR_STEPS.start.min(last) {
            self.profiler = Some(TorchProfiler::start(device)?);
        }
        Ok(())
    }

    /// After a step.
    pub(super) fn end_step(&mut self, device: Device) -> Result<(), ModelError> {
        if self.report.is_some() {
            return Ok(());
        }
        self.done += 1;
        if self.done >= OPERATOR_STEPS.end.min(self.steps) {
            self.take_operators(device)?;
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
        self.take_operators(device)?;
        let summary: TraceSummary = self.trace.finish()?;
        self.report = Some(TraceReport {
            path: self.trace.path().to_owned(),
            steps: self.done,
            events: summary.events,
            dropped: summary.dropped(),
            gpu_idle_share: self.gpu_idle_share,
        });
        Ok(())
    }

    fn take_operators(&mut self, device: Device) -> Result<(), ModelError> {
        let Some(profiler) = self.profiler.take() else {
            return Ok(());
        };
        let operations = profiler.stop(device)?;
        self.gpu_idle_share = operations.gpu_idle_share();
        operations.record(&self.trace);
        Ok(())
    }
}
