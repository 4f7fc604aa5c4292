//! What can go wrong where a shard is written, and what is removed there.

use std::io;
use std::path::Path;

use crate::error::PipelineError;
use crate::shard_spec::INDEX_ENDING;
use crate::source::ShardLocation;

/// Removes the index of a shard that is about to change, if it has one.
pub(super) fn remove_index(shard: &ShardLocation) -> Result<(), PipelineError> {
    let sidecar = shard.sidecar(INDEX_ENDING);
    let Some(path) = sidecar.path() else {
        return Ok(());
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> PipelineError + '_ {
    move |source| PipelineError::Io {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn unwritable(shard: &Path, key: &str, message: String) -> PipelineError {
    PipelineError::Unwritable {
        shard: shard.to_owned(),
        key: key.to_owned(),
        message,
    }
}
