//! Named tensors in files, read one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::wrappers::{self, Unwrapped};
use super::{index, pickle, safetensors, vocabulary};
use crate::checkpoint;
use crate::error::ModelError;
use crate::run_dir::RunDir;

/// What a folder's weights are called, the preferred first; an index names shards.
const FOLDER_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Where the numbers of a tensor lie.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) shape: Vec<i64>,
    /// Elements from one index to the next, by dimension.
    pub(super) strides: Vec<i64>,
    /// First byte of the first element, from the start of the file.
    pub(super) offset: u64,
}

impl Entry {
    /// An entry whose elements lie in `available` bytes from `offset` on; says what is wrong.
    pub(super) fn checked(
        kind: Kind,
        shape: Vec<i64>,
        strides: Vec<i64>,
        offset: u64,
        available: u64,
    ) -> Result<Entry, String> {
        let entry = Entry {
            kind,
            shape,
            strides,
            offset,
        };
        let unfit = || {
            let Entry { shape, strides, .. } = &entry;
            format!(
                "{kind:?} of shape {shape:?} and strides {strides:?} does not lie in {available} bytes"
            )
        };
        let size = kind.elt_size_in_bytes() as u64;
        let room = available / size.max(1);
        let (elements, span) = entry.extent().ok_or_else(unfit)?;
        // An expanded tensor has more elements than numbers: a short file could ask for any memory.
        if elements > room || span > room {
            return Err(unfit());
        }
        Ok(entry)
    }

    /// Elements, and elements from the first to the last in the file.
    fn extent(&self) -> Option<(u64, u64)> {
        if self.shape.len() != self.strides.len() {
            return None;
        }
        let (mut elements, mut last) = (1u64, 0u64);
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let (size, stride) = (u64::try_from(size).ok()?, u64::try_from(stride).ok()?);
            elements = elements.checked_mul(size)?;
            last = last.checked_add(size.saturating_sub(1).checked_mul(stride)?)?;
        }
        match elements {
            0 => Some((0, 0)),
            _ => Some((elements, last.checked_add(1)?)),
        }
    }

    fn read(&self, file: &File) -> Result<Tensor, ReadError> {
        let span = self.extent().map_or(0, |(_, span)| span) as usize;
        // Checked against the file's length when the entry was made.
        let mut bytes = vec![0u8; span * self.kind.elt_size_in_bytes()];
        file.read_exact_at(&mut bytes, self.offset)
            .map_err(ReadError::Io)?;
        let flat = Tensor::f_from_data_size(&bytes, &[span as i64], self.kind)?;
        let strided = if span == 0 {
            flat.f_reshape(&self.shape)
        } else {
            flat.f_as_strided(&self.shape, &self.strides, None)
        };
        Ok(strided?.f_contiguous()?)
    }
}

enum ReadError {
    Io(std::io::Error),
    Torch(tch::TchError),
}

impl From<tch::TchError> for ReadError {
    fn from(error: tch::TchError) -> Self {
        ReadError::Torch(error)
    }
}

/// The strides of a tensor whose elements follow one another.
pub(super) fn contiguous(shape: &[i64]) -> Vec<i64> {
    let mut stride = 1i64;
    let mut strides: Vec<i64> = shape
        .iter()
        .rev()
        .map(|&size| {
            let own = stride;
            stride = stride.saturating_mul(size.max(1));
            own
        })
        .collect();
    strides.reverse();
    strides
}

/// What one file holds.
pub(super) struct Contents {
    pub(super) entries: BTreeMap<String, Entry>,
    /// What stands among the tensors and is none, with a word on what it is.
    pub(super) others: BTreeMap<String, String>,
    /// What the file says of itself; safetensors alone do.
    pub(super) metadata: BTreeMap<String, String>,
}

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
        let mut weights = WeightsFile::open_as_it_is(path)?;
        let names = weights.entries.keys().chain(weights.others.keys());
        let unwrapped = wrappers::unwrapped(names.map(String::as_str));
        let unwrapped = unwrapped.map_err(|message| weights.unusable(message))?;
        let Some(Unwrapped { names, taken_off }) = unwrapped else {
            return Ok(weights);
        };
        let rename = |name: String| names.get(&name).cloned().unwrap_or(name);
        weights.entries = std::mem::take(&mut weights.entries)
            .into_iter()
            .map(|(name, entry)| (rename(name), entry))
            .collect();
        weights.others = std::mem::take(&mut weights.others)
            .into_iter()
            .map(|(name, what)| (rename(name), what))
            .collect();
        weights.taken_off = taken_off;
        Ok(weights)
    }

    /// As [`WeightsFile::open`], with the names as they stand in the file.
    pub(super) fn open_as_it_is(path: &Path) -> Result<WeightsFile, ModelError> {
        let main = if path.is_dir() {
            main_file(path)?
        } else {
            path.to_owned()
        };
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
            vocabulary::join(&mut weights.metadata, contents.metadata).map_err(|message| {
                ModelError::TensorFile {
                    path: part,
                    message,
                }
            })?;
            weights.sources.push(source);
        }
        Ok(weights)
    }

    fn unusable(&self, message: String) -> ModelError {
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
            sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

pub(super) fn io_error(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Io {
        path: path.to_owned(),
        source,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_within_their_file() {
        let check = |shape: &[i64], strides: &[i64], available: u64| {
            Entry::checked(Kind::Float, shape.to_vec(), strides.to_vec(), 8, available).is_ok()
        };
        assert!(check(&[2, 3], &[3, 1], 24));
        assert!(!check(&[2, 3], &[3, 1], 23));
        assert!(check(&[2, 3], &[1, 2], 24));
        assert!(check(&[], &[], 4));
        assert!(!check(&[], &[], 3));
        assert!(check(&[0, 3], &[3, 1], 0));
        // Windows that overlap have more elements than numbers, up to any number of them.
        assert!(!check(&[1 << 40], &[0], 1024));
        assert!(!check(&[1 << 40, 1 << 40], &[0, 0], u64::MAX));
        assert!(!check(&[2, 2], &[i64::MAX, 1], u64::MAX));
        assert!(!check(&[-1], &[1], 1024));
        assert!(!check(&[1], &[-1], 1024));
        assert!(!check(&[1], &[], 1024));
    }

    #[test]
    fn contiguous_strides() {
        assert_eq!(contiguous(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(contiguous(&[2, 0, 4]), [4, 4, 1]);
        assert!(contiguous(&[]).is_empty());
    }

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
