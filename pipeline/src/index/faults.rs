//! What is wrong with a sidecar, and what to do about it.

use std::io;

use crate::error::ShardError;
use crate::shard_spec::INDEX_ENDING;
use crate::source::ShardLocation;

pub(super) fn shard_error(shard: &ShardLocation, message: String) -> ShardError {
    ShardError {
        shard: shard.name.to_string(),
        offset_bytes: 0,
        message,
    }
}

/// Something about the sidecar that writing it again mends.
pub(super) fn index_error(shard: &ShardLocation, what: &str) -> ShardError {
    let sidecar = shard.sidecar(INDEX_ENDING).name;
    shard_error(
        shard,
        format!("its index {sidecar} {what}; {}", advice(shard)),
    )
}

/// Something about the sidecar that only reading all of the shard shows.
pub(super) fn misfit(shard: &ShardLocation, what: &str) -> ShardError {
    let sidecar = shard.sidecar(INDEX_ENDING).name;
    let advice = overwrite_advice(shard);
    shard_error(shard, format!("its index {sidecar} {what}; {advice}"))
}

pub(super) fn unreadable(shard: &ShardLocation, error: &io::Error) -> ShardError {
    let sidecar = shard.sidecar(INDEX_ENDING).name;
    shard_error(
        shard,
        format!("its index {sidecar} cannot be read ({error})"),
    )
}

pub(super) fn damaged_entry(shard: &ShardLocation, sample: u32) -> ShardError {
    index_error(shard, &format!("is damaged at sample {sample}"))
}

/// For what `qfdata index` finds by itself.
fn advice(shard: &ShardLocation) -> String {
    format!("if the shard is sound, run `qfdata index {}`", shard.name)
}

/// For what shows only where the shard is read.
pub(super) fn overwrite_advice(shard: &ShardLocation) -> String {
    let name = &shard.name;
    format!("if the shard is sound, run `qfdata index --overwrite {name}`")
}
