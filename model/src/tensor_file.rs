//! Writes tensors to safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, View};
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
    let views = tensors
        .iter()
        .map(|(name, tensor)| match HostView::new(tensor) {
            Ok(view) => Ok((name.as_str(), view)),
            Err(error) => Err(unwritable(format!("cannot write `{name}`: {error}"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize_to_file(views, note, path)
        .map_err(|error| unwritable(format!("cannot be written: {error}")))
}

/// A tensor as safetensors sees it; its bytes are copied to the host only while they are written.
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
}

impl View for HostView {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let host = self.tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0u8; self.len];
        host.copy_data_u8(&mut bytes, host.numel());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.len
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
        let nowhere = dir.path().join("no/such/folder.safetensors");
        assert!(write_safetensors(&nowhere, &tensors).is_err());
    }
}
