//! Reading and syncing the files of a checkpoint, and what is wrong with them.

use std::fs::{self, File};
use std::path::Path;

use crate::error::ModelError;

/// Reads a small text file; a missing one, or one that is no text, is damage.
pub(super) fn read_text(path: &Path) -> Result<String, ModelError> {
    /// No state or manifest comes near.
    const MAX_BYTES: u64 = 16 << 20;
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            let message = format!("is {} bytes long, more than any such file", metadata.len());
            return Err(damaged(path, message));
        }
        _ => {}
    }
    match fs::read(path) {
        Ok(bytes) => {
            String::from_utf8(bytes).map_err(|_| damaged(path, "is not UTF-8".to_string()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(damaged(path, "is missing".to_string()))
        }
        Err(error) => Err(at(path)(error)),
    }
}

pub(super) fn damaged(path: &Path, message: String) -> ModelError {
    ModelError::TensorFile {
        path: path.to_owned(),
        message,
    }
}

pub(super) fn is_damage(error: &ModelError) -> bool {
    matches!(error, ModelError::TensorFile { .. })
}

pub(super) fn at(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Makes a file, or the names in a folder, survive a power cut.
pub(super) fn sync(path: &Path) -> Result<(), ModelError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at(path))
}

/// Version of the layout above.
pub(super) const CHECKPOINT_VERSION: u32 = 2;

/// The first layout: weights, moments, and a `state.json` of step and loader; no manifest.
pub(super) const FIRST_VERSION: u32 = 1;

pub(super) const MODEL_FILE: &str = "model.safetensors";

pub(super) const OPTIMIZER_FILE: &str = "optimizer.safetensors";

pub(super) const STATE_FILE: &str = "state.json";

pub(super) const CONFIG_FILE: &str = "config.toml";

pub(super) const MANIFEST_FILE: &str = "manifest.json";

pub(super) const BEST_FILE: &str = "best.json";

pub(super) fn unknown_version(version: u32) -> String {
    format!("checkpoint version {version}, this program reads up to version {CHECKPOINT_VERSION}")
}
