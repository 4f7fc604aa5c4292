//! Weights from files: safetensors, and the start from a BERT.

use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::params::ParamStore;

/// All tensors of a safetensors file, on the CPU.
///
/// # Errors
/// [`ModelError::Io`] for a file that cannot be read, [`ModelError::TensorFile`] for one that is no
/// safetensors file or holds an element type that torch has not.
pub fn read_safetensors(path: &Path) -> Result<HashMap<String, Tensor>, ModelError> {
    let bytes = std::fs::read(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })?;
    let unusable = |message: String| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    };
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| unusable(format!("no safetensors file: {error}")))?;
    let mut tensors = HashMap::with_capacity(file.len());
    for (name, view) in file.iter() {
        let kind = match view.dtype() {
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::I8 => Kind::Int8,
            Dtype::I16 => Kind::Int16,
            Dtype::I32 => Kind::Int,
            Dtype::I64 => Kind::Int64,
            Dtype::U8 => Kind::Uint8,
            Dtype::BOOL => Kind::Bool,
            other => {
                let message = format!("tensor `{name}` has element type {other:?}, not supported");
                return Err(unusable(message));
            }
        };
        let shape = view
            .shape()
            .iter()
            .map(|&size| i64::try_from(size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| unusable(format!("tensor `{name}` has shape {:?}", view.shape())))?;
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

/// Starts a Q-Former from a BERT: embeddings, self-attention, text networks and language-model head.
///
/// `tensors` are named as in Hugging Face files (`bert.*`, `cls.predictions.*`; layer norms as
/// `weight`/`bias` or `gamma`/`beta`). Cross attention stays fresh, the query networks become
/// copies of the text networks, and vocabulary entries beyond the file's stay fresh too. What else
/// the file holds is not used. Nothing is changed unless everything fits.
///
/// # Errors
/// [`ModelError::Mismatch`] listing every tensor that is missing or has another shape.
pub fn start_from_bert(
    params: &mut ParamStore,
    tensors: &HashMap<String, Tensor>,
    origin: &str,
) -> Result<(), ModelError> {
    let by_name: HashMap<String, &Tensor> = tensors
        .iter()
        .map(|(name, tensor)| (qformer_name(name), tensor))
        .collect();
    let mut copies = Vec::new();
    let mut problems = Vec::new();
    for param in params.named_parameters() {
        if !param.name.starts_with("Qformer.") || param.name.contains(".crossattention.") {
            continue;
        }
        // `intermediate_query` and `output_query` take the text network's values.
        let source = param.name.replace("_query.", ".");
        let Some(tensor) = by_name.get(&source) else {
            problems.push(format!("`{source}` (named as in the Q-Former) is missing"));
            continue;
        };
        let (expected, got) = (param.tensor.size(), tensor.size());
        let grows = source == "Qformer.bert.embeddings.word_embeddings.weight"
            || source == "Qformer.cls.predictions.bias";
        let fits = match (expected.split_first(), got.split_first()) {
            (Some((rows, width)), Some((file_rows, file_width))) if grows => {
                width == file_width && file_rows <= rows
            }
            _ => expected == got,
        };
        if fits && tensor.is_floating_point() {
            copies.push((param.tensor.shallow_clone(), *tensor));
        } else {
            problems.push(format!(
                "`{source}` has shape {got:?} ({:?}) where {expected:?} is expected",
                tensor.kind()
            ));
        }
    }
    if !problems.is_empty() {
        return Err(ModelError::Mismatch {
            origin: origin.to_owned(),
            problems,
        });
    }
    tch::no_grad(|| {
        for (param, tensor) in copies {
            param.f_narrow(0, 0, tensor.size()[0])?.f_copy_(tensor)?;
        }
        Ok(())
    })
}

/// A BERT file's name of a tensor as the Q-Former calls it.
fn qformer_name(name: &str) -> String {
    let name = match name.strip_suffix(".gamma") {
        Some(stem) => format!("{stem}.weight"),
        None => match name.strip_suffix(".beta") {
            Some(stem) => format!("{stem}.bias"),
            None => name.to_owned(),
        },
    };
    format!("Qformer.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Init, ParamStore};
    use tch::Device;

    #[test]
    fn names_of_both_spellings() {
        for (name, expected) in [
            ("bert.a.LayerNorm.gamma", "Qformer.bert.a.LayerNorm.weight"),
            ("bert.a.LayerNorm.beta", "Qformer.bert.a.LayerNorm.bias"),
            ("cls.predictions.bias", "Qformer.cls.predictions.bias"),
        ] {
            assert_eq!(qformer_name(name), expected);
        }
    }

    #[test]
    fn vocabulary_grows_and_the_query_network_is_copied() {
        let mut store = ParamStore::new(Device::Cpu, 0);
        let words = "bert.embeddings.word_embeddings.weight";
        let text = "bert.encoder.layer.0.output.dense.bias";
        let query = "bert.encoder.layer.0.output_query.dense.bias";
        let cross = "bert.encoder.layer.0.crossattention.output.dense.bias";
        for (name, shape) in [
            (words, &[3i64, 2][..]),
            (text, &[2]),
            (query, &[2]),
            (cross, &[2]),
        ] {
            let name = format!("Qformer.{name}");
            let _ = store
                .declare(&name, shape, Init::Constant(7.0), true)
                .unwrap();
        }
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let mut tensors = HashMap::from([(words.to_owned(), zeros(&[2, 2]))]);
        let error = start_from_bert(&mut store, &tensors, "x")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("`Qformer.{text}` (named")),
            "{error}"
        );
        tensors.insert(text.to_owned(), zeros(&[2]));
        tensors.insert("bert.pooler.dense.bias".to_owned(), zeros(&[2]));
        start_from_bert(&mut store, &tensors, "x").unwrap();
        let check = |name: &str, expected: &[f32]| {
            let tensor = &store.get(&format!("Qformer.{name}")).unwrap().tensor;
            assert_eq!(
                Vec::<f32>::try_from(tensor.reshape(-1)).unwrap(),
                expected,
                "{name}"
            );
        };
        check(words, &[0.0, 0.0, 0.0, 0.0, 7.0, 7.0]);
        check(text, &[0.0, 0.0]);
        check(query, &[0.0, 0.0]);
        check(cross, &[7.0, 7.0]);
        // A file with more words than the model does not fit.
        tensors.insert(words.to_owned(), zeros(&[4, 2]));
        assert!(start_from_bert(&mut store, &tensors, "x").is_err());
    }

    #[test]
    fn files_that_are_not_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.safetensors");
        assert!(matches!(
            read_safetensors(&missing),
            Err(ModelError::Io { .. })
        ));
        let huge_header = u64::MAX.to_le_bytes();
        for bytes in [&b""[..], b"not a tensor file", &huge_header] {
            let path = folder.path().join("bad.safetensors");
            std::fs::write(&path, bytes).unwrap();
            let error = read_safetensors(&path).unwrap_err();
            assert!(matches!(error, ModelError::TensorFile { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_written_by_torch_comes_back() {
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
    }
}
