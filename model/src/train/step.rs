//! One step: batches in, weights changed.

use qf_pipeline::Batch;
use tch::{Kind, Tensor};

use super::non_finite::{Guard, MicroStep, StepView, Verdict};
use super::{step_seed, Phase, Phases, Trainer};
use crate::blip2::{NegativeSampling, StepInput};
use crate::collective::SingleProcess;
use crate::error::ModelError;
use crate::host::{text_lengths, upload};

/// What a step leaves for the log.
pub(super) struct StepResult {
    /// Sum of the losses, contrastive, matching, language model; means over the step's batches.
    /// `[4]`, on the device.
    pub(super) losses: Tensor,
    /// Norm of all gradients together before clipping, a scalar on the device.
    pub(super) gradient_norm: Tensor,
    pub(super) verdict: Verdict,
}

impl Trainer {
    /// Makes a step on `batches` at rate `lr`: forward and backward on each, and one update from the
    /// mean of their gradients if `guard` finds all numbers finite.
    ///
    /// The contrastive loss and the negatives see one batch at a time.
    pub(super) fn train_step(
        &mut self,
        batches: &[Batch],
        seed: u64,
        lr: f64,
        guard: &mut Guard,
        phases: &mut Phases,
    ) -> Result<StepResult, ModelError> {
        // Dropout and negatives depend on the run's seed and the step alone, so a resumed run draws
        // what the unbroken one drew.
        tch::manual_seed(step_seed(seed, self.step));
        self.model.clamp_temperature()?;
        self.optimizer.zero_grad()?;
        let mut done = Vec::with_capacity(batches.len());
        for batch in batches {
            done.push(self.accumulate(batch, batches.len(), phases)?);
        }
        phases.time(Phase::Optimiser, || {
            let scaled_norm = self.optimizer.gradient_norm()?;
            let gradient_norm = match &self.scaler {
                Some(scaler) => scaled_norm.f_divide(scaler.scale())?,
                None => scaled_norm.shallow_clone(),
            };
            let verdict = guard.judge(&StepView {
                step: self.step + 1,
                batches: &done,
                model: &self.model,
                // Under a loss scale an infinite gradient is nothing but a scale too large.
                gradient_norm: self.scaler.is_none().then_some(&gradient_norm),
            })?;
            if let Verdict::Update = verdict {
                self.update(lr, &scaled_norm, &gradient_norm)?;
            }
            let losses = done.iter().map(|done| {
                let output = &done.output;
                let losses = [
                    &output.loss,
                    &output.loss_itc,
                    &output.loss_itm,
                    &output.loss_lm,
                ];
                Ok(Tensor::f_stack(&losses, 0)?.f_detach()?)
            });
            let losses = losses.collect::<Result<Vec<Tensor>, ModelError>>()?;
            self.step += 1;
            Ok(StepResult {
                losses: Tensor::f_stack(&losses, 0)?.f_mean_dim([0i64].as_slice(), false, None)?,
                gradient_norm,
                verdict,
            })
        })
    }

    /// Forward and backward of one batch out of `parts`.
    fn accumulate<'a>(
        &self,
        batch: &'a Batch,
        parts: usize,
        phases: &mut Phases,
    ) -> Result<MicroStep<'a>, ModelError> {
        let device = self.model.params().device();
        let lengths = text_lengths(batch);
        let input = phases.time(Phase::Upload, || {
            upload(batch, device)?.without_padding_columns(batch)
        })?;
        let (images, output) = phases.time(Phase::Forward, || {
            let images = self.model.encode_training_image(&input.images)?;
            let step = StepInput {
                image_embeds: &images.features,
                token_ids: &input.token_ids,
                attention_mask: &input.attention_mask,
                image_ids: None,
                lengths: Some(&lengths),
            };
            let negatives = NegativeSampling::Multinomial;
            let output = self
                .model
                .forward_losses(&step, negatives, &SingleProcess, true)?;
            Ok::<_, ModelError>((images, output))
        })?;
        phases.time(Phase::Backward, || {
            let mut loss = output.loss.shallow_clone();
            if parts > 1 {
                loss = loss.f_divide_scalar(parts as f64)?;
            }
            if let Some(scaler) = &self.scaler {
                loss = loss.f_mul(scaler.scale())?;
            }
            loss.f_backward()?;
            self.model.finish_backward(&images)
        })?;
        Ok(MicroStep {
            batch,
            input,
            image_embeds: images.features.f_detach()?,
            output,
        })
    }

    /// The optimiser's step, clipped and unscaled.
    fn update(
        &mut self,
        lr: f64,
        scaled_norm: &Tensor,
        gradient_norm: &Tensor,
    ) -> Result<(), ModelError> {
        let clip = self.optimizer.clip_divisor(gradient_norm)?;
        let Some(scaler) = &mut self.scaler else {
            return self.optimizer.step_scaled(lr, clip.as_ref(), None);
        };
        let overflow = scaled_norm
            .f_isfinite()?
            .f_logical_not()?
            .f_to_kind(Kind::Float)?;
        let divisor = match clip {
            Some(clip) => scaler.scale().f_mul(&clip)?,
            None => scaler.scale().shallow_clone(),
        };
        self.optimizer
            .step_scaled(lr, Some(&divisor), Some(&overflow))?;
        scaler.update(&overflow)
    }
}
