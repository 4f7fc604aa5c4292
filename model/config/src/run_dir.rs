//! The folder of a run: what is where.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use qf_pipeline::atomic_file::open_in_place;

use crate::error::ConfigError;

/// What a process holds that trains in a run folder.
const LOCK: &str = ".lock";

/// Paths in a run folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run folder at `path`; nothing is created.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RunDir(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// The vocabulary, one entry a line, unless the tokenizer is a `tokenizer.json`.
    pub fn vocabulary(&self) -> PathBuf {
        self.0.join("vocab.txt")
    }

    /// A copy of the `tokenizer.json` in use, where one was given.
    pub fn tokenizer_json(&self) -> PathBuf {
        self.0.join("tokenizer.json")
    }

    /// Origin and SHA-256 of the weights that the run started from, where it did.
    pub fn weights(&self) -> PathBuf {
        self.0.join("weights.json")
    }

    /// One JSON object per line: logged steps, validations, skipped updates.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// One JSON object per line: each bad sample once, with the reason.
    pub fn skipped(&self) -> PathBuf {
        self.0.join("skipped.jsonl")
    }

    /// Throughput by stage, written at the end.
    pub fn profile(&self) -> PathBuf {
        self.0.join("profile.json")
    }

    /// Everything that the program said, with times.
    pub fn log(&self) -> PathBuf {
        self.0.join("train.log")
    }

    /// The folder of TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.0.join("tensorboard")
    }

    /// What the model makes of some held-out images.
    pub fn gallery(&self) -> PathBuf {
        self.0.join("gallery.json")
    }

    /// The report: one page.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
    }

    /// Trace of a rank's first steps.
    pub fn trace(&self, rank: i64) -> PathBuf {
        self.0.join(match rank {
            0 => "trace.json".to_string(),
            rank => format!("trace-rank-{rank}.json"),
        })
    }

    /// Checkpoint folders.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Batches on which a loss or gradient was not finite, a folder each.
    pub fn non_finite(&self) -> PathBuf {
        self.0.join("non-finite")
    }

    /// Whether anything was trained here: a checkpoint or a logged step. The files of a start that
    /// failed before its first step do not count.
    ///
    /// # Errors
    /// [`ConfigError::Io`] when the checkpoints cannot be listed.
    pub fn holds_run(&self) -> Result<bool, ConfigError> {
        let has_metrics = fs::metadata(self.metrics()).is_ok_and(|metrics| metrics.len() > 0);
        Ok(has_metrics || !list_checkpoints(&self.checkpoints())?.is_empty())
    }

    /// Removes the files of a start that trained nothing, its claim included; returns whether nothing
    /// else is there. What a step left stays, with everything beside it.
    pub fn remove_start(&self) -> bool {
        let start = [
            self.0.join(LOCK),
            self.config(),
            self.vocabulary(),
            self.tokenizer_json(),
            self.weights(),
            self.metrics(),
            self.log(),
        ];
        let Ok(entries) = fs::read_dir(&self.0) else {
            return false;
        };
        let is_of_start = |path: &Path| {
            let is_empty = || fs::metadata(path).is_ok_and(|file| file.len() == 0);
            start.iter().any(|of_start| of_start == path) && (path != self.metrics() || is_empty())
        };
        let all_of_start = (entries.map(|entry| entry.map(|entry| entry.path())))
            .all(|path| path.is_ok_and(|path| is_of_start(&path)));
        if all_of_start {
            for path in start {
                // One that cannot be removed keeps its folder there, too.
                let _ = fs::remove_file(path);
            }
        }
        all_of_start
    }

    /// Claims the folder, which must exist, for this process until the result is dropped. The
    /// operating system gives it up when the process ends in any way. A file system without locks
    /// lets everyone in.
    ///
    /// # Errors
    /// [`ConfigError::InUse`] when another process has it, [`ConfigError::Io`] when the folder cannot
    /// be written to.
    pub fn lock(&self) -> Result<RunLock, ConfigError> {
        let path = self.0.join(LOCK);
        let mut options = File::options();
        let file = open_in_place(&path, options.create(true).truncate(false).write(true))
            .map_err(|source| ConfigError::Io { path, source })?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(ConfigError::InUse(self.0.clone())),
            Err(TryLockError::Error(error)) => {
                log::warn!("cannot lock {} ({error})", self.0.display());
            }
            Ok(()) => {}
        }
        Ok(RunLock { _file: file })
    }
}

/// A claim on a run folder; see [`RunDir::lock`].
#[derive(Debug)]
#[must_use = "dropping it gives the folder up"]
pub struct RunLock {
    _file: File,
}

/// The folders under the names of checkpoints, oldest first, as (step, folder). They are not
/// looked into.
///
/// # Errors
/// [`ConfigError::Io`] when the folder is there but cannot be listed.
pub fn list_checkpoints(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, ConfigError> {
    let at = |source| ConfigError::Io {
        path: checkpoints.to_owned(),
        source,
    };
    let mut found = Vec::new();
    if !checkpoints.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(checkpoints).map_err(at)? {
        let path = entry.map_err(at)?.path();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_and_only_a_trained_step_makes_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        let lock = run_dir.lock().unwrap();
        let message = run_dir.lock().unwrap_err().to_string();
        assert!(message.contains("another process"), "{message}");
        drop(lock);
        drop(run_dir.lock().unwrap());

        fs::write(run_dir.config(), "").unwrap();
        fs::write(run_dir.metrics(), "").unwrap();
        assert!(!run_dir.holds_run().unwrap());
        fs::create_dir_all(run_dir.checkpoints().join(".step-00000001.partial")).unwrap();
        assert!(!run_dir.holds_run().unwrap());
        fs::create_dir(run_dir.checkpoints().join("step-00000001")).unwrap();
        assert!(run_dir.holds_run().unwrap());
        fs::remove_dir_all(run_dir.checkpoints()).unwrap();
        fs::write(run_dir.metrics(), "{}\n").unwrap();
        assert!(run_dir.holds_run().unwrap());
        assert!(RunDir::new(folder.path().join("none")).lock().is_err());
    }

    #[test]
    fn a_start_that_trained_nothing_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let start = || {
            let lock = run_dir.lock().unwrap();
            for path in [run_dir.config(), run_dir.vocabulary(), run_dir.metrics()] {
                fs::write(path, "").unwrap();
            }
            lock
        };
        let lock = start();
        assert!(run_dir.remove_start());
        assert_eq!(names(), 0);
        drop(lock);
        for kept in [run_dir.metrics(), run_dir.skipped(), run_dir.checkpoints()] {
            drop(start());
            fs::write(&kept, "{}\n").unwrap();
            assert!(!run_dir.remove_start(), "{}", kept.display());
            assert!(names() >= 4);
            fs::remove_file(kept).unwrap();
            assert!(run_dir.remove_start());
        }
    }
}
