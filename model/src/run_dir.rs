//! The folder of a run: what is where.

use std::path::{Path, PathBuf};

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

    /// One JSON object per logged step.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// Throughput by stage, written at the end.
    pub fn profile(&self) -> PathBuf {
        self.0.join("profile.json")
    }

    /// Checkpoint folders.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }
}
