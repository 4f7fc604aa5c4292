//! The training loop, and the folder it writes to.

mod memory;
mod non_finite;
mod observer;
mod output;
mod parallel;
mod profile;
mod record;
mod recorded;
mod rehearsal;
mod run;
mod scaler;
mod seed;
mod skip_log;
mod step;
mod step_trace;
#[cfg(test)]
mod tests;
mod trainer;
mod validation;

pub use observer::{Observer, RunView};
pub use parallel::loader_state;
pub use profile::{Phase, Phases, Roofline, RunProfile};
pub use qf_config::run::{
    KeepBest, MixedSet, OnNonFinite, RemoteConfig, TrainConfig, ValidationConfig, WeightsConfig,
};
pub use record::{
    MetricsFile, MetricsLine, MetricsRecord, SkippedRecord, StepRecord, ValidationRecord,
    METRICS_SCHEMA,
};
pub use rehearsal::{Rehearsal, StepMemory};
pub use scaler::LossScaler;
pub use seed::check_random_state;
pub use step_trace::{StepTrace, TraceReport};
pub use trainer::{Outcome, RunContext, RunEnd, RunFailure, Saved, Trainer};
pub use validation::Validator;
