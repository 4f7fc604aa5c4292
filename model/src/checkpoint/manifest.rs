//! manifest.json: length and digest of every other file of a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use qf_pipeline::hex::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{
    at, damaged, read_text, unknown_version, CHECKPOINT_VERSION, CONFIG_FILE, MANIFEST_FILE,
    MODEL_FILE, OPTIMIZER_FILE, STATE_FILE,
};
use crate::error::ModelError;

/// What every checkpoint holds beside its manifest.
const FILES: [&str; 4] = [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, CONFIG_FILE];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    step: u64,
    files: BTreeMap<String, FileDigest>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDigest {
    bytes: u64,
    sha256: String,
}

/// Describes the files of a checkpoint folder; the text is for [`MANIFEST_FILE`].
pub(super) fn describe(folder: &Path, step: u64) -> Result<String, ModelError> {
    let mut files = BTreeMap::new();
    for file in FILES {
        files.insert(file.to_string(), digest(&folder.join(file))?);
    }
    let manifest = Manifest {
        version: CHECKPOINT_VERSION,
        step,
        files,
    };
    let path = folder.join(MANIFEST_FILE);
    serde_json::to_string_pretty(&manifest).map_err(|error| at(&path)(std::io::Error::other(error)))
}

/// Checks all files of a checkpoint folder; returns the step that the manifest names.
pub(super) fn verify(folder: &Path) -> Result<u64, ModelError> {
    let path = folder.join(MANIFEST_FILE);
    let text = read_text(&path)?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| damaged(&path, format!("no manifest of a checkpoint: {error}")))?;
    if manifest.version != CHECKPOINT_VERSION {
        return Err(damaged(&path, unknown_version(manifest.version)));
    }
    // Only known names are looked at: a manifest cannot point out of its folder.
    for file in FILES {
        let Some(expected) = manifest.files.get(file) else {
            return Err(damaged(&path, format!("does not list {file}")));
        };
        let path = folder.join(file);
        let bytes = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged(&path, "is missing".into()));
            }
            Err(error) => return Err(at(&path)(error)),
        };
        if bytes != expected.bytes {
            let message = format!("has {bytes} bytes of {}: it was cut short", expected.bytes);
            return Err(damaged(&path, message));
        }
        if digest(&path)?.sha256 != expected.sha256 {
            let message = "is not as it was written (SHA-256 differs from the manifest's)";
            return Err(damaged(&path, message.into()));
        }
    }
    Ok(manifest.step)
}

fn digest(path: &Path) -> Result<FileDigest, ModelError> {
    const CHUNK_BYTES: usize = 1 << 20;
    let mut file = File::open(path).map_err(at(path))?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&chunk[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(at(path)(error)),
        }
    }
    let sha256 = hasher.finalize();
    Ok(FileDigest {
        bytes,
        sha256: hex(&sha256),
    })
}
