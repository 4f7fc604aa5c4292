//! Steps whose kernels were recorded and run again: the host starts one thing instead of thousands.
//!
//! A GPU takes the kernels of a Q-Former's step faster than the host can start them one by one. All of
//! a step but the tower is recorded, once for each number of text columns, which are rounded up so that
//! there are few.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::non_finite::{Guard, Verdict, Watch};
use super::parallel::rank_seed;
use super::profile::{Phase, Phases};
use super::seed::step_seed;
use super::step::{step_columns, StepFailure, StepResult};
use super::trainer::Trainer;
use crate::accelerator::empty_cache;
use crate::blip2::{NegativeSampling, StepInput};
use crate::collective::SingleProcess;
use crate::device;
use crate::error::ModelError;
use crate::feed::ReadyBatch;
use crate::graph::{Recorder, Recording};
use crate::ops::Rate;

/// Steps that are made before the first is recorded: libraries set themselves up in them.
const STEPS_BEFORE: u64 = 3;

/// Batch size and text columns.
pub(super) type Shape = (i64, i64);

/// The recordings of a run.
pub(super) struct RecordedSteps {
    recorder: Option<Recorder>,
    steps: HashMap<Shape, RecordedStep>,
    /// How often a shape came without a recording.
    seen: HashMap<Shape, u64>,
}

/// A step from tensors that stay where they are to tensors that stay where they are.
struct RecordedStep {
    recording: Recording,
    /// `[B, M, E]` f32.
    features: Tensor,
    /// `[B, T]` i64.
    token_ids: Tensor,
    /// `[B, T]` i64.
    attention_mask: Tensor,
    /// f32 scalar.
    lr: Tensor,
    outcome: Outcome,
}

/// What a step leaves.
struct Outcome {
    /// Sum, contrastive, matching, language-model loss: `[4]`.
    losses: Tensor,
    gradient_norm: Tensor,
    watch: Watch,
}

impl RecordedSteps {
    /// `is_possible`: on a GPU, alone, with a tower that runs ahead, a batch a step, and no loss scale.
    pub(super) fn new(is_possible: bool) -> RecordedSteps {
        let recorder = is_possible.then(Recorder::new).and_then(|recorder| {
            let said = |error| log::info!("training steps are not recorded: {error}");
            recorder.map_err(said).ok()
        });
        RecordedSteps {
            recorder,
            steps: HashMap::new(),
            seen: HashMap::new(),
        }
    }

    /// Drops all recordings, and makes no others.
    pub(super) fn forget(&mut self) {
        self.steps.clear();
        self.recorder = None;
    }

    /// The shape of a step of these batches, if it is to be run from a recording, which may have to be made.
    pub(super) fn takes(&mut self, batches: &[ReadyBatch]) -> Option<Shape> {
        let (Some(_), [batch]) = (&self.recorder, batches) else {
            return None;
        };
        let (Some(_), Ok(shape)) = (&batch.features, shape_of(batch)) else {
            return None;
        };
        if batch.input.image_ids.is_some() {
            // A recording has no place for them.
            return None;
        }
        if self.steps.contains_key(&shape) {
            return Some(shape);
        }
        let is_warm = self.seen.values().sum::<u64>() >= STEPS_BEFORE;
        let seen = self.seen.entry(shape).or_default();
        *seen += 1;
        (is_warm && *seen > 1).then_some(shape)
    }
}

/// Batch size and text columns of a batch's step.
fn shape_of(batch: &ReadyBatch) -> Result<Shape, ModelError> {
    let (rows, _) = batch.input.token_ids.size2()?;
    Ok((rows, step_columns(batch.longest_text(), &batch.input)?))
}

impl Trainer {
    /// [`Trainer::train_step`] from a recording; `None`, with a word in the log, where none can be made:
    /// the step is then still to be made, and no other will be recorded.
    pub(super) fn recorded_step(
        &mut self,
        (batch, shape): (&ReadyBatch, Shape),
        seed: u64,
        lr: f64,
        recorded: &mut RecordedSteps,
        guard: &mut Guard<'_>,
        phases: &mut Phases,
    ) -> Result<Option<StepResult>, StepFailure> {
        batch.use_here()?;
        let Some(features) = &batch.features else {
            return Ok(None);
        };
        let number = step_seed(rank_seed(seed, 0), self.step);
        device::seed(number, self.model.params().device())?;
        if !recorded.steps.contains_key(&shape) {
            if recorded.steps.is_empty() {
                // The recordings have memory of their own.
                empty_cache(self.model.params().device())?;
            }
            let made = phases.time(Phase::Forward, || self.record(shape, features, recorded));
            if let Err(error) = made {
                log::warn!("training steps are not recorded: {error}");
                recorded.forget();
                return Ok(None);
            }
        }
        let Some(step) = recorded.steps.get_mut(&shape) else {
            return Ok(None);
        };
        let result = phases.time(Phase::Forward, || {
            let input = batch.input.text_columns(shape.1)?;
            step.run(features, &input, lr)
        });
        let outcome = result.map_err(|error| StepFailure {
            error: Box::new(error),
            is_half_done: true,
        })?;
        self.model.forget_copies();
        phases.add_flop(self.flop(&batch.text_lengths, shape.1));
        guard.leave(self.step + 1, (&batch.host, &batch.input), outcome.watch)?;
        self.step += 1;
        Ok(Some(StepResult {
            losses: outcome.losses,
            gradient_norm: outcome.gradient_norm,
            verdict: Verdict::Update,
        }))
    }

    /// Records a step of this shape; none of it happens.
    fn record(
        &mut self,
        shape: Shape,
        features: &Tensor,
        recorded: &mut RecordedSteps,
    ) -> Result<(), ModelError> {
        let Some(recorder) = &recorded.recorder else {
            return Ok(());
        };
        let device = features.device();
        let text = [shape.0, shape.1];
        let features = features.f_empty_like()?;
        let token_ids = Tensor::f_zeros(text, (Kind::Int64, device))?;
        let attention_mask = Tensor::f_zeros(text, (Kind::Int64, device))?;
        let lr = Tensor::f_zeros([], (Kind::Float, device))?;
        self.optimizer.zero_grad()?;
        // The recording makes its own copies of the parameters.
        self.model.forget_copies();
        let input = StepInput {
            image_embeds: &features,
            token_ids: &token_ids,
            attention_mask: &attention_mask,
            image_ids: None,
        };
        let made = recorder.record(|| self.whole_step(&input, &lr));
        self.model.forget_copies();
        let (recording, outcome) = made?;
        let step = RecordedStep {
            recording,
            features,
            token_ids,
            attention_mask,
            lr,
            outcome,
        };
        recorded.steps.insert(shape, step);
        Ok(())
    }

    /// A step on image features, nothing of which is looked at by the host.
    fn whole_step(&mut self, input: &StepInput<'_>, lr: &Tensor) -> Result<Outcome, ModelError> {
        self.model.clamp_temperature()?;
        let negatives = NegativeSampling::Multinomial;
        let output = (self.model).forward_losses(input, negatives, &SingleProcess, true)?;
        output.loss.f_backward()?;
        let gradient_norm = self.optimizer.gradient_norm()?;
        let clip = self.optimizer.clip_divisor(&gradient_norm)?;
        self.optimizer
            .step_at(Rate::OnDevice(lr), clip.as_ref(), None)?;
        let losses = [
            &output.loss,
            &output.loss_itc,
            &output.loss_itm,
            &output.loss_lm,
        ];
        Ok(Outcome {
            losses: Tensor::f_stack(&losses, 0)?.f_detach()?,
            watch: Watch::of(&[&output], Some(&gradient_norm))?,
            gradient_norm,
        })
    }
}

impl RecordedStep {
    /// Runs the step; what it leaves is copied, for the next run writes there again.
    fn run(
        &mut self,
        features: &Tensor,
        [token_ids, attention_mask]: &[Tensor; 2],
        lr: f64,
    ) -> Result<Outcome, ModelError> {
        tch::no_grad(|| {
            self.features.f_copy_(features)?;
            self.token_ids.f_copy_(token_ids)?;
            self.attention_mask.f_copy_(attention_mask)?;
            let _ = self.lr.f_fill_(lr)?;
            self.recording.run()?;
            let made = &self.outcome;
            Ok(Outcome {
                losses: made.losses.f_detach_copy()?,
                gradient_norm: made.gradient_norm.f_detach_copy()?,
                watch: Watch {
                    finite: made.watch.finite.f_detach_copy()?,
                    names: made.watch.names.clone(),
                    parts: made.watch.parts.f_detach_copy()?,
                },
            })
        })
    }
}
