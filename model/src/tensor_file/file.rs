//! Named tensors in files, read one at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qf_pipeline::hex::hex;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::contents::{io_error, join, Contents, Entry, ReadError};
use super::{index, pickle, safetensors};
use crate::error::ModelError;

/// One file: opened, its table of contents read.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
}

/// The tensors of a file, or of the shards of a model, by name.
///
/// Only the tables of contents are held; a tensor is read when it is asked for.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    sources: Vec<Source>,
    entries: BTreeMap<String, (usize, Entry)>,
    others: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
    taken_off: Vec<String>,
}

/// A file that weights came from, for the record of a run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Where it was.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its contents, hexadecimal.
    pub sha256: String,
}

impl WeightsFile {
    /// Opens a safetensors file, a file of `torch.save`, or an index of shards, with the names as they
    /// stand in the file. [`WeightsFile::open`] takes folders, too.
    ///
    /// # Errors
    /// As [`WeightsFile::open`].
    pub fn open_file(path: &Path) -> Result<WeightsFile, ModelError> {
        let main = path.to_owned();
        let parts = if main
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            index::read(&main)?
        } else {
            vec![(main.clone(), None)]
        };
        let mut weights = WeightsFile {
            path: main,
            sources: Vec::new(),
            entries: BTreeMap::new(),
            others: BTreeMap::new(),
            metadata: BTreeMap::new(),
            taken_off: Vec::new(),
        };
        for (part, names) in parts {
            let (source, mut contents) = open_one(&part)?;
            if let Some(names) = names {
                index::check(&part, &names, &contents)?;
            }
            let number = weights.sources.len();
            for (name, entry) in std::mem::take(&mut contents.entries) {
                if weights.entries.contains_key(&name) {
                    let message = format!("tensor `{name}` is in an earlier shard already");
                    return Err(ModelError::TensorFile {
                        path: part,
                        message,
                    });
                }
                weights.entries.insert(name, (number, entry));
            }
            weights.others.extend(contents.others);
            join(&mut weights.metadata, contents.metadata).map_err(|message| {
                ModelError::TensorFile {
                    path: part,
                    message,
                }
            })?;
            weights.sources.push(source);
        }
        Ok(weights)
    }

    /// Calls tensors by new names, from which `taken_off` was taken off.
    pub(crate) fn rename(&mut self, names: &BTreeMap<String, String>, taken_off: Vec<String>) {
        let rename = |name: String| names.get(&name).cloned().unwrap_or(name);
        self.entries = std::mem::take(&mut self.entries)
            .into_iter()
            .map(|(name, entry)| (rename(name), entry))
            .collect();
        self.others = std::mem::take(&mut self.others)
            .into_iter()
            .map(|(name, what)| (rename(name), what))
            .collect();
        self.taken_off = taken_off;
    }

    pub(crate) fn unusable(&self, message: String) -> ModelError {
        ModelError::TensorFile {
            path: self.path.clone(),
            message,
        }
    }

    /// The file that was opened: of a folder the one within.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What wrappers (`DistributedDataParallel`, `torch.compile`, ...) had put into the tensors'
    /// names and is not in [`WeightsFile::names`], e.g. `module.`; empty where there was nothing.
    pub fn taken_off(&self) -> &[String] {
        &self.taken_off
    }

    /// What the file says of itself beside its tensors; of several shards, what the first to say it
    /// does.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape and element type of a tensor.
    pub fn info(&self, name: &str) -> Option<(&[i64], Kind)> {
        let (_, entry) = self.entries.get(name)?;
        Some((&entry.shape, entry.kind))
    }

    /// What stands among the tensors without being one, by name, with a word on what it is.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others
            .iter()
            .map(|(name, what)| (name.as_str(), what.as_str()))
    }

    /// A tensor, on the CPU, as the file has it.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a name that is not there, [`ModelError::Io`] for a file that
    /// cannot be read any more.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let Some((number, entry)) = self.entries.get(name) else {
            let message = format!("`{name}` is not in {}", self.path.display());
            return Err(ModelError::Input {
                what: "tensor",
                message,
            });
        };
        let source = &self.sources[*number];
        entry.read(&source.file).map_err(|error| match error {
            ReadError::Io(error) => ModelError::Io {
                path: source.path.clone(),
                source: error,
            },
            ReadError::Torch(error) => error.into(),
        })
    }

    /// Path, length and SHA-256 of each file; reads them whole.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub fn digests(&self) -> Result<Vec<FileDigest>, ModelError> {
        self.sources.iter().map(Source::digest).collect()
    }
}

impl Source {
    fn digest(&self) -> Result<FileDigest, ModelError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        let mut bytes = 0u64;
        loop {
            let read = self
                .file
                .read_at(&mut buffer, bytes)
                .map_err(io_error(&self.path))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            bytes += read as u64;
        }
        let hash = hash.finalize();
        Ok(FileDigest {
            path: self.path.clone(),
            bytes,
            sha256: hex(&hash),
        })
    }
}

fn open_one(path: &Path) -> Result<(Source, Contents), ModelError> {
    let file = File::open(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    let mut start = [0u8; 16];
    let read = (&file).read(&mut start).map_err(io_error(path))?;
    let start = &start[..read];
    let contents = if pickle::is_zip(start) {
        pickle::read_zip(&file)
    } else if pickle::is_legacy(start) {
        pickle::read_legacy(&file, length)
    } else {
        safetensors::read(&file, length)
    };
    let contents = contents.map_err(|message| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    })?;
    let source = Source {
        path: path.to_owned(),
        file,
    };
    Ok((source, contents))
}

/// All tensors of a file, on the CPU.
///
/// # Errors
/// As [`WeightsFile::open`]; an element type that torch has not is an error too.
pub fn read_safetensors(path: &Path) -> Result<HashMap<String, Tensor>, ModelError> {
    let file = WeightsFile::open_file(path)?;
    if let Some((name, what)) = file.others().next() {
        return Err(ModelError::TensorFile {
            path: path.to_owned(),
            message: format!("`{name}` is {what}"),
        });
    }
    let names: Vec<&str> = file.names().collect();
    let tensors = names
        .into_iter()
        .map(|name| Ok((name.to_owned(), file.tensor(name)?)));
    tensors.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn files_that_are_no_weights() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.safetensors");
        assert!(matches!(
            read_safetensors(&missing),
            Err(ModelError::Io { .. })
        ));
        let huge_header = u64::MAX.to_le_bytes();
        for bytes in [
            &b""[..],
            b"not a tensor file",
            &huge_header,
            b"PK\x03\x04",
            b"\x80\x02.",
        ] {
            let path = folder.path().join("bad.safetensors");
            std::fs::write(&path, bytes).unwrap();
            let error = read_safetensors(&path).unwrap_err();
            assert!(matches!(error, ModelError::TensorFile { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_written_by_torch_comes_back_or_is_said_to_be_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = [
            ("f", Tensor::from_slice2(&[[1.5f32, 2.0], [3.0, 4.0]])),
            ("i", Tensor::from_slice(&[1i64, 2])),
            ("s", Tensor::from(0.25f64)),
            ("h", Tensor::from_slice(&[0.5f32]).to_kind(Kind::Half)),
        ];
        Tensor::write_safetensors(&tensors, &path).unwrap();
        let read = read_safetensors(&path).unwrap();
        assert_eq!(read.len(), 4);
        for (name, tensor) in &tensors {
            assert_eq!(&read[*name], tensor, "{name}");
            assert_eq!(read[*name].kind(), tensor.kind());
        }
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(read_safetensors(&path).is_err(), "{length}");
        }
    }
}
