//! Validation while training: losses and retrieval on held-out shards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use qf_pipeline::source::{ShardLocation, ShardSpec};
use qf_pipeline::stop::Stop;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{secs, step_seed, TrainConfig};
use crate::blip2::{Blip2Qformer, NegativeSampling, StepInput};
use crate::collective::SingleProcess;
use crate::device::seed;
use crate::error::ModelError;
use crate::eval::{EvalBatch, EvalSource, FeatureBankBuilder, RecallPair};
use crate::host::batch_allocator;

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

    /// The figure of a record, if it has it.
    pub(super) fn figure(self, record: &ValidationRecord) -> Option<f32> {
        let value = match self {
            KeepBest::None => None,
            KeepBest::Loss => record.loss,
            KeepBest::ItcMeanRecall => Some(record.itc.mean()),
            KeepBest::ItmMeanRecall => record.itm.as_ref().map(RecallPair::mean),
        };
        value.map(|value| value as f32).filter(|v| v.is_finite())
    }

    /// Whether `figure` is better than `best`.
    pub(super) fn improves(self, figure: f32, best: f32) -> bool {
        match self {
            KeepBest::Loss => figure < best,
            _ => figure > best,
        }
    }
}

impl ValidationConfig {
    /// Checks the settings beside those of the training data.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first that cannot work.
    pub fn validate(&self, data: &LoaderConfig) -> Result<(), ModelError> {
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
                return Err(ModelError::Config { setting, message });
            }
        }
        Ok(())
    }

    fn batch_size(&self, data: &LoaderConfig) -> usize {
        self.batch_size.unwrap_or(data.batch_size)
    }
}

/// One validation, as logged. Losses are `None` where no batch had two images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Steps done.
    pub step: u64,
    /// Sum of the three losses, mean over the batches weighted by their images: without dropout, on
    /// the first caption of each image, with negatives drawn alike at every validation.
    pub loss: Option<f64>,
    /// Contrastive loss.
    pub loss_itc: Option<f64>,
    /// Matching loss.
    pub loss_itm: Option<f64>,
    /// Language-model loss.
    pub loss_lm: Option<f64>,
    /// Images used.
    pub images: usize,
    /// Their captions.
    pub captions: usize,
    /// Samples that could not be used.
    pub skipped: u64,
    /// Candidates that were re-ranked per query.
    pub rerank: usize,
    /// Recall by contrastive score.
    pub itc: RecallPair,
    /// Recall after re-ranking by the matching head.
    pub itm: Option<RecallPair>,
    /// Time it took.
    pub secs: f64,
}

/// Validates a model on held-out shards.
pub struct Validator {
    config: ValidationConfig,
    data: LoaderConfig,
    shards: Vec<ShardLocation>,
    tokenizer: Arc<CaptionTokenizer>,
    seed: u64,
}

impl Validator {
    /// A validator of the run `config` as `validation` says, on `shards`.
    pub fn new(
        config: &TrainConfig,
        validation: &ValidationConfig,
        shards: Vec<ShardLocation>,
        tokenizer: Arc<CaptionTokenizer>,
    ) -> Validator {
        let data = LoaderConfig {
            batch_size: validation.batch_size(&config.data),
            ..config.data.clone()
        };
        Validator {
            config: validation.clone(),
            data: data.for_evaluation(),
            shards,
            tokenizer,
            seed: config.seed,
        }
    }

    /// Whether a validation follows step number `step`.
    pub(super) fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.every_steps)
    }

    /// By which figure the best checkpoint is told.
    pub(super) fn keep_best(&self) -> KeepBest {
        self.config.keep_best
    }

    /// Validates `model`, which has made `step` steps.
    ///
    /// It draws from torch's generator, which a training step seeds anew, and changes nothing else:
    /// training goes on with the numbers it would have had.
    ///
    /// # Errors
    /// Whatever stops the loader or the model; [`ModelError::Stopped`] soon after `stop` is set.
    pub fn run(
        &self,
        model: &Blip2Qformer,
        step: u64,
        stop: &Arc<AtomicBool>,
    ) -> Result<ValidationRecord, ModelError> {
        let started = Instant::now();
        let go_on = || match stop.load(Ordering::Relaxed) {
            true => Err(ModelError::Stopped),
            false => Ok(()),
        };
        let device = model.params().device();
        let mut loader = Loader::builder(self.data.clone())
            .shards(self.shards.clone())
            .allocator(batch_allocator(device))
            .stop(&Stop::within(stop.clone()))
            .batches(self.tokenizer.clone())
            // What a stop ended is no fault of the data.
            .or_else(|error| go_on().and(Err(error.into())))?;
        let mut builder = FeatureBankBuilder::default();
        let mut losses = MeanLosses::default();
        let mut images = 0;
        let source: &mut dyn EvalSource = &mut loader;
        loop {
            let batch = source.next_batch(device);
            go_on()?;
            let Some(batch) = batch? else {
                break;
            };
            let size = batch.input.images.size()[0];
            images += size as usize;
            if images > self.config.max_samples {
                break;
            }
            let embeds = builder.add(model, &batch.input, &batch.caption_image)?;
            if size >= 2 {
                seed(step_seed(self.seed, losses.batches), device)?;
                losses.add(model, &batch, &embeds, size)?;
            }
        }
        let skipped = source.skipped();
        let bank = builder.finish()?;
        let report = bank.evaluate(model, self.config.rerank, skipped, &mut || go_on())?;
        let [loss, loss_itc, loss_itm, loss_lm] = losses.means()?;
        Ok(ValidationRecord {
            step,
            loss,
            loss_itc,
            loss_itm,
            loss_lm,
            images: report.images,
            captions: report.captions,
            skipped,
            rerank: report.rerank,
            itc: report.itc,
            itm: report.itm,
            secs: secs(started),
        })
    }
}

#[derive(Default)]
struct MeanLosses {
    /// Total, contrastive, matching, language-model: sums weighted by images, on the device.
    sums: Option<Tensor>,
    images: i64,
    batches: u64,
}

impl MeanLosses {
    fn add(
        &mut self,
        model: &Blip2Qformer,
        batch: &EvalBatch,
        embeds: &Tensor,
        size: i64,
    ) -> Result<(), ModelError> {
        let device = embeds.device();
        let first = first_captions(&batch.caption_image, size);
        let first = Tensor::f_from_slice(&first)?.f_to_device(device)?;
        let ids = batch.input.token_ids.f_index_select(0, &first)?;
        let mask = batch.input.attention_mask.f_index_select(0, &first)?;
        let input = StepInput {
            image_embeds: embeds,
            token_ids: &ids,
            attention_mask: &mask,
            image_ids: None,
        };
        let negatives = NegativeSampling::Multinomial;
        let output =
            tch::no_grad(|| model.forward_losses(&input, negatives, &SingleProcess, false))?;
        let losses = [
            output.loss,
            output.loss_itc,
            output.loss_itm,
            output.loss_lm,
        ];
        let weighted = Tensor::f_stack(&losses, 0)?
            .f_to_kind(Kind::Double)?
            .f_mul_scalar(size)?;
        self.sums = Some(match self.sums.take() {
            Some(sums) => sums.f_add(&weighted)?,
            None => weighted,
        });
        self.images += size;
        self.batches += 1;
        Ok(())
    }

    fn means(&self) -> Result<[Option<f64>; 4], ModelError> {
        let Some(sums) = &self.sums else {
            return Ok([None; 4]);
        };
        let sums = Vec::<f64>::try_from(sums)?;
        let mean = |index: usize| {
            let sum: Option<&f64> = sums.get(index);
            sum.map(|sum| sum / self.images as f64)
                .filter(|mean| mean.is_finite())
        };
        Ok([0, 1, 2, 3].map(mean))
    }
}

/// The row of the first caption of each of `images` images.
fn first_captions(caption_image: &[u32], images: i64) -> Vec<i64> {
    (0..images)
        .filter_map(|image| {
            caption_image
                .iter()
                .position(|&of| i64::from(of) == image)
                .map(|row| row as i64)
        })
        .collect()
}
