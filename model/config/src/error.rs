//! What is wrong with settings or a run's folder.

use std::path::PathBuf;

/// Why settings cannot work, or a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A setting that cannot work.
    #[error("setting `{setting}`: {message}")]
    Setting {
        /// Name of the setting as in the configuration file.
        setting: &'static str,
        /// What is wrong and which values work.
        message: String,
    },
    /// A run folder that another process trains in.
    #[error("{}: another process trains in this run folder; wait for it, or take another", .0.display())]
    InUse(PathBuf),
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A setting of the loader.
    #[error(transparent)]
    Pipeline(#[from] qf_pipeline::PipelineError),
}
