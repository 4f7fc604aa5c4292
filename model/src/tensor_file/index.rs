//! The index of a model in shards, `model.safetensors.index.json` or `pytorch_model.bin.index.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::contents::{io_error, Contents};
use crate::error::ModelError;

/// Bytes of an index; a hundred thousand tensors need a tenth.
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names, each with the names of its tensors.
#[allow(clippy::type_complexity)] // A pair of a file and what is in it.
pub(super) fn read(path: &Path) -> Result<Vec<(PathBuf, Option<BTreeSet<String>>)>, ModelError> {
    let unusable = |message: String| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    };
    let length = std::fs::metadata(path).map_err(io_error(path))?.len();
    if length > MAX_INDEX_BYTES {
        return Err(unusable(format!(
            "an index of {length} bytes; at most {MAX_INDEX_BYTES} are read"
        )));
    }
    let text = std::fs::read(path).map_err(io_error(path))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| unusable(format!("no index of shards: {error}")))?;
    let mut shards = BTreeMap::<&str, BTreeSet<String>>::new();
    for (name, shard) in &index.weight_map {
        shards.entry(shard).or_default().insert(name.clone());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let located = shards.into_iter().map(|(shard, names)| {
        // Shards lie beside their index; a path could reach any file of the machine.
        let is_plain = Path::new(shard)
            .file_name()
            .is_some_and(|name| name == shard);
        if !is_plain || shard.ends_with(".json") {
            return Err(unusable(format!("`{shard}` is no name of a shard")));
        }
        Ok((folder.join(shard), Some(names)))
    });
    located.collect()
}

/// Checks that a shard holds what the index says, and no more.
pub(super) fn check(
    shard: &Path,
    names: &BTreeSet<String>,
    contents: &Contents,
) -> Result<(), ModelError> {
    let is_here = |name: &&String| {
        contents.entries.contains_key(*name) || contents.others.contains_key(*name)
    };
    let missing = names.iter().filter(|name| !is_here(name));
    let unexpected = contents
        .entries
        .keys()
        .filter(|name| !names.contains(*name));
    let problems: Vec<String> = missing
        .map(|name| format!("`{name}` is missing"))
        .chain(unexpected.map(|name| format!("`{name}` is not in the index")))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::TensorFile {
        path: shard.to_owned(),
        message: format!("does not fit the index: {}", problems.join("; ")),
    })
}

#[cfg(test)]
mod tests {
    use crate::tensor_file::WeightsFile;
    use tch::Tensor;

    #[test]
    fn shards_are_read_together() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        for (shard, name, value) in [("s1", "a", 1.0f32), ("s2", "b", 2.0)] {
            let path = dir.path().join(format!("{shard}.safetensors"));
            Tensor::write_safetensors(&[(name, &Tensor::from(value))], &path).unwrap();
        }
        let check = |map: &str, expected: &str| {
            std::fs::write(&index, format!(r#"{{"weight_map": {map}}}"#)).unwrap();
            let error = WeightsFile::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            r#"{"a": "s1.safetensors", "c": "s1.safetensors"}"#,
            "`c` is missing",
        );
        check(r#"{"c": "s2.safetensors"}"#, "`b` is not in the index");
        check(r#"{"a": "../s1.safetensors"}"#, "no name of a shard");
        check(r#"{"a": "/etc/passwd"}"#, "no name of a shard");
        check(r#"{"a": ".."}"#, "no name of a shard");
        check(
            r#"{"a": "model.safetensors.index.json"}"#,
            "no name of a shard",
        );
        check(r#"{"a": "s3.safetensors"}"#, "s3.safetensors");
        check("7", "no index");
        std::fs::write(
            &index,
            r#"{"metadata": {}, "weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}"#,
        )
        .unwrap();
        let weights = WeightsFile::open(dir.path()).unwrap();
        assert!(weights.names().eq(["a", "b"]));
        assert_eq!(weights.tensor("b").unwrap(), Tensor::from(2.0f32));
        assert_eq!(weights.digests().unwrap().len(), 2);
    }
}
