//! The table of contents of a safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ::safetensors::tensor::Metadata;
use ::safetensors::Dtype;
use tch::Kind;

use super::contents::{contiguous, Contents, Entry};

/// Bytes of a header, the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Length of the number that gives the header's length.
const PREFIX_BYTES: u64 = 8;

/// Reads the header of a file of `length` bytes; what is wrong as text.
pub(super) fn read(file: &File, length: u64) -> Result<Contents, String> {
    let no_file = |error: &dyn std::fmt::Display| format!("no safetensors file: {error}");
    let mut prefix = [0u8; PREFIX_BYTES as usize];
    file.read_exact_at(&mut prefix, 0)
        .map_err(|_| no_file(&format!("{length} bytes are too few")))?;
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER_BYTES || header > length - PREFIX_BYTES {
        return Err(no_file(&format!(
            "its first bytes say that the header has {header} of {length} bytes"
        )));
    }
    let mut bytes = vec![0u8; header as usize];
    file.read_exact_at(&mut bytes, PREFIX_BYTES)
        .map_err(|error| no_file(&error))?;
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|error| no_file(&error))?;
    let data_start = PREFIX_BYTES + header;
    let data_length = metadata.data_len() as u64;
    if length - data_start != data_length {
        return Err(format!(
            "the header names {data_length} bytes of tensors, and {} follow it; fetch the file again",
            length - data_start
        ));
    }
    let mut entries = BTreeMap::new();
    let mut others = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let Some(kind) = kind_of(info.dtype) else {
            others.insert(name, format!("a tensor of {:?}, not supported", info.dtype));
            continue;
        };
        let shape = info.shape.iter().map(|&size| i64::try_from(size));
        let shape: Vec<i64> = shape
            .collect::<Result<_, _>>()
            .map_err(|_| format!("tensor `{name}` has shape {:?}", info.shape))?;
        let (begin, end) = info.data_offsets;
        let strides = contiguous(&shape);
        let offset = data_start + begin as u64;
        let entry = Entry::checked(kind, shape, strides, offset, (end - begin) as u64)
            .map_err(|message| format!("tensor `{name}`: {message}"))?;
        entries.insert(name, entry);
    }
    let of_file = metadata.metadata().iter().flatten();
    let of_file = of_file.map(|(key, value)| (key.clone(), value.clone()));
    Ok(Contents {
        entries,
        others,
        metadata: of_file.collect(),
    })
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
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
        _ => return None,
    })
}
