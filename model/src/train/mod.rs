//! The training loop, and the folder it writes to.

mod config;
mod memory;
mod non_finite;
mod output;
mod parallel;
mod profile;
mod record;
mod recorded;
mod run;
mod scaler;
mod skip_log;
mod step;
mod step_trace;
#[cfg(test)]
mod tests;
mod validation;

use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Instant;

use qf_pipeline::loader::LoaderState;
use tch::{Kind, Tensor};

pub use config::{MixedSet, RemoteConfig, TrainConfig, WeightsConfig};
pub use non_finite::OnNonFinite;
pub use parallel::loader_state;
pub use profile::{Phase, Phases, Roofline, RunProfile};
pub use record::{MetricsFile, MetricsRecord, SkippedRecord, StepRecord};
pub use scaler::LossScaler;
pub use step_trace::{StepTrace, TraceReport};
pub use validation::{KeepBest, ValidationConfig, ValidationRecord, Validator};

use crate::blip2::Blip2Qformer;
use crate::checkpoint::{BestCheckpoint, TrainState};
use crate::collective::Ranks;
use crate::error::ModelError;
use crate::feed::DeviceFeed;
use crate::optim::AdamW;
use crate::run_dir::RunDir;
use step::StepResult;

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
    /// Sees every line of metrics.jsonl, on rank 0.
    pub on_record: &'a mut dyn FnMut(&MetricsRecord),
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
    /// This rank's place in the data, after the last batch that was used; see [`loader_state`].
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

/// Checks that a run under `config` draws the random numbers that the run which wrote `state` would
/// have drawn next.
///
/// # Errors
/// [`ModelError::Config`] for another seed, or a checkpoint of a program that seeds steps otherwise.
pub fn check_random_state(state: &TrainState, config: &TrainConfig) -> Result<(), ModelError> {
    let Some(random) = state.random else {
        return Ok(());
    };
    let problem = if random.seed != config.seed {
        format!(
            "{} differs from the {} that the checkpoint was trained with",
            config.seed, random.seed
        )
    } else if random.next_step_seed != step_seed(config.seed, state.step) {
        format!(
            "the checkpoint was written by {}, which derives each step's seed otherwise",
            state.program
        )
    } else {
        return Ok(());
    };
    Err(ModelError::Config {
        setting: "seed",
        message: problem,
    })
}

/// The seed of a step's dropout and negatives: SplitMix64 of both numbers.
fn step_seed(seed: u64, step: u64) -> i64 {
    let mut mixed = seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as i64
}

fn record(
    done: &StepResult,
    losses: &Tensor,
    epoch: u64,
    [samples_read, samples_skipped]: [u64; 2],
    step: u64,
    lr: f64,
    phases: &Phases,
) -> Result<StepRecord, ModelError> {
    // In one transfer.
    let norm = done.gradient_norm.f_to_kind(losses.f_kind()?)?.f_view(1)?;
    let numbers = Tensor::f_cat(&[losses, &norm], 0)?.f_to_kind(Kind::Double)?;
    let numbers = Vec::<f64>::try_from(numbers)?;
    let [loss, loss_itc, loss_itm, loss_lm, grad_norm] = numbers[..] else {
        return Err(ModelError::Input {
            what: "losses and norm",
            message: format!("expected 5 numbers, got {}", numbers.len()),
        });
    };
    Ok(StepRecord {
        step,
        epoch,
        loss,
        loss_itc,
        loss_itm,
        loss_lm,
        grad_norm,
        lr,
        images_per_s: phases.images_per_s(),
        data_wait_share: phases.wait_share(),
        samples_read,
        samples_skipped,
    })
}

/// Seconds since `start`.
fn secs(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
