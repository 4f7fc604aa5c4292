//! One step: batches in, weights changed.

use tch::{Device, Kind, Tensor};

use super::non_finite::{Guard, MicroStep, StepView, Verdict};
use super::parallel::{rank_seed, Peers};
use super::profile::{Phase, Phases};
use super::seed::step_seed;
use super::trainer::Trainer;
use crate::blip2::{Blip2Qformer, NegativeSampling, StepInput};
use crate::device;
use crate::error::ModelError;
use crate::feed::ReadyBatch;
use crate::flops::{StepFlops, StepShape};
use crate::host::DeviceBatch;
use crate::ops::round_up;

/// What a step leaves for the log.
pub(super) struct StepResult {
    /// Sum of the losses, contrastive, matching, language model; means over the step's batches.
    /// `[4]`, on the device.
    pub(super) losses: Tensor,
    /// Norm of all gradients together before clipping, a scalar on the device.
    pub(super) gradient_norm: Tensor,
    pub(super) verdict: Verdict,
}

/// Why a step was not made.
#[derive(Debug)]
pub(super) struct StepFailure {
    pub(super) error: Box<ModelError>,
    /// Some weights may have changed: they are those of no step.
    pub(super) is_half_done: bool,
}

impl From<ModelError> for StepFailure {
    fn from(error: ModelError) -> Self {
        StepFailure {
            error: Box::new(error),
            is_half_done: false,
        }
    }
}

impl Trainer {
    /// Makes a step on `batches` at rate `lr`: forward and backward on each, and one update from the
    /// mean of their gradients if `guard` finds all numbers finite.
    ///
    /// The contrastive loss and the negatives see one batch at a time.
    pub(super) fn train_step(
        &mut self,
        batches: Vec<ReadyBatch>,
        seed: u64,
        lr: f64,
        peers: &Peers<'_>,
        guard: &mut Guard<'_>,
        phases: &mut Phases,
    ) -> Result<StepResult, StepFailure> {
        // Dropout and negatives depend on the run's seed, the rank and the step alone, so a resumed
        // run draws what the unbroken one drew.
        let number = step_seed(rank_seed(seed, peers.ranks.rank()), self.step);
        device::seed(number, self.model.params().device())?;
        self.model.clamp_temperature()?;
        self.optimizer.zero_grad()?;
        let parts = batches.len();
        let mut done = Vec::with_capacity(parts);
        for (index, batch) in batches.into_iter().enumerate() {
            done.push(self.accumulate(batch, (index, parts), peers, phases)?);
        }
        phases.time(Phase::Optimiser, || {
            let scaled_norm = self.optimizer.gradient_norm()?;
            let gradient_norm = match &self.scaler {
                Some(scaler) => scaled_norm
                    .f_divide(scaler.scale())
                    .map_err(ModelError::from)?,
                None => scaled_norm.shallow_clone(),
            };
            let verdict = guard.judge(&StepView {
                step: self.step + 1,
                batches: &done,
                model: &self.model,
                // Under a loss scale an infinite gradient is nothing but a scale too large.
                gradient_norm: self.scaler.is_none().then_some(&gradient_norm),
            })?;
            let norms = (&scaled_norm, &gradient_norm);
            let losses = self.finish_step(&verdict, lr, norms, peers, &done);
            let losses = losses.map_err(|error| StepFailure {
                error: Box::new(error),
                is_half_done: true,
            })?;
            Ok(StepResult {
                losses,
                gradient_norm,
                verdict,
            })
        })
    }

    /// The update, where there is one; returns the means of the losses, `[4]`.
    fn finish_step(
        &mut self,
        verdict: &Verdict,
        lr: f64,
        (scaled_norm, gradient_norm): (&Tensor, &Tensor),
        peers: &Peers<'_>,
        done: &[MicroStep],
    ) -> Result<Tensor, ModelError> {
        if let Verdict::Update = verdict {
            self.update(lr, scaled_norm, gradient_norm)?;
            self.optimizer.share_parameters(peers.ranks)?;
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
        let means = Tensor::f_stack(&losses, 0)?.f_mean_dim([0i64].as_slice(), false, None)?;
        self.step += 1;
        Ok(means)
    }

    /// Forward and backward of the batch `index` of `parts`. The last one's gradients are the mean
    /// over all ranks, and over the parts.
    fn accumulate(
        &self,
        batch: ReadyBatch,
        (index, parts): (usize, usize),
        peers: &Peers<'_>,
        phases: &mut Phases,
    ) -> Result<MicroStep, ModelError> {
        batch.use_here()?;
        let longest = (peers.columns.get(index).copied()).unwrap_or_else(|| batch.longest_text());
        let ReadyBatch {
            host,
            input,
            features,
            text_lengths,
            ..
        } = batch;
        let columns = step_columns(longest, &input)?;
        let input = input.with_text_columns(columns)?;
        phases.add_flop(self.flop(&text_lengths, columns));
        let (images, output) = phases.time(Phase::Forward, || {
            let images = match features {
                Some(features) => Blip2Qformer::given_training_image(features),
                None => self.model.encode_training_image(&input.images)?,
            };
            let step = StepInput {
                image_embeds: &images.features,
                token_ids: &input.token_ids,
                attention_mask: &input.attention_mask,
                image_ids: input.image_ids.as_ref(),
            };
            let negatives = NegativeSampling::Multinomial;
            let output = self
                .model
                .forward_losses(&step, negatives, peers.ranks, true)?;
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
            let is_last = index + 1 == parts;
            if is_last {
                peers.mean.prepare(&self.model, &loss)?;
            }
            loss.f_backward()?;
            self.model.finish_backward(&images)?;
            match is_last {
                true => peers.mean.finish(&self.model),
                false => Ok(()),
            }
        })?;
        Ok(MicroStep {
            batch: host,
            input,
            image_embeds: images.features.f_detach()?,
            output,
        })
    }

    /// Operations of forward and backward on a batch whose texts have `text_len` columns.
    pub(super) fn flop(&self, lengths: &[i64], text_len: i64) -> f64 {
        let config = self.model.config();
        // A run has images, so it has a tower.
        let image_tokens = config.vision.vit().map_or(0, |vit| vit.tokens());
        let shape = StepShape {
            lengths,
            text_len,
            image_tokens,
        };
        StepFlops::step(config, &shape, self.model.applied_compute()).total()
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

/// Text columns of a step whose longest text, of any rank, has `longest` tokens. A GPU gets a multiple
/// of 8, as the masks of its attention want it; masked columns change no loss.
pub(super) fn step_columns(longest: i64, input: &DeviceBatch) -> Result<i64, ModelError> {
    const MULTIPLE: i64 = 8;
    let (_, all) = input.token_ids.size2()?;
    Ok(match input.token_ids.device() {
        Device::Cuda(_) => round_up(longest, MULTIPLE).min(all),
        _ => longest,
    })
}

#[cfg(test)]
mod tests {
    use super::super::non_finite::tests::setup_of;
    use super::super::{LossScaler, OnNonFinite};
    use super::*;
    use crate::checkpoint::ScalerState;
    use crate::torch_profiler::{Recorded, TorchProfiler};
    use crate::{AdamW, AdamWConfig, Precision};

    /// With two pairs the negatives are certain, whatever other tests draw from torch's generator.
    const PAIR: usize = 2;

    fn guard(folder: &std::path::Path) -> Guard<'static> {
        Guard::new(OnNonFinite::Stop, 1, folder.join("bad"), Device::Cpu)
    }

    fn gradients(trainer: &Trainer) -> Vec<Tensor> {
        let params = trainer.model.params().trainable();
        params.map(|param| param.tensor.grad().copy()).collect()
    }

    fn close(a: &[Tensor], b: &[Tensor], tolerance: f64) -> bool {
        a.iter().zip(b).all(|(a, b)| {
            // Some gradients are round-off, or differences of large numbers.
            let scale = b.abs().max().double_value(&[]).max(0.1);
            (a - b).abs().max().double_value(&[]) <= tolerance * scale
        })
    }

    #[test]
    fn several_batches_make_one_step_from_the_mean_of_their_gradients() {
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, mut feed) = setup_of(folder.path(), PAIR);
        let other = tempfile::tempdir().unwrap();
        let (_, mut again) = setup_of(other.path(), PAIR);
        let mut phases = Phases::start();
        let mut sums: Vec<Tensor> = Vec::new();
        let mut losses = 0.0;
        for _ in 0..3 {
            let batch = feed.next_batch().unwrap().unwrap();
            trainer.optimizer.zero_grad().unwrap();
            let done = trainer.accumulate(batch, (0, 1), &Peers::SINGLE, &mut phases);
            let done = done.unwrap();
            losses += done.output.loss.double_value(&[]);
            let gradients = gradients(&trainer);
            sums = match sums.is_empty() {
                true => gradients,
                false => sums.iter().zip(&gradients).map(|(a, b)| a + b).collect(),
            };
        }
        let means: Vec<Tensor> = sums.iter().map(|sum| sum / 3.0).collect();
        let done = trainer
            .train_step(
                (0..3)
                    .map(|_| again.next_batch().unwrap().unwrap())
                    .collect(),
                3,
                0.0,
                &Peers::SINGLE,
                &mut guard(folder.path()),
                &mut phases,
            )
            .unwrap();
        assert!(close(&gradients(&trainer), &means, 1e-4));
        assert!((done.losses.double_value(&[0]) - losses / 3.0).abs() < 1e-5);
        let squares: f64 = means
            .iter()
            .map(|mean| mean.square().sum(Kind::Double).double_value(&[]))
            .sum();
        let norm = done.gradient_norm.double_value(&[]);
        assert!((norm - squares.sqrt()).abs() < 1e-4 * norm);
        assert_eq!(trainer.step, 1);
    }

    /// Operators whose result the host waits for. With one of them in a step a GPU runs dry, and the step
    /// cannot be recorded.
    const WAITING: [&str; 7] = [
        "aten::item",
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::nonzero",
        "aten::masked_select",
        "aten::equal",
        "aten::_unique2",
    ];

    /// On the CPU in 16 bits a step takes the path that it takes on a GPU.
    #[test]
    fn nothing_in_a_step_waits_for_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, mut feed) = setup_of(folder.path(), PAIR);
        let config = AdamWConfig {
            max_grad_norm: Some(1.0),
            ema_decay: Some(0.9),
            ..AdamWConfig::default()
        };
        let mut steps = |precision: Precision| -> Vec<String> {
            trainer.model.set_precision(precision).unwrap();
            trainer.optimizer = AdamW::new(trainer.model.params(), &config).unwrap();
            let mut guard = guard(folder.path()).deferring();
            let profiler = TorchProfiler::start(Device::Cpu, Recorded::Operators).unwrap();
            for _ in 0..2 {
                let batches = vec![feed.next_batch().unwrap().unwrap()];
                let phases = &mut Phases::start();
                trainer
                    .train_step(batches, 3, 1e-3, &Peers::SINGLE, &mut guard, phases)
                    .map_err(|failure| failure.error)
                    .unwrap();
            }
            let operations = profiler.stop(Device::Cpu).unwrap();
            // On the CPU alone the fused optimiser reads the number of each parameter's steps.
            let mut in_adamw = false;
            let names = operations.names().filter(|&name| {
                let reads = ["aten::item", "aten::_local_scalar_dense"].contains(&name);
                in_adamw = name == "aten::_fused_adamw_" || in_adamw && reads;
                !(in_adamw && reads)
            });
            names.map(str::to_string).collect()
        };
        let names = steps(Precision::Bf16);
        assert!(names.iter().any(|name| name == "aten::addmm"), "{names:?}");
        for waiting in WAITING {
            assert!(!names.iter().any(|name| name == waiting), "{waiting}");
        }
        // In 32 bits the CPU does look, for padding: the recording shows it.
        let names = steps(Precision::F32);
        assert!(names.iter().any(|name| name == "aten::nonzero"));
    }

    /// A scale that overflows nowhere here.
    const FITTING: ScalerState = ScalerState {
        scale: 64.0,
        good_steps: 0,
    };

    /// Parameters after three steps under these settings.
    fn trained(precision: Precision, config: &AdamWConfig) -> (Vec<Tensor>, f64, Option<f64>) {
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, mut feed) = setup_of(folder.path(), PAIR);
        trainer.model.set_precision(precision).unwrap();
        trainer.optimizer = AdamW::new(trainer.model.params(), config).unwrap();
        if precision == Precision::F16 {
            trainer.scaler = Some(LossScaler::new(Some(FITTING), Device::Cpu).unwrap());
        }
        let mut guard = guard(folder.path());
        let mut loss = f64::NAN;
        for _ in 0..3 {
            let batch = feed.next_batch().unwrap().unwrap();
            let done = trainer
                .train_step(
                    vec![batch],
                    3,
                    1e-3,
                    &Peers::SINGLE,
                    &mut guard,
                    &mut Phases::start(),
                )
                .unwrap();
            loss = done.losses.double_value(&[0]);
        }
        let params = trainer.model.params().trainable();
        let scale = trainer.scaler.map(|scaler| scaler.state().unwrap().scale);
        (
            params.map(|p| p.tensor.detach().copy()).collect(),
            loss,
            scale,
        )
    }

    #[test]
    fn sixteen_bit_products_stay_near_and_parameters_stay_in_32() {
        let config = AdamWConfig::default();
        let (exact, loss, _) = trained(Precision::F32, &config);
        for precision in [Precision::Bf16, Precision::F16] {
            let (params, low_loss, scale) = trained(precision, &config);
            assert!(
                (loss - low_loss).abs() < 0.05 * loss,
                "{precision:?} {loss} {low_loss}"
            );
            assert!(params.iter().all(|param| param.kind() == Kind::Float));
            assert!(
                !close(&params, &exact, 1e-9),
                "{precision:?} changed nothing"
            );
            assert_eq!(scale.is_some(), precision == Precision::F16);
        }
    }

    #[test]
    fn clipping_changes_steps_only_where_it_bites() {
        let with = |max_grad_norm| AdamWConfig {
            max_grad_norm,
            eps: 1e-2,
            ..AdamWConfig::default()
        };
        let (free, _, _) = trained(Precision::F32, &with(None));
        let (loose, _, _) = trained(Precision::F32, &with(Some(1e6)));
        let (tight, _, _) = trained(Precision::F32, &with(Some(1e-3)));
        assert!(close(&loose, &free, 1e-7));
        assert!(!close(&tight, &free, 1e-5));
    }
}
