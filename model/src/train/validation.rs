//! Validation while training: losses and retrieval on held-out shards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use qf_config::run::{KeepBest, TrainConfig, ValidationConfig};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};
use tch::{Kind, Tensor};

use super::profile::secs;
use super::record::ValidationRecord;
use super::seed::step_seed;
use crate::blip2::{Blip2Qformer, NegativeSampling, StepInput};
use crate::collective::SingleProcess;
use crate::device::seed;
use crate::error::ModelError;
use crate::eval::{EvalBatch, EvalSource, FeatureBankBuilder, RecallPair};
use crate::host::batch_allocator;

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
/// The figure of a record that tells the best checkpoint, if it has it.
pub(super) fn figure(keep_best: KeepBest, record: &ValidationRecord) -> Option<f32> {
    let value = match keep_best {
        KeepBest::None => None,
        KeepBest::Loss => record.loss,
        KeepBest::ItcMeanRecall => Some(record.itc.mean()),
        KeepBest::ItmMeanRecall => record.itm.as_ref().map(RecallPair::mean),
    };
    value.map(|value| value as f32).filter(|v| v.is_finite())
}

/// Whether `figure` is better than `best`.
pub(super) fn improves(keep_best: KeepBest, figure: f32, best: f32) -> bool {
    match keep_best {
        KeepBest::Loss => figure < best,
        _ => figure > best,
    }
}
