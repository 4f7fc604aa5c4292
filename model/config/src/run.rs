//! Settings of a training run, as written in TOML.

use std::path::PathBuf;

use qf_pipeline::config::CaptionChoice;
use qf_pipeline::source::{local_path, ShardSpec};
use qf_pipeline::LoaderConfig;
use serde::{Deserialize, Serialize};

use crate::device::Kernels;
use crate::error::ConfigError;
use crate::model::{ModelConfig, Precision};
use crate::optimizer::AdamWConfig;
use crate::schedule::Schedule;

/// All batches of a step are in memory at once.
const MAX_ACCUMULATED: usize = 1024;

/// A data set of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixedSet {
    /// Its name in reports and checkpoints.
    pub name: String,
    /// Its share of samples, relative to the other sets' weights.
    pub weight: f64,
    /// Its shards, as in [`TrainConfig::shards`].
    pub shards: Vec<ShardSpec>,
}

/// How remote shards are reached. Credentials and endpoints are those of the environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteConfig {
    /// Folder in which whole shards are kept; none without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Greatest size of that folder, in bytes. Default 100 GB.
    pub cache_bytes: u64,
    /// Seconds that a store may be down: until then requests are made again. Default 600.
    pub outage_secs: u64,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        RemoteConfig {
            cache: None,
            cache_bytes: 100_000_000_000,
            outage_secs: 600,
        }
    }
}

/// A run: data, model, optimiser and how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Training shards: files, globs, `{000..012}` ranges.
    #[serde(default)]
    pub shards: Vec<ShardSpec>,
    /// Data sets of a mixture, instead of `shards`; each `[[mix]]` is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<MixedSet>,
    /// How shards in object stores and behind web servers are reached.
    #[serde(default)]
    pub remote: RemoteConfig,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// Seed of fresh weights, dropout and negatives. The order of data has its own, `data.seed`.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// `vocab.txt` or `tokenizer.json`; without one, a WordPiece vocabulary is trained from the
    /// shards' captions at the start and kept in the run folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Entries of a vocabulary that is trained from the shards. Default 8192.
    #[serde(default = "default_vocab_size")]
    pub trained_vocab_size: usize,
    /// A line in metrics.jsonl every so many steps. Default 1.
    #[serde(default = "default_log_every")]
    pub log_every_steps: u64,
    /// A checkpoint every so many steps, and one at the end. Default 1000.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept; older ones are removed, but not the best one of `validation`. Default 2.
    #[serde(default = "default_keep")]
    pub keep_checkpoints: usize,
    /// What a loss or gradient that is NaN or infinite leads to. Default `stop`.
    #[serde(default)]
    pub on_non_finite: OnNonFinite,
    /// Updates in a row that `on_non_finite = "skip"` leaves out before the run ends after all.
    /// Default 10.
    #[serde(default = "default_max_skips")]
    pub max_skips_in_a_row: u64,
    /// Batches whose gradients make up one step; their mean counts, as in the reference's
    /// `accum_grad_iters`. The contrastive loss and the negatives see one batch at a time. Default 1.
    #[serde(default = "default_accumulate")]
    pub accumulate_steps: usize,
    /// Element type of matrix products: `f32`, `bf16`, or `f16` with a loss scale. Default `bf16` on
    /// a GPU, `f32` on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Whether a tower that is not trained runs one batch ahead of the steps, beside them, on a GPU. The
    /// numbers are the same. Default true.
    #[serde(default = "default_tower_ahead")]
    pub tower_ahead: bool,
    /// Lets products and convolutions of 32-bit numbers round their inputs to TF32 on a GPU: faster,
    /// with 10 bits of mantissa. Default false.
    #[serde(default)]
    pub allow_tf32: bool,
    /// On a GPU, lets every operator give the same bits for the same inputs, so that a resumed run
    /// equals one that was never interrupted. Slower. On the CPU a run does that anyhow. Default
    /// false.
    #[serde(default)]
    pub deterministic: bool,
    /// Whether training steps are recorded and run again as CUDA graphs, on one GPU with a tower that
    /// runs ahead: the host then starts one thing a step instead of thousands. Not with `deterministic`.
    /// Default true.
    #[serde(default = "default_cuda_graphs")]
    pub cuda_graphs: bool,
    /// Parameters that are not trained, by name with `*` for anything, e.g.
    /// `["Qformer.bert.embeddings.*"]`.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Steps that the epoch-wise schedule counts as an epoch; needed for `epoch_cosine` alone.
    #[serde(default)]
    pub steps_per_epoch: u64,
    /// Order, processing and buffers of the data.
    #[serde(default)]
    pub data: LoaderConfig,
    /// Losses and retrieval on held-out shards every so many steps; none without this section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationConfig>,
    /// Shape of the network. `vocab_size` and the token ids are set from the tokenizer.
    pub model: ModelConfig,
    /// What a fresh run starts from. Default: random numbers.
    #[serde(default, skip_serializing_if = "WeightsConfig::is_empty")]
    pub weights: WeightsConfig,
    /// AdamW.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Learning rate by step.
    #[serde(default)]
    pub schedule: Schedule,
}

/// Weights of a fresh run; each a file, a folder, or `hf://ORG/NAME[@REVISION]`. Loaded in this
/// order, so that a later one overwrites an earlier one. A resumed run takes its checkpoint's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsConfig {
    /// A BERT: start of the Q-Former's embeddings, self-attention, text networks and
    /// language-model head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bert: Option<String>,
    /// A vision tower: EVA-CLIP or CLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<String>,
    /// A whole model: a LAVIS checkpoint, a `Blip2ForImageTextRetrieval`, or a run of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Lets a `checkpoint` lack the temperature and the language-model head, as those of
    /// transformers do: both keep their start, the head that of `bert` where it is given. Lets a
    /// `bert` lack the head, as a `BertModel` does. Default false: such weights are refused.
    #[serde(default)]
    pub fresh_head: bool,
    /// Adds the embedding of token type 0 of `bert` to its position embeddings, so that text alone
    /// gives what the BERT gives. LAVIS leaves token types out, which is the default.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fold_token_types: bool,
}

impl WeightsConfig {
    /// Whether the run starts from random numbers alone.
    pub fn is_empty(&self) -> bool {
        *self == WeightsConfig::default()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn default_seed() -> u64 {
    42
}

fn default_vocab_size() -> usize {
    8192
}

fn default_cuda_graphs() -> bool {
    true
}

fn default_tower_ahead() -> bool {
    true
}

fn default_log_every() -> u64 {
    1
}

fn default_checkpoint_every() -> u64 {
    1000
}

fn default_keep() -> usize {
    2
}

fn default_accumulate() -> usize {
    1
}

fn default_max_skips() -> u64 {
    10
}

impl TrainConfig {
    /// Whether work of a GPU is recorded. Not in deterministic runs: the first steps after a resumption are
    /// computed one by one, where the run that did not stop ran recordings, and nothing says that both
    /// pick the same kernels.
    pub fn records(&self) -> bool {
        self.cuda_graphs && !self.deterministic
    }

    /// How libtorch chooses kernels.
    pub fn kernels(&self) -> Kernels {
        Kernels {
            allow_tf32: self.allow_tf32,
            deterministic: self.deterministic,
        }
    }

    /// Checks what can be checked before any data is read.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] or [`ConfigError::Pipeline`] naming the setting.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (setting, path) in [
            ("tokenizer", &self.tokenizer),
            ("remote.cache", &self.remote.cache),
        ] {
            if let Some(path) = path {
                local_path(path.clone().into())
                    .map_err(|message| ConfigError::Setting { setting, message })?;
            }
        }
        self.data.validate()?;
        self.model.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()?;
        if let Some(validation) = &self.validation {
            validation.validate(&self.data)?;
        }
        self.check_run()?;
        self.check_data()
    }

    /// Steps, and what is written when.
    fn check_run(&self) -> Result<(), ConfigError> {
        check(self.steps > 0, "steps", "must be at least 1".into())?;
        check(
            self.log_every_steps > 0,
            "log_every_steps",
            "must be at least 1".into(),
        )?;
        check(
            self.checkpoint_every_steps > 0,
            "checkpoint_every_steps",
            "must be at least 1".into(),
        )?;
        check(
            self.keep_checkpoints > 0,
            "keep_checkpoints",
            "must be at least 1".into(),
        )?;
        check(
            (1..=MAX_ACCUMULATED).contains(&self.accumulate_steps),
            "accumulate_steps",
            format!("must be 1 to {MAX_ACCUMULATED}"),
        )?;
        check(
            (1..=604_800).contains(&self.remote.outage_secs),
            "remote.outage_secs",
            format!("{} is not 1 to 604800, a week", self.remote.outage_secs),
        )?;
        check(
            self.max_skips_in_a_row > 0,
            "max_skips_in_a_row",
            "must be at least 1; on_non_finite = \"stop\" skips none".into(),
        )?;
        check(
            !matches!(self.schedule, Schedule::EpochCosine(_)) || self.steps_per_epoch > 0,
            "steps_per_epoch",
            "must be given for the schedule `epoch_cosine`".into(),
        )
    }

    /// Data that the model takes and a step needs.
    fn check_data(&self) -> Result<(), ConfigError> {
        check(
            self.data.batch_size >= 2,
            "data.batch_size",
            "must be at least 2: the contrastive loss needs another pair in the batch".into(),
        )?;
        check(
            self.data.drop_last,
            "data.drop_last",
            "must be true in training: every step takes a whole batch".into(),
        )?;
        check(
            self.data.captions == CaptionChoice::Draw,
            "data.captions",
            "must be \"draw\" in training: a step takes one caption an image".into(),
        )?;
        let positions = self.model.qformer.max_positions;
        check(
            self.data.text_len as i64 <= positions,
            "data.text_len",
            format!(
                "{} is beyond the {positions} positions of the model",
                self.data.text_len
            ),
        )?;
        let Some(vit) = self.model.vision.vit() else {
            return check(
                false,
                "model.vision",
                "`features` has no tower; training from images needs one".into(),
            );
        };
        check(
            vit.image_size == self.data.image_size as i64,
            "data.image_size",
            format!(
                "{} differs from the tower's {}",
                self.data.image_size, vit.image_size
            ),
        )
    }
}

/// An error that names the setting, unless what must hold does.
fn check(holds: bool, setting: &'static str, message: String) -> Result<(), ConfigError> {
    match holds {
        true => Ok(()),
        false => Err(ConfigError::Setting { setting, message }),
    }
}

/// Settings of validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Held-out shards: files, globs, `{000..012}` ranges.
    pub shards: Vec<ShardSpec>,
    /// Validates after every so many steps. Default 1000.
    pub every_steps: u64,
    /// Images that are used at most, in whole batches from the beginning of the shards; all are
    /// compared with all their captions, and their features stay on the device meanwhile.
    /// Default 1000.
    pub max_samples: usize,
    /// Candidates per query that the matching head ranks again; 0 for none. Default 16.
    pub rerank: usize,
    /// Images at a time; the contrastive loss compares within a batch. Default: that of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// By which figure the best checkpoint is told, which is kept beside the newest. Default
    /// `itc_mean_recall`.
    pub keep_best: KeepBest,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        ValidationConfig {
            shards: Vec::new(),
            every_steps: 1000,
            max_samples: 1000,
            rerank: 16,
            batch_size: None,
            keep_best: KeepBest::ItcMeanRecall,
        }
    }
}

/// A validation figure that tells the best checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepBest {
    /// No checkpoint is kept for its figure.
    None,
    /// The sum of the three losses, the lower the better.
    Loss,
    /// Mean of TR and IR R@1, 5 and 10 by contrastive score, the higher the better.
    ItcMeanRecall,
    /// The same after re-ranking by the matching head.
    ItmMeanRecall,
}

impl KeepBest {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            KeepBest::None => "none",
            KeepBest::Loss => "loss",
            KeepBest::ItcMeanRecall => "itc_mean_recall",
            KeepBest::ItmMeanRecall => "itm_mean_recall",
        }
    }
}

impl ValidationConfig {
    /// Checks the settings beside those of the training data.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] naming the first that cannot work.
    pub fn validate(&self, data: &LoaderConfig) -> Result<(), ConfigError> {
        let batch_size = self.batch_size(data);
        let checks = [
            (
                !self.shards.is_empty(),
                "validation.shards",
                "names no shard; give held-out shards, or leave the section out".to_string(),
            ),
            (
                self.every_steps > 0,
                "validation.every_steps",
                "must be at least 1".to_string(),
            ),
            (
                (2..=65_536).contains(&batch_size),
                "validation.batch_size",
                format!("{batch_size} is out of range; take 2 to 65536"),
            ),
            (
                self.max_samples >= batch_size,
                "validation.max_samples",
                format!(
                    "{} is less than one batch of {batch_size}",
                    self.max_samples
                ),
            ),
            (
                self.rerank > 0 || self.keep_best != KeepBest::ItmMeanRecall,
                "validation.keep_best",
                "`itm_mean_recall` needs re-ranking, and validation.rerank is 0".to_string(),
            ),
        ];
        for (holds, setting, message) in checks {
            if !holds {
                return Err(ConfigError::Setting { setting, message });
            }
        }
        Ok(())
    }

    /// Images at a time.
    pub fn batch_size(&self, data: &LoaderConfig) -> usize {
        self.batch_size.unwrap_or(data.batch_size)
    }
}

/// What a loss or gradient that is not finite leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// The run ends with an error; the checkpoints before it stand. On a GPU it shows up to 8
    /// steps late, so that no step waits for the device.
    #[default]
    Stop,
    /// The step changes no weight and the run goes on. On a GPU every step then waits for the
    /// device once, after the gradients.
    Skip,
}
