//! Tables of contents: where each tensor of a file lies.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::ModelError;

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

    pub(super) fn read(&self, file: &File) -> Result<Tensor, ReadError> {
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

pub(super) enum ReadError {
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

pub(crate) fn io_error(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Under this key the metadata of a safetensors file names the vocabulary.
pub(super) const VOCABULARY_KEY: &str = "vocabulary_sha256";

/// Adds what one more shard of a model says of itself; what is there already stays. Shards of several
/// vocabularies are an error, as text.
pub(super) fn join(
    all: &mut BTreeMap<String, String>,
    shard: BTreeMap<String, String>,
) -> Result<(), String> {
    if let (Some(first), Some(other)) = (all.get(VOCABULARY_KEY), shard.get(VOCABULARY_KEY)) {
        if first != other {
            return Err(format!(
                "its metadata `{VOCABULARY_KEY}` is {other}, that of an earlier shard {first}; fetch all shards \
                 again"
            ));
        }
    }
    for (key, value) in shard {
        all.entry(key).or_insert(value);
    }
    Ok(())
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
}
