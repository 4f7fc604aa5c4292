//! Writes tensors to safetensors files.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use qf_pipeline::atomic_file::AtomicFile;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// Writes named tensors to `path`, from whatever device they are on.
///
/// # Errors
/// [`ModelError::TensorFile`] naming the file, for an element type without a safetensors name or a
/// disk that says no.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
    write(path, tensors, None)
}

/// As [`write_safetensors`], with the note that PyTorch readers look for: `format` is `pt`.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_for_torch(
    path: &Path,
    tensors: &[(String, Tensor)],
) -> Result<(), ModelError> {
    let note = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write(path, tensors, Some(note))
}

fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    note: Option<HashMap<String, String>>,
) -> Result<(), ModelError> {
    let unwritable = |message: String| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    };
    let mut views = tensors
        .iter()
        .map(|(name, tensor)| match HostView::new(tensor) {
            Ok(view) => Ok((name.as_str(), view)),
            Err(error) => Err(unwritable(format!("cannot write `{name}`: {error}"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    // The order of safetensors' own writer: the largest elements first, so that all are aligned.
    views.sort_by(|(a, left), (b, right)| right.dtype.cmp(&left.dtype).then(a.cmp(b)));
    let header = header(&views, note).map_err(unwritable)?;
    // Not by `safetensors::serialize_to_file`, whose files only their owner may read.
    let mut file = AtomicFile::create(path)?;
    let mut write = |bytes: &[u8]| {
        let written = file.write_all(bytes);
        written.map_err(|error| unwritable(format!("cannot be written: {error}")))
    };
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    for (_, view) in &views {
        write(&view.bytes())?;
    }
    Ok(file.commit_unsynced()?)
}

/// What stands before the tensors of a file, padded to a multiple of eight bytes.
fn header(
    views: &[(&str, HostView)],
    note: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, String> {
    let mut offset = 0;
    let infos = views.iter().map(|(name, view)| {
        let data_offsets = (offset, offset + view.len);
        offset += view.len;
        let info = TensorInfo {
            dtype: view.dtype,
            shape: view.shape.clone(),
            data_offsets,
        };
        ((*name).to_string(), info)
    });
    let metadata = Metadata::new(note, infos.collect()).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
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
    fn bytes(&self) -> Vec<u8> {
        let host = self.tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0u8; self.len];
        host.copy_data_u8(&mut bytes, host.numel());
        bytes
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
        write_safetensors(&path, &tensors).unwrap();
        let read = read_safetensors(&path).unwrap();
        assert_eq!(read.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!(read[name].kind(), tensor.kind());
            assert_eq!(&read[name], tensor, "{name}");
        }
        // The library reads it too, and its own writer lays out the same bytes.
        let bytes = std::fs::read(&path).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(
            safetensors::serialize(parsed.tensors(), None).unwrap(),
            bytes
        );
        let nowhere = path.join("under/a/file.safetensors");
        let message = write_safetensors(&nowhere, &tensors).unwrap_err();
        assert!(message.to_string().contains("under/a"), "{message}");
    }
}
