//! Weights in and out: files of other programs, and files for them.
//!
//! ```text
//! .safetensors, shards + index ─┐                                   ┌─▶ Blip2ForImageTextRetrieval
//! .pth, .bin (torch.save) ──────┼─ WeightsFile ─ load_into ─▶ model ┤
//! run and checkpoint folders ───┘                                   └─▶ LAVIS names
//! ```
//!
//! [`WeightsFile::open`] reads the table of contents of any such file; [`load_into`] tells from the
//! names which model it is of ([`Layout`]) and copies tensor by tensor.

mod bert;
mod export;
mod file;
mod hugging_face;
mod index;
mod load;
mod names;
mod pickle;
mod safetensors;
pub(crate) mod vocabulary;
mod wrappers;

use std::collections::HashMap;
use std::path::Path;

use tch::Tensor;

pub use bert::{read_bert_config, BertSizes};
pub use export::{export_hugging_face, export_lavis};
pub use file::{FileDigest, WeightsFile};
pub use hugging_face::read_config;
pub use load::{load_into, Absent, LoadReport, Part};
pub use names::Layout;
pub use vocabulary::first_difference;

use crate::error::ModelError;

/// All tensors of a file, on the CPU.
///
/// # Errors
/// As [`WeightsFile::open`]; an element type that torch has not is an error too.
pub fn read_safetensors(path: &Path) -> Result<HashMap<String, Tensor>, ModelError> {
    let file = WeightsFile::open_as_it_is(path)?;
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
