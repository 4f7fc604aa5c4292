//! Opens whatever a user names: a file, an index, a model's folder, a run's, a checkpoint's.

use std::path::{Path, PathBuf};

use qf_config::run_dir::RunDir;

use super::wrappers::{self, Unwrapped};
use crate::checkpoint;
use crate::error::ModelError;
use crate::tensor_file::WeightsFile;

/// What a folder's weights are called, the preferred first; an index names shards.
const FOLDER_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The file of weights in a folder.
fn main_file(folder: &Path) -> Result<PathBuf, ModelError> {
    // Of a run, its newest whole checkpoint.
    let newest = checkpoint::newest(&RunDir::new(folder).checkpoints())?;
    let folder = newest.map_or_else(|| folder.to_owned(), |checkpoint| checkpoint.folder);
    FOLDER_FILES
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists())
        .ok_or_else(|| ModelError::TensorFile {
            path: folder.clone(),
            message: format!("holds no weights: none of {}", FOLDER_FILES.join(", ")),
        })
}

impl WeightsFile {
    /// Opens a safetensors file, a file of `torch.save`, an index of shards, or a folder: of a
    /// Hugging Face model, of a run of ours (its newest checkpoint) or of one checkpoint.
    ///
    /// What a file is, its first bytes say, not its name. Nothing in a pickle is executed. What a
    /// wrapper put into the tensors' names (`module.`, `_orig_mod.`, ...) is
    /// [taken off](WeightsFile::taken_off).
    ///
    /// # Errors
    /// [`ModelError::Io`] for what cannot be read, [`ModelError::TensorFile`] for what is no such
    /// file or is cut short, or for shards that contradict each other.
    pub fn open(path: &Path) -> Result<WeightsFile, ModelError> {
        let main = if path.is_dir() {
            main_file(path)?
        } else {
            path.to_owned()
        };
        let mut weights = WeightsFile::open_file(&main)?;
        let others = weights.others().map(|(name, _)| name);
        let unwrapped = wrappers::unwrapped(weights.names().chain(others));
        let unwrapped = unwrapped.map_err(|message| weights.unusable(message))?;
        if let Some(Unwrapped { names, taken_off }) = unwrapped {
            weights.rename(&names, taken_off);
        }
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};
    use tch::Tensor;

    use super::*;

    #[test]
    fn folders_and_digests() {
        let dir = tempfile::tempdir().unwrap();
        let error = WeightsFile::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("none of model.safetensors"), "{error}");
        let tensor = Tensor::from_slice(&[1i64, 2]);
        let path = dir.path().join("model.safetensors");
        Tensor::write_safetensors(&[("a", &tensor)], &path).unwrap();
        let weights = WeightsFile::open(dir.path()).unwrap();
        assert_eq!(weights.path(), path);
        assert_eq!(weights.tensor("a").unwrap(), tensor);
        assert!(weights.tensor("b").is_err());
        let digests = weights.digests().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(digests[0].bytes, bytes.len() as u64);
        let expected: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(digests[0].sha256, expected);
    }
}
