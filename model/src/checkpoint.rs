//! Checkpoints: a folder each, under its final name only when it is whole.
//!
//! ```text
//! checkpoints/step-00000200/
//!   model.safetensors       parameters by their LAVIS names
//!   optimizer.safetensors   NAME.exp_avg, NAME.exp_avg_sq, NAME.step
//!   state.json              step, loader state, versions
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use qf_pipeline::loader::LoaderState;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
use crate::optim::AdamW;
use crate::params::LoadScope;
use crate::tensor_file::write_safetensors;
use crate::weights::read_safetensors;

/// Version of the layout above.
const CHECKPOINT_VERSION: u32 = 1;

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// What a run needs beside weights and moments to continue.
///
/// Dropout and negatives need no saved generator: each step seeds torch's from the run's seed and
/// the step's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Version of the checkpoint's layout.
    pub version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Steps done.
    pub step: u64,
    /// The next batch.
    pub loader: LoaderState,
}

impl TrainState {
    /// The state after `step` steps.
    pub fn new(step: u64, loader: LoaderState) -> Self {
        let program = concat!("qformer ", env!("CARGO_PKG_VERSION")).to_string();
        TrainState {
            version: CHECKPOINT_VERSION,
            program,
            step,
            loader,
        }
    }
}

/// The checkpoints of a run, oldest first, as (step, folder).
///
/// # Errors
/// [`ModelError::Io`] when the folder is there but cannot be listed.
pub fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, ModelError> {
    let mut found = Vec::new();
    if !checkpoints.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(checkpoints).map_err(at(checkpoints))? {
        let path = entry.map_err(at(checkpoints))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name
            .strip_prefix("step-")
            .and_then(|step| step.parse().ok())
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a checkpoint and removes all but the newest `keep`.
///
/// It is written beside its place, synced to disk and renamed: a crash leaves the ones before.
///
/// # Errors
/// [`ModelError::Io`] naming the file that could not be written.
pub fn save(
    checkpoints: &Path,
    model: &Blip2Qformer,
    optimizer: &AdamW,
    state: &TrainState,
    keep: usize,
) -> Result<PathBuf, ModelError> {
    fs::create_dir_all(checkpoints).map_err(at(checkpoints))?;
    let name = format!("step-{:08}", state.step);
    let partial = checkpoints.join(format!(".{name}.partial"));
    // What an earlier process left when it was killed.
    remove_folder(&partial)?;
    if let Err(error) = write_files(&partial, model, optimizer, state) {
        // The first error counts: on a full disk this makes room for those who try again.
        let _ = remove_folder(&partial);
        return Err(error);
    }
    let target = checkpoints.join(name);
    remove_folder(&target)?;
    fs::rename(&partial, &target).map_err(at(&target))?;
    sync(checkpoints)?;
    let all = list(checkpoints)?;
    for (_, old) in all.iter().rev().skip(keep.max(1)) {
        fs::remove_dir_all(old).map_err(at(old))?;
    }
    Ok(target)
}

/// Writes a new folder and syncs it to disk.
fn write_files(
    folder: &Path,
    model: &Blip2Qformer,
    optimizer: &AdamW,
    state: &TrainState,
) -> Result<(), ModelError> {
    fs::create_dir(folder).map_err(at(folder))?;
    let params = model.params().named_parameters();
    let params: Vec<(String, Tensor)> = params
        .iter()
        .map(|param| (param.name.clone(), param.tensor.shallow_clone()))
        .collect();
    write_safetensors(&folder.join(MODEL_FILE), &params)?;
    write_safetensors(&folder.join(OPTIMIZER_FILE), &optimizer.state())?;
    let state_path = folder.join(STATE_FILE);
    let text = serde_json::to_string_pretty(state)
        .map_err(|error| at(&state_path)(std::io::Error::other(error)))?;
    fs::write(&state_path, text).map_err(at(&state_path))?;
    for file in [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE] {
        sync(&folder.join(file))?;
    }
    sync(folder)
}

/// Removes a folder, if it is there.
fn remove_folder(folder: &Path) -> Result<(), ModelError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(folder)(error)),
        _ => Ok(()),
    }
}

/// Reads the state of a checkpoint folder.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::TensorFile`] naming the file.
pub fn read_state(checkpoint: &Path) -> Result<TrainState, ModelError> {
    let path = checkpoint.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    let unusable = |message: String| ModelError::TensorFile {
        path: path.clone(),
        message,
    };
    let state: TrainState = serde_json::from_str(&text)
        .map_err(|error| unusable(format!("no state of a checkpoint: {error}")))?;
    if state.version != CHECKPOINT_VERSION {
        return Err(unusable(format!(
            "checkpoint version {}, this program reads version {CHECKPOINT_VERSION}",
            state.version
        )));
    }
    Ok(state)
}

/// Loads the weights of a checkpoint folder.
///
/// # Errors
/// [`ModelError::Mismatch`] listing every tensor that does not fit, [`ModelError::Io`],
/// [`ModelError::TensorFile`].
pub fn load_model(checkpoint: &Path, model: &mut Blip2Qformer) -> Result<(), ModelError> {
    let (origin, tensors) = tensors(checkpoint, MODEL_FILE)?;
    model.params_mut().load(&tensors, &origin, LoadScope::All)
}

/// Loads the optimiser of a checkpoint folder.
///
/// # Errors
/// As [`load_model`].
pub fn load_optimizer(checkpoint: &Path, optimizer: &mut AdamW) -> Result<(), ModelError> {
    let (origin, tensors) = tensors(checkpoint, OPTIMIZER_FILE)?;
    optimizer.load_state(&tensors, &origin)
}

fn tensors(checkpoint: &Path, file: &str) -> Result<(String, HashMap<String, Tensor>), ModelError> {
    let path = checkpoint.join(file);
    Ok((path.display().to_string(), read_safetensors(&path)?))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Io {
        path: path.to_owned(),
        source,
    }
}

fn sync(path: &Path) -> Result<(), ModelError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at(path))
}
