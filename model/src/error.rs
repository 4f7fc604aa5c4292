//! What can go wrong between a configuration and a loss.

use std::path::PathBuf;

use qf_config::ConfigError;
use qf_pipeline::image_file::ImageFileError;
use qf_pipeline::text::VocabularyDigest;
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
    /// Weights whose word embeddings are of another vocabulary than the tokenizer's: each id would
    /// mean another word.
    #[error(
        "{}: its word embeddings belong to another vocabulary (SHA-256 {of_weights}) than the \
         tokenizer has ({of_tokenizer}); take the vocab.txt or tokenizer.json that these weights were \
         trained with", path.display()
    )]
    Vocabulary {
        /// The file of weights.
        path: PathBuf,
        /// The vocabulary that it names.
        of_weights: VocabularyDigest,
        /// The tokenizer's.
        of_tokenizer: VocabularyDigest,
    },
    /// A tensor file that cannot be parsed.
    #[error("{}: {message}", path.display())]
    TensorFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// An image file that cannot be used.
    #[error(transparent)]
    ImageFile(#[from] ImageFileError),
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
    /// A loss or a gradient that is not finite.
    #[error(
        "step {step}: {first_tensor} is not finite (losses: itc {loss_itc}, itm {loss_itm}, \
         lm {loss_lm}) on the batch [{}]{}; {}", .samples.join(", "), saved(.batch),
         advice(*.skipped_before)
    )]
    NonFinite {
        /// Number of the step, from 1.
        step: u64,
        /// The first tensor of the step that holds NaN or an infinity, in order of computation.
        first_tensor: String,
        /// Contrastive loss.
        loss_itc: f64,
        /// Matching loss.
        loss_itm: f64,
        /// Language-model loss.
        loss_lm: f64,
        /// The samples of the batch.
        samples: Vec<String>,
        /// Where the batch was saved for inspection.
        batch: Option<PathBuf>,
        /// Updates skipped directly before this one.
        skipped_before: u64,
    },
    /// Weights that must not become a checkpoint.
    #[error(
        "step {step}: parameter `{name}` is not finite, so no checkpoint was written; lower the \
         learning rate and resume from the checkpoint before it"
    )]
    NonFiniteWeights {
        /// Steps done.
        step: u64,
        /// The first such parameter.
        name: String,
    },
    /// Checkpoints of which none can be used.
    #[error(
        "{}: no checkpoint is whole: {}; start a new run, or put back a copy of one",
        checkpoints.display(), .problems.join("; ")
    )]
    NoWholeCheckpoint {
        /// The folder of the run's checkpoints.
        checkpoints: PathBuf,
        /// What is wrong with each, the newest first.
        problems: Vec<String>,
    },
    /// The thread that writes checkpoints could not be started, or died.
    #[error("checkpoint writer: {0}")]
    CheckpointWriter(String),
    /// Ranks that do not meet.
    #[error("rank {rank}: cannot join the other ranks at {address}: {message}")]
    Rendezvous {
        /// This rank.
        rank: i64,
        /// Where they were to meet.
        address: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A call that another rank did not answer, because it has ended or cannot be reached.
    #[error("rank {rank} lost contact to another rank ({message})")]
    RankLost {
        /// This rank.
        rank: i64,
        /// The word of the network library.
        message: String,
    },
    /// What ended another rank, told by itself.
    #[error("rank {rank}: {message}")]
    Peer {
        /// That rank.
        rank: i64,
        /// What went wrong there.
        message: String,
    },
    /// A step that needs more memory than the device has.
    #[error("a step on a batch of {batch_size} does not fit {device}: {}; {cause}", room(*.fits))]
    DeviceMemory {
        /// Where it was to run.
        device: String,
        /// Images of the batch.
        batch_size: usize,
        /// About the largest batch that fits, 0 if none does, where it could be found out.
        fits: Option<usize>,
        /// libtorch's word.
        cause: String,
    },
    /// Work that was broken off because the caller asked for it.
    #[error("stopped on request")]
    Stopped,
    /// The loader stopped.
    #[error(transparent)]
    Pipeline(#[from] qf_pipeline::PipelineError),
    /// An operation that libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

impl From<ConfigError> for ModelError {
    fn from(error: ConfigError) -> ModelError {
        match error {
            ConfigError::Setting { setting, message } => ModelError::Config { setting, message },
            ConfigError::InUse(folder) => ModelError::InUse(folder),
            ConfigError::Io { path, source } => ModelError::Io { path, source },
            ConfigError::Pipeline(error) => ModelError::Pipeline(error),
        }
    }
}

impl ModelError {
    /// Whether the weights are at fault: they must not be saved.
    pub fn is_of_weights(&self) -> bool {
        matches!(
            self,
            ModelError::NonFinite { .. } | ModelError::NonFiniteWeights { .. }
        )
    }

    /// Whether libtorch found no memory for a tensor.
    pub fn is_out_of_memory(&self) -> bool {
        let ModelError::Torch(TchError::Torch(text)) = self else {
            return false;
        };
        // The allocators of GPUs and of the CPU.
        [
            "out of memory",
            "not enough memory",
            "can't allocate memory",
        ]
        .iter()
        .any(|words| text.contains(words))
    }
}

fn room(fits: Option<usize>) -> String {
    const SAVINGS: &str = "precision=bf16, model.vision.checkpoint_activations=true for a tower that is \
                           trained, and optimizer.shard_state=true on several ranks save memory too";
    match fits {
        Some(0) => format!("no batch does; take a smaller model or another device ({SAVINGS})"),
        Some(size) => format!(
            "about {size} images would; set data.batch_size={size}, with accumulate_steps for the same \
             number of images a step ({SAVINGS})"
        ),
        None => format!("lower data.batch_size ({SAVINGS})"),
    }
}

fn saved(batch: &Option<PathBuf>) -> String {
    match batch {
        Some(path) => format!(", saved in {}", path.display()),
        None => String::new(),
    }
}

fn advice(skipped_before: u64) -> String {
    match skipped_before {
        0 => "lower the learning rate, look at these samples, or set on_non_finite = \"skip\""
            .to_string(),
        skipped => format!(
            "the {skipped} updates before it were skipped for the same reason; lower the learning \
             rate, or look at these samples"
        ),
    }
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
