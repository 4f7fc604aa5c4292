//! Shards, remote ones as the environment says.

use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::{resolve_shards_with, ShardLocation};
use qf_pipeline::PipelineError;

/// The shards that `specs` name; credentials and endpoints are those of this process's environment.
pub(crate) fn resolve_shards(specs: &[String]) -> Result<Vec<ShardLocation>, PipelineError> {
    resolve_shards_with(specs, &options())
}

/// How remote shards are reached, by this process's environment.
pub(crate) fn options() -> RemoteOptions {
    RemoteOptions::from_vars(std::env::vars_os())
}
