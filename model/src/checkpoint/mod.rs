//! Checkpoints: a folder each, under its final name only when it is whole.
//!
//! ```text
//! checkpoints/
//!   step-00000200/
//!     model.safetensors       parameters by their LAVIS names
//!     optimizer.safetensors   NAME.exp_avg, NAME.exp_avg_sq, NAME.step
//!     state.json              step, schedule, seeds, loss scale, loader state, versions
//!     config.toml             the resolved configuration
//!     manifest.json           length and SHA-256 of each of these; written last
//!   best.json                 which step the validation figure was best at, and the figure
//! ```
//!
//! [`CheckpointWriter`] writes them beside training; [`newest`], [`best`] and [`of_step`] find one and
//! check every byte of it against the manifest.

mod files;
mod manifest;
mod snapshot;
mod write;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use qf_pipeline::loader::LoaderState;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::blip2::Blip2Qformer;
use crate::collective::Ranks;
use crate::error::ModelError;
use crate::optim::AdamW;
use crate::params::LoadScope;
use crate::tensor_file::{read_safetensors, vocabulary, WeightsFile};
use files::{
    at, damaged, is_damage, read_text, unknown_version, BEST_FILE, CHECKPOINT_VERSION,
    FIRST_VERSION, MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE,
};

pub use qf_config::run_dir::list_checkpoints as list;
pub use write::{CheckpointWriter, Retention};

/// What a run needs beside weights and moments to continue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Version of the checkpoint's layout.
    pub version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Version of the libtorch that the program was built against.
    #[serde(default)]
    pub libtorch: String,
    /// Steps done.
    pub step: u64,
    /// The next batch.
    pub loader: LoaderState,
    /// Where the learning rate stands; absent in layout 1.
    #[serde(default)]
    pub schedule: Option<SchedulePosition>,
    /// Where the random numbers stand; absent in layout 1.
    #[serde(default)]
    pub random: Option<RandomState>,
    /// The loss scale of training in 16-bit floats.
    #[serde(default)]
    pub scaler: Option<ScalerState>,
    /// The best validation figure up to this step.
    #[serde(default)]
    pub best: Option<BestCheckpoint>,
}

/// What the learning rate of the next step is computed from, beside the settings and the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulePosition {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps that count as an epoch.
    pub steps_per_epoch: u64,
}

/// Where dropout and negatives are drawn from. No generator is saved: each step seeds torch's from
/// the run's seed and the step's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomState {
    /// Seed of the run.
    pub seed: u64,
    /// What the next step seeds torch's generator with.
    pub next_step_seed: i64,
}

/// The loss scale of training in 16-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScalerState {
    /// Factor of the loss.
    pub scale: f64,
    /// Steps without overflow since it last changed.
    pub good_steps: u64,
}

/// Which checkpoint a validation figure was best at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestCheckpoint {
    /// Its step.
    pub step: u64,
    /// Name of the figure, as in `validation.keep_best`.
    pub metric: String,
    /// The figure. 32 bits, which JSON carries exactly.
    pub value: f32,
}

impl TrainState {
    /// The state after `step` steps; what a plain run has not is `None`.
    pub fn new(step: u64, loader: LoaderState) -> Self {
        TrainState {
            version: CHECKPOINT_VERSION,
            program: concat!("qformer ", env!("CARGO_PKG_VERSION")).to_string(),
            libtorch: env!("QF_LIBTORCH_VERSION").to_string(),
            step,
            loader,
            schedule: None,
            random: None,
            scaler: None,
            best: None,
        }
    }
}

/// A checkpoint whose files are all there, as they were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Where it is.
    pub folder: PathBuf,
    /// Everything of it but tensors.
    pub state: TrainState,
}

/// The newest checkpoint that is whole; `None` when there is none of any kind.
///
/// One that was cut short or altered is named in a warning, and the one before it is taken.
///
/// # Errors
/// [`ModelError::NoWholeCheckpoint`] when there are some but none is whole, [`ModelError::Io`] when
/// the folder cannot be listed or a file not be read.
pub fn newest(checkpoints: &Path) -> Result<Option<Checkpoint>, ModelError> {
    let mut problems = Vec::new();
    for (_, folder) in list(checkpoints)?.into_iter().rev() {
        match open(folder) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) if is_damage(&error) => {
                log::warn!("{error}; the checkpoint before it is used instead");
                problems.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    if problems.is_empty() {
        return Ok(None);
    }
    Err(ModelError::NoWholeCheckpoint {
        checkpoints: checkpoints.to_owned(),
        problems,
    })
}

/// The checkpoint of this step; `None` when there is none.
///
/// # Errors
/// As [`open`].
pub fn of_step(checkpoints: &Path, step: u64) -> Result<Option<Checkpoint>, ModelError> {
    let mut all = list(checkpoints)?.into_iter();
    match all.find(|(found, _)| *found == step) {
        Some((_, folder)) => open(folder).map(Some),
        None => Ok(None),
    }
}

/// Whether the checkpoint of this step is there and whole; one that is damaged is named in a
/// warning.
///
/// # Errors
/// [`ModelError::Io`] when the folder cannot be listed or a file not be read.
pub fn is_whole(checkpoints: &Path, step: u64) -> Result<bool, ModelError> {
    match of_step(checkpoints, step) {
        Ok(found) => Ok(found.is_some()),
        Err(error) if is_damage(&error) => {
            log::warn!("{error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The checkpoint that `best.json` names; `None` when there is no such file, or no such checkpoint
/// any more.
///
/// # Errors
/// As [`open`], and [`ModelError::TensorFile`] for a `best.json` that is none.
pub fn best(checkpoints: &Path) -> Result<Option<Checkpoint>, ModelError> {
    let path = checkpoints.join(BEST_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(&path)(error)),
    };
    let best: BestCheckpoint = serde_json::from_str(&text)
        .map_err(|error| damaged(&path, format!("names no checkpoint: {error}")))?;
    of_step(checkpoints, best.step)
}

/// Checks every file of a checkpoint folder against its manifest and reads its state. Of layout 1,
/// which has no manifest, the files are parsed.
///
/// # Errors
/// [`ModelError::TensorFile`] naming the file that is missing, cut short or altered;
/// [`ModelError::Io`] for one that cannot be read.
pub fn open(folder: PathBuf) -> Result<Checkpoint, ModelError> {
    if !folder.join(MANIFEST_FILE).exists() {
        let state = read_state(&folder)?;
        if state.version != FIRST_VERSION {
            let message = "is missing: the checkpoint was not finished".to_string();
            return Err(damaged(&folder.join(MANIFEST_FILE), message));
        }
        for file in [MODEL_FILE, OPTIMIZER_FILE] {
            read_tensors(&folder, file)?;
        }
        return Ok(Checkpoint { folder, state });
    }
    let step = manifest::verify(&folder)?;
    let state = read_state(&folder)?;
    if state.step != step {
        let message = format!("is of step {}, the manifest of step {step}", state.step);
        return Err(damaged(&folder.join(STATE_FILE), message));
    }
    Ok(Checkpoint { folder, state })
}

/// Reads the state of a checkpoint folder.
fn read_state(folder: &Path) -> Result<TrainState, ModelError> {
    let path = folder.join(STATE_FILE);
    let text = read_text(&path)?;
    let state: TrainState = serde_json::from_str(&text)
        .map_err(|error| damaged(&path, format!("no state of a checkpoint: {error}")))?;
    if !(FIRST_VERSION..=CHECKPOINT_VERSION).contains(&state.version) {
        return Err(damaged(&path, unknown_version(state.version)));
    }
    Ok(state)
}

/// Loads the weights of a checkpoint folder. The vocabulary of the model's tokenizer has to be the one
/// that they were trained with, where the checkpoint says which (those of older versions do not).
///
/// # Errors
/// [`ModelError::Vocabulary`] for another vocabulary, [`ModelError::Mismatch`] listing every tensor
/// that does not fit, [`ModelError::Io`], [`ModelError::TensorFile`].
pub fn load_model(checkpoint: &Path, model: &mut Blip2Qformer) -> Result<(), ModelError> {
    let path = checkpoint.join(MODEL_FILE);
    if path.exists() {
        vocabulary::check(&WeightsFile::open_file(&path)?, &model.config().qformer)?;
    }
    let (origin, tensors) = read_tensors(checkpoint, MODEL_FILE)?;
    model.params_mut().load(&tensors, &origin, LoadScope::All)
}

/// Replaces the trained parameters by their moving averages in a checkpoint folder.
///
/// # Errors
/// [`ModelError::Input`] when the run kept none (`optimizer.ema_decay`), else as [`load_model`].
pub fn load_averages(checkpoint: &Path, model: &mut Blip2Qformer) -> Result<(), ModelError> {
    let (origin, tensors) = read_tensors(checkpoint, OPTIMIZER_FILE)?;
    let mut averages = HashMap::new();
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_suffix(".ema") {
            averages.insert(name.to_owned(), tensor);
        }
    }
    if averages.is_empty() {
        return Err(ModelError::Input {
            what: "moving averages",
            message: format!("{origin} holds none; train with --set optimizer.ema_decay=0.9999"),
        });
    }
    for param in model.params().named_parameters() {
        // What was frozen in the run has no average and stays.
        if !averages.contains_key(&param.name) {
            averages.insert(param.name.clone(), param.tensor.f_detach()?);
        }
    }
    model.params_mut().load(&averages, &origin, LoadScope::All)
}

/// Loads the optimiser of a checkpoint folder.
///
/// # Errors
/// As [`load_model`].
pub fn load_optimizer(checkpoint: &Path, optimizer: &mut AdamW) -> Result<(), ModelError> {
    let (origin, tensors) = read_tensors(checkpoint, OPTIMIZER_FILE)?;
    optimizer.load_state(&tensors, &origin)
}

/// [`load_optimizer`] on every rank, from a folder that rank 0 alone reads; the others give none. Of
/// an optimiser whose state is spread over the ranks, each receives its part. There may have been any
/// number of ranks when it was written, sharing its state or not.
///
/// # Errors
/// As [`load_optimizer`] on rank 0; [`ModelError::RankLost`] when a rank cannot be reached.
pub fn load_optimizer_on_ranks(
    checkpoint: Option<&Path>,
    optimizer: &mut AdamW,
    ranks: &dyn Ranks,
) -> Result<(), ModelError> {
    let read = checkpoint.map(|folder| read_tensors(folder, OPTIMIZER_FILE));
    let read = read.transpose()?;
    let state = read.as_ref().map(|(origin, all)| (all, origin.as_str()));
    optimizer.load_shared_state(state, ranks)
}

fn read_tensors(
    checkpoint: &Path,
    file: &str,
) -> Result<(String, HashMap<String, Tensor>), ModelError> {
    let path = checkpoint.join(file);
    match read_safetensors(&path) {
        Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(damaged(&path, "is missing".to_string()))
        }
        read => Ok((path.display().to_string(), read?)),
    }
}
