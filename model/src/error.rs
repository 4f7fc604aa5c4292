//! What can go wrong between a configuration and a loss.

use std::path::PathBuf;

use tch::TchError;

/// Anything that stops the model, its losses, its optimiser or its files.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A setting that cannot work.
    #[error("setting `{setting}`: {message}")]
    Config {
        /// Name of the setting as in the configuration file.
        setting: &'static str,
        /// What is wrong and which values work.
        message: String,
    },
    /// A tensor whose shape does not fit the model.
    #[error("{what}: expected shape {expected}, got {got:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that fits, with names for free sizes, e.g. `[B, 257, 1408]`.
        expected: String,
        /// The shape that came.
        got: Vec<i64>,
    },
    /// A tensor of another element type than the model takes.
    #[error("{what}: expected {expected} elements, got {got:?}")]
    Kind {
        /// Which tensor.
        what: &'static str,
        /// The kinds that fit.
        expected: &'static str,
        /// The kind that came.
        got: tch::Kind,
    },
    /// An input that has the right shape but cannot be used.
    #[error("{what}: {message}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// Two parameters under one name.
    #[error("parameter `{0}` is declared twice")]
    DuplicateParameter(String),
    /// Weights or optimiser state that do not fit the model.
    #[error(
        "{origin} does not fit this model: {}; use the configuration it was written with",
        .problems.join("; ")
    )]
    Mismatch {
        /// The file, or what else the tensors came from.
        origin: String,
        /// One entry per missing, unexpected or misshaped tensor.
        problems: Vec<String>,
    },
    /// A tensor file that cannot be parsed.
    #[error("{}: {message}", path.display())]
    TensorFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
    /// A loss that is no number.
    #[error(
        "step {step}: a loss is not finite (itc {loss_itc}, itm {loss_itm}, lm {loss_lm}) on the \
         batch [{}]; lower the learning rate, or look at these samples", .samples.join(", ")
    )]
    NonFinite {
        /// Number of the step, from 1.
        step: u64,
        /// Contrastive loss.
        loss_itc: f64,
        /// Matching loss.
        loss_itm: f64,
        /// Language-model loss.
        loss_lm: f64,
        /// The samples of the batch.
        samples: Vec<String>,
    },
    /// The loader stopped.
    #[error(transparent)]
    Pipeline(#[from] qf_pipeline::PipelineError),
    /// An operation that libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// Checks `tensor` against `expected`, where -1 stands for any size; `names` words the message.
pub(crate) fn check_shape(
    what: &'static str,
    tensor: &tch::Tensor,
    expected: &[i64],
    names: &str,
) -> Result<(), ModelError> {
    let got = tensor.size();
    let fits = got.len() == expected.len()
        && got
            .iter()
            .zip(expected)
            .all(|(&got, &want)| want < 0 || got == want);
    if fits {
        return Ok(());
    }
    Err(ModelError::Shape {
        what,
        expected: names.to_owned(),
        got,
    })
}

/// Checks that `tensor` holds 64-bit integers.
pub(crate) fn check_integers(what: &'static str, tensor: &tch::Tensor) -> Result<(), ModelError> {
    match tensor.f_kind()? {
        tch::Kind::Int64 => Ok(()),
        got => Err(ModelError::Kind {
            what,
            expected: "64-bit integer",
            got,
        }),
    }
}

/// Checks that `tensor` holds floating-point numbers.
pub(crate) fn check_floats(what: &'static str, tensor: &tch::Tensor) -> Result<(), ModelError> {
    match tensor.f_kind()? {
        tch::Kind::Float | tch::Kind::Half | tch::Kind::BFloat16 | tch::Kind::Double => Ok(()),
        got => Err(ModelError::Kind {
            what,
            expected: "floating-point",
            got,
        }),
    }
}
