//! One step: batch in, weights changed.

use qf_pipeline::Batch;

use super::non_finite::{Guard, StepView, Verdict};
use super::{step_seed, Phase, Phases, Trainer};
use crate::blip2::{NegativeSampling, StepInput, StepOutput};
use crate::collective::SingleProcess;
use crate::error::ModelError;
use crate::host::{text_lengths, upload};

impl Trainer {
    /// Makes a step on `batch` at rate `lr`: forward, backward, and the update if `guard` finds all
    /// numbers finite.
    pub(super) fn train_step(
        &mut self,
        batch: &Batch,
        seed: u64,
        lr: f64,
        guard: &mut Guard,
        phases: &mut Phases,
    ) -> Result<(StepOutput, Verdict), ModelError> {
        // Dropout and negatives depend on the run's seed and the step alone, so a resumed run draws
        // what the unbroken one drew.
        tch::manual_seed(step_seed(seed, self.step));
        let device = self.model.params().device();
        let lengths = text_lengths(batch);
        let input = phases.time(Phase::Upload, || {
            upload(batch, device)?.without_padding_columns(batch)
        })?;
        let (image_embeds, output) = phases.time(Phase::Forward, || {
            let image_embeds = self.model.encode_image(&input.images)?;
            let step = StepInput {
                image_embeds: &image_embeds,
                token_ids: &input.token_ids,
                attention_mask: &input.attention_mask,
                image_ids: None,
                lengths: Some(&lengths),
            };
            let negatives = NegativeSampling::Multinomial;
            let output = self
                .model
                .forward_losses(&step, negatives, &SingleProcess, true)?;
            Ok::<_, ModelError>((image_embeds, output))
        })?;
        phases.time(Phase::Backward, || {
            self.optimizer.zero_grad()?;
            output.loss.f_backward().map_err(ModelError::from)
        })?;
        let verdict = phases.time(Phase::Optimiser, || {
            let verdict = guard.judge(&StepView {
                step: self.step + 1,
                batch,
                input: &input,
                image_embeds: &image_embeds,
                output: &output,
                model: &self.model,
            })?;
            if let Verdict::Update = verdict {
                self.optimizer.step(lr)?;
            }
            Ok::<_, ModelError>(verdict)
        })?;
        self.step += 1;
        Ok((output, verdict))
    }
}
