//! Writes checkpoints on a thread of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Instant;

use tch::{Device, Tensor};

use super::files::{
    at, sync, BEST_FILE, CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE,
};
use super::snapshot::Snapshot;
use super::{list, manifest, BestCheckpoint, TrainState};
use crate::accelerator::OwnStream;
use crate::blip2::Blip2Qformer;
use crate::collective::Ranks;
use crate::error::ModelError;
use crate::optim::AdamW;
use crate::tensor_file::vocabulary;
use crate::tensor_file::{write_safetensors, Metadata};

/// Ending of a folder that is being written.
const PARTIAL: &str = ".partial";

/// Ending of a damaged folder that is making room for its successor.
const OLD: &str = ".old";

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many, at least one. The best one stays besides.
    pub newest: usize,
}

/// Writes checkpoints while training goes on.
///
/// [`save`](Self::save) copies weights and moments into host memory and returns; the thread then
/// serialises, digests, syncs and renames. There is one copy: a save that comes while the one before
/// it is still being written waits for that. What goes wrong on the thread comes back from the next
/// call of [`poll`](Self::poll), [`save`](Self::save) or [`wait`](Self::wait).
pub struct CheckpointWriter {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    /// The copy, while it is not with the thread.
    snapshot: Option<Snapshot>,
}

/// Gives this thread, which copies frozen parameters, a stream beside that of training, which would
/// otherwise wait for those copies.
fn enter_stream(stream: &mut Option<OwnStream>, device: Option<Device>) {
    if let (None, Some(device)) = (&stream, device) {
        match OwnStream::enter(device) {
            Ok(own) => *stream = Some(own),
            Err(error) => log::warn!("checkpoints share the stream of training: {error}"),
        }
    }
}

struct Job {
    snapshot: Snapshot,
    /// Of the file of weights: which vocabulary they belong to.
    metadata: Metadata,
    state: TrainState,
    config: String,
    logs: Vec<File>,
}

type Done = (Snapshot, Result<(), ModelError>);

impl CheckpointWriter {
    /// Starts the thread; `checkpoints` is the folder of the run's checkpoints, which no other
    /// process may write to. What a killed process left half-written there is removed.
    ///
    /// # Errors
    /// [`ModelError::CheckpointWriter`] when no thread can be started, [`ModelError::Io`] when what
    /// was left cannot be removed.
    pub fn start(checkpoints: PathBuf, retention: Retention) -> Result<Self, ModelError> {
        remove_leftovers(&checkpoints)?;
        let (jobs, job_receiver) = std::sync::mpsc::sync_channel::<Job>(1);
        let (done_sender, done) = std::sync::mpsc::sync_channel::<Done>(1);
        let thread = std::thread::Builder::new()
            .name("qf-checkpoint".into())
            .spawn(move || {
                let mut stream = None;
                for job in job_receiver {
                    enter_stream(&mut stream, job.snapshot.device());
                    let result = write(&checkpoints, &job, retention);
                    if done_sender.send((job.snapshot, result)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| ModelError::CheckpointWriter(format!("cannot start: {error}")))?;
        Ok(CheckpointWriter {
            jobs: Some(jobs),
            done,
            thread: Some(thread),
            snapshot: Some(Snapshot::default()),
        })
    }

    /// Takes over a copy of weights and moments and begins to write them with `state` and `config`
    /// (TOML). When `state.best` is of this very step, `best.json` will name it. `logs` are synced
    /// to disk before the checkpoint appears, so that no logged step before it can be lost. Of an
    /// optimiser whose state is spread over `ranks`, this rank receives the rest in host memory: the
    /// others are to call [`AdamW::send_state`] meanwhile.
    ///
    /// # Errors
    /// What went wrong with the save before this one; [`ModelError::Torch`] when there is no memory
    /// for the copy; [`ModelError::RankLost`] when a rank that keeps some of the state cannot be
    /// reached.
    pub fn save(
        &mut self,
        model: &Blip2Qformer,
        optimizer: &AdamW,
        ranks: &dyn Ranks,
        state: TrainState,
        config: String,
        logs: Vec<File>,
    ) -> Result<(), ModelError> {
        let started = Instant::now();
        let waits = self.snapshot.is_none();
        self.wait()?;
        if waits {
            log::info!(
                "the checkpoint of step {} waited {:.1} s for the one before it to be written",
                state.step,
                started.elapsed().as_secs_f64()
            );
        }
        let mut snapshot = self.snapshot.take().ok_or_else(died)?;
        snapshot.take(model, optimizer, ranks)?;
        let job = Job {
            snapshot,
            metadata: vocabulary::metadata(&model.config().qformer),
            state,
            config,
            logs,
        };
        let jobs = self.jobs.as_ref().ok_or_else(died)?;
        jobs.send(job).map_err(|_| died())
    }

    /// Reports what went wrong so far, without waiting.
    ///
    /// # Errors
    /// That of a save; [`ModelError::CheckpointWriter`] when the thread died.
    pub fn poll(&mut self) -> Result<(), ModelError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        match self.done.try_recv() {
            Ok(done) => self.take_back(done),
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(died()),
        }
    }

    /// Waits until the last save is on disk.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn wait(&mut self) -> Result<(), ModelError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        let done = self.done.recv().map_err(|_| died())?;
        self.take_back(done)
    }

    fn take_back(&mut self, (snapshot, result): Done) -> Result<(), ModelError> {
        self.snapshot = Some(snapshot);
        result
    }
}

impl Drop for CheckpointWriter {
    /// Lets a save that is under way end: training stopped for another reason, which is reported
    /// where it arose, so what goes wrong here is logged.
    fn drop(&mut self) {
        if self.thread.is_some() {
            if let Err(error) = self.wait() {
                log::error!("the last checkpoint was not written: {error}");
            }
        }
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // That it panicked was reported by the closed channel.
            let _ = thread.join();
        }
    }
}

fn died() -> ModelError {
    ModelError::CheckpointWriter("its thread died; this is a bug".into())
}

/// Writes one checkpoint beside its place, syncs it to disk, renames it, and removes those that
/// are no longer kept. A crash at any moment leaves the ones before it.
fn write(checkpoints: &Path, job: &Job, retention: Retention) -> Result<(), ModelError> {
    let state = &job.state;
    if let Some(name) = job.snapshot.first_non_finite()? {
        return Err(ModelError::NonFiniteWeights {
            step: state.step,
            name: name.to_string(),
        });
    }
    fs::create_dir_all(checkpoints).map_err(at(checkpoints))?;
    let name = format!("step-{:08}", state.step);
    let partial = checkpoints.join(format!(".{name}{PARTIAL}"));
    remove_folder(&partial)?;
    if let Err(error) = write_files(&partial, job) {
        // The first error counts: on a full disk this makes room for those who try again.
        let _ = remove_folder(&partial);
        return Err(error);
    }
    for log in &job.logs {
        log.sync_data().map_err(at(checkpoints))?;
    }
    let target = checkpoints.join(&name);
    // A folder of this name is one that resumption found damaged and passed over.
    let old = checkpoints.join(format!(".{name}{OLD}"));
    remove_folder(&old)?;
    if target.exists() {
        fs::rename(&target, &old).map_err(at(&target))?;
    }
    fs::rename(&partial, &target).map_err(at(&target))?;
    sync(checkpoints)?;
    remove_folder(&old)?;
    if let Some(best) = state.best.as_ref().filter(|best| best.step == state.step) {
        write_best(checkpoints, best)?;
    }
    prune(checkpoints, state, retention)
}

/// Writes a new folder and syncs it to disk; the manifest comes last.
fn write_files(folder: &Path, job: &Job) -> Result<(), ModelError> {
    fs::create_dir(folder).map_err(at(folder))?;
    let write_tensors = |file: &str, tensors: &[(String, Tensor)], metadata: &Metadata| {
        write_safetensors(&folder.join(file), tensors, metadata)
    };
    write_tensors(MODEL_FILE, &job.snapshot.model, &job.metadata)?;
    write_tensors(OPTIMIZER_FILE, &job.snapshot.optimizer, &Metadata::new())?;
    let write_text = |file: &str, text: &str| {
        let path = folder.join(file);
        fs::write(&path, text).map_err(at(&path))
    };
    write_text(STATE_FILE, &to_json(&job.state, folder)?)?;
    write_text(CONFIG_FILE, &job.config)?;
    write_text(MANIFEST_FILE, &manifest::describe(folder, job.state.step)?)?;
    for file in [
        MODEL_FILE,
        OPTIMIZER_FILE,
        STATE_FILE,
        CONFIG_FILE,
        MANIFEST_FILE,
    ] {
        sync(&folder.join(file))?;
    }
    sync(folder)
}

fn write_best(checkpoints: &Path, best: &BestCheckpoint) -> Result<(), ModelError> {
    use std::io::Write;
    let path = checkpoints.join(BEST_FILE);
    let text = to_json(best, &path)?;
    let mut file = qf_pipeline::atomic_file::AtomicFile::create(&path)?;
    file.write_all(text.as_bytes()).map_err(at(&path))?;
    Ok(file.commit()?)
}

fn to_json(value: &impl serde::Serialize, path: &Path) -> Result<String, ModelError> {
    serde_json::to_string_pretty(value).map_err(|error| at(path)(std::io::Error::other(error)))
}

/// Removes all but the newest checkpoints up to this step and the best one. Later ones are from
/// before a resumption that passed them over because they were damaged: this run makes them again.
fn prune(checkpoints: &Path, state: &TrainState, retention: Retention) -> Result<(), ModelError> {
    let best = state.best.as_ref().map(|best| best.step);
    let all = list(checkpoints)?;
    let (earlier, later): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(step, _)| *step <= state.step);
    let outdated = earlier.iter().rev().skip(retention.newest.max(1));
    for (step, folder) in outdated.chain(&later) {
        if Some(*step) != best {
            fs::remove_dir_all(folder).map_err(at(folder))?;
        }
    }
    Ok(())
}

/// Removes the hidden folders of saves that were never finished.
fn remove_leftovers(checkpoints: &Path) -> Result<(), ModelError> {
    if !checkpoints.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(checkpoints).map_err(at(checkpoints))? {
        let path = entry.map_err(at(checkpoints))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours = name.starts_with(".step-");
        if is_ours && (name.ends_with(PARTIAL) || name.ends_with(OLD)) {
            remove_folder(&path)?;
        }
    }
    Ok(())
}

/// Removes a folder, if it is there.
fn remove_folder(folder: &Path) -> Result<(), ModelError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(folder)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
