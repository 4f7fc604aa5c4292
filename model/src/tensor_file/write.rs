//! Writes tensors to safetensors files.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use qf_pipeline::atomic_file::AtomicFile;
use safetensors::tensor::TensorInfo;
use safetensors::Dtype;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// What a file says of itself, beside its tensors: the header's `__metadata__`.
pub type Metadata = BTreeMap<&'static str, String>;

/// The header is padded so that the first tensor begins at a multiple of this many bytes.
const ALIGNMENT: usize = 8;

/// Writes named tensors to `path`, from whatever device they are on. Equal tensors and metadata give
/// equal bytes.
///
/// Not by `safetensors::serialize_to_file`: it writes several entries of metadata in the order of a
/// hash map, which differs from call to call, and files that only their owner may read.
///
/// # Errors
/// [`ModelError::TensorFile`] naming the file, for an element type without a safetensors name or a
/// disk that says no.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &Metadata,
) -> Result<(), ModelError> {
    let unwritable = |message: String| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    };
    let views = tensors
        .iter()
        .map(|(name, tensor)| match HostView::new(tensor) {
            Ok(view) => Ok((name.as_str(), view)),
            Err(error) => Err(unwritable(format!("cannot write `{name}`: {error}"))),
        })
        .collect::<Result<_, _>>()?;
    let header = Header::new(views, metadata);
    let mut json = serde_json::to_vec(&header)
        .map_err(|error| unwritable(format!("cannot be written: {error}")))?;
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    let mut file = AtomicFile::create(path)?;
    let mut write = |bytes: &[u8]| {
        let written = file.write_all(bytes);
        written.map_err(|error| unwritable(format!("cannot be written: {error}")))
    };
    write(&(json.len() as u64).to_le_bytes())?;
    write(&json)?;
    for (name, view) in &header.views {
        let bytes = view.bytes();
        let bytes = bytes.map_err(|error| unwritable(format!("cannot write `{name}`: {error}")))?;
        write(&bytes)?;
    }
    Ok(file.commit_unsynced()?)
}

/// The table of contents of a file.
struct Header<'a> {
    metadata: &'a Metadata,
    /// In the order of the file.
    views: Vec<(&'a str, HostView)>,
}

impl<'a> Header<'a> {
    /// The order of safetensors' own writer: the largest elements first, so that all are aligned.
    fn new(mut views: Vec<(&'a str, HostView)>, metadata: &'a Metadata) -> Header<'a> {
        views.sort_by(|(a, left), (b, right)| right.dtype.cmp(&left.dtype).then(a.cmp(b)));
        Header { metadata, views }
    }
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        let mut start = 0;
        for (name, view) in &self.views {
            let info = TensorInfo {
                dtype: view.dtype,
                shape: view.shape.clone(),
                data_offsets: (start, start + view.len),
            };
            start = info.data_offsets.1;
            map.serialize_entry(name, &info)?;
        }
        map.end()
    }
}

/// A tensor with what the header says of it; its bytes are copied to the host only while they are written.
struct HostView {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
    len: usize,
}

impl HostView {
    fn new(tensor: &Tensor) -> Result<Self, String> {
        let dtype = match tensor.f_kind().map_err(|error| error.to_string())? {
            Kind::Float => Dtype::F32,
            Kind::Double => Dtype::F64,
            Kind::Half => Dtype::F16,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Int64 => Dtype::I64,
            Kind::Int => Dtype::I32,
            Kind::Uint8 => Dtype::U8,
            other => return Err(format!("no safetensors name for {other:?}")),
        };
        let tensor = tensor.f_detach().map_err(|error| error.to_string())?;
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        let len = tensor.numel() * tensor.kind().elt_size_in_bytes();
        Ok(HostView {
            tensor,
            dtype,
            shape,
            len,
        })
    }

    /// Its elements, row by row.
    fn bytes(&self) -> Result<Vec<u8>, tch::TchError> {
        let host = self.tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0u8; self.len];
        host.f_copy_data_u8(&mut bytes, host.numel())?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::read_safetensors;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let tensors = vec![
            (
                "a.weight".to_string(),
                Tensor::from_slice(&[1.5f32, -2.0, 3.0, 4.0])
                    .view([2, 2])
                    .tr(),
            ),
            ("temp".to_string(), Tensor::from(0.07f32)),
            ("a.step".to_string(), Tensor::from(7i64)),
            (
                "none".to_string(),
                Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)),
            ),
        ];
        let with = |keys: &[&'static str]| -> Metadata {
            let pairs = keys.iter().map(|key| (*key, format!("\"{key}\"")));
            pairs.collect()
        };
        for metadata in [with(&[]), with(&["format"]), with(&["format", "a", "z"])] {
            write_safetensors(&path, &tensors, &metadata).unwrap();
            let read = read_safetensors(&path).unwrap();
            assert_eq!(read.len(), tensors.len());
            for (name, tensor) in &tensors {
                assert_eq!(read[name].kind(), tensor.kind());
                assert_eq!(&read[name], tensor, "{name}");
            }
            // The library reads it too, and its own writer lays out the same bytes, where these are
            // determined: with one entry of metadata at most.
            let bytes = std::fs::read(&path).unwrap();
            let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            let of_library = header.metadata().clone();
            let read: Metadata = metadata
                .keys()
                .map(|key| (*key, of_library.as_ref().unwrap()[*key].clone()))
                .collect();
            assert_eq!(read, metadata);
            let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let expected = safetensors::serialize(parsed.tensors(), of_library).unwrap();
            assert_eq!(expected.len(), bytes.len());
            assert!(metadata.len() > 1 || expected == bytes);
        }
        let nowhere = path.join("under/a/file.safetensors");
        let message = write_safetensors(&nowhere, &tensors, &Metadata::new()).unwrap_err();
        assert!(message.to_string().contains("under/a"), "{message}");
    }
}
