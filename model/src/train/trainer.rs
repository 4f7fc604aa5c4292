//! What a run changes, reads and leaves.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use qf_config::run::TrainConfig;
use qf_config::run_dir::RunDir;
use qf_pipeline::loader::LoaderState;

use super::observer::Observer;
use super::profile::RunProfile;
use super::scaler::LossScaler;
use super::step_trace::StepTrace;
use super::validation::Validator;
use crate::blip2::Blip2Qformer;
use crate::checkpoint::BestCheckpoint;
use crate::collective::Ranks;
use crate::error::ModelError;
use crate::feed::DeviceFeed;
use crate::optim::AdamW;

/// Everything that one step changes.
pub struct Trainer {
    /// The network.
    pub model: Blip2Qformer,
    /// Its optimiser.
    pub optimizer: AdamW,
    /// The loss scale, with `precision = "f16"`.
    pub scaler: Option<LossScaler>,
    /// Steps done.
    pub step: u64,
    /// The checkpoint of the best validation figure so far.
    pub best: Option<BestCheckpoint>,
}

/// What a run reads and writes beside the trainer itself.
pub struct RunContext<'a> {
    /// The resolved configuration.
    pub config: &'a TrainConfig,
    /// Where batches come from.
    pub feed: &'a mut DeviceFeed,
    /// Validation, where it is configured.
    pub validator: Option<&'a Validator>,
    /// The other processes of the run. Each calls [`Trainer::run`] with a feed, a validator and a
    /// configuration like this one's; rank 0 alone writes to the folder, except for what is kept of a
    /// broken batch.
    pub ranks: &'a dyn Ranks,
    /// The folder of the run.
    pub run_dir: &'a RunDir,
    /// Set from outside to end the run after the present step.
    pub stop: &'a Arc<AtomicBool>,
    /// Records the first steps, where that is wanted.
    pub trace: Option<StepTrace>,
    /// Watches the run, on rank 0.
    pub observer: &'a mut dyn Observer,
}

/// How a call of [`Trainer::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The stop flag was set; a checkpoint was written.
    Interrupted,
    /// The data ended before the steps did (`data.epochs`); a checkpoint was written.
    OutOfData,
}

/// What a call of [`Trainer::run`] leaves.
pub struct RunEnd {
    /// Why it ended.
    pub outcome: Outcome,
    /// Where the time went.
    pub profile: RunProfile,
    /// This rank's place in the data, after the last batch that was used; see [`loader_state`](super::loader_state).
    pub data: LoaderState,
}

/// Why a run ended before its steps were done, and what became of those that were.
#[derive(Debug)]
pub struct RunFailure {
    /// Why.
    pub error: ModelError,
    /// Steps done.
    pub step: u64,
    /// Whether they are saved.
    pub saved: Saved,
}

/// Whether a checkpoint holds all steps of a run that failed.
#[derive(Debug)]
pub enum Saved {
    /// One does.
    Yes,
    /// It made no step since it was started or resumed.
    NothingNew,
    /// None does: the weights are at fault, another rank is gone, or for this reason.
    No(Option<ModelError>),
}
