//! The training loop, and the folder it writes to.

mod config;
mod profile;
mod record;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use qf_pipeline::{Batch, Loader};
use tch::{Kind, Tensor};

pub use config::{TrainConfig, WeightsConfig};
pub use profile::{Phase, Phases, RunProfile};
pub use record::{MetricsFile, StepRecord};

use crate::blip2::{Blip2Qformer, NegativeSampling, StepInput, StepOutput};
use crate::checkpoint::{self, TrainState};
use crate::collective::SingleProcess;
use crate::error::ModelError;
use crate::host::upload;
use crate::optim::AdamW;
use crate::run_dir::RunDir;

/// Everything that one step changes.
pub struct Trainer {
    /// The network.
    pub model: Blip2Qformer,
    /// Its optimiser.
    pub optimizer: AdamW,
    /// Steps done.
    pub step: u64,
}

/// How a call of [`Trainer::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The stop flag was set; a checkpoint was written.
    Interrupted,
    /// The data ended before the steps did (`data.epochs`); a checkpoint was written.
    OutOfData,
}

impl Trainer {
    /// Trains until the configured step, the end of the data or `stop`, and writes a checkpoint.
    ///
    /// `on_record` sees every logged step.
    ///
    /// # Errors
    /// Whatever stops the loader, the model or a file; [`ModelError::NonFinite`] for a loss that is
    /// no number, naming the step and its samples.
    pub fn run(
        &mut self,
        config: &TrainConfig,
        loader: &mut Loader,
        run_dir: &RunDir,
        stop: &AtomicBool,
        on_record: &mut dyn FnMut(&StepRecord),
    ) -> Result<(Outcome, RunProfile), ModelError> {
        let mut metrics = MetricsFile::open(&run_dir.metrics(), self.step)?;
        let mut phases = Phases::start();
        let mut saved_at = self.step;
        let outcome = loop {
            if self.step >= config.steps {
                break Outcome::Finished;
            }
            if stop.load(Ordering::Relaxed) {
                break Outcome::Interrupted;
            }
            let Some(batch) = phases.time(Phase::Wait, || loader.next_batch())? else {
                break Outcome::OutOfData;
            };
            let lr = config
                .schedule
                .lr(self.step, config.steps, config.steps_per_epoch);
            let output = self.train_step(&batch, config.seed, lr, &mut phases)?;
            phases.end_step(batch.batch_size as u64);
            let logs =
                self.step.is_multiple_of(config.log_every_steps) || self.step == config.steps;
            let saves = self.step.is_multiple_of(config.checkpoint_every_steps);
            if logs || saves || stop.load(Ordering::Relaxed) {
                // Fails on losses that are no numbers: their weights must not be saved.
                let record = record(&output, &batch, self.step, lr, &phases)?;
                if logs {
                    metrics.append(&record)?;
                    on_record(&record);
                }
            }
            if saves {
                self.save(config, loader, run_dir)?;
                saved_at = self.step;
            }
        };
        // Nothing to save without a step: the checkpoint that was resumed from is there.
        if saved_at != self.step {
            self.save(config, loader, run_dir)?;
        }
        Ok((outcome, phases.profile(loader)))
    }

    fn train_step(
        &mut self,
        batch: &Batch,
        seed: u64,
        lr: f64,
        phases: &mut Phases,
    ) -> Result<StepOutput, ModelError> {
        // Dropout and negatives depend on the run's seed and the step alone, so a resumed run draws
        // what the unbroken one drew.
        tch::manual_seed(step_seed(seed, self.step));
        let device = self.model.params().device();
        let input = phases.time(Phase::Upload, || {
            upload(batch, device)?.without_padding_columns(batch)
        })?;
        let output = phases.time(Phase::Forward, || {
            let image_embeds = self.model.encode_image(&input.images)?;
            let step = StepInput {
                image_embeds: &image_embeds,
                token_ids: &input.token_ids,
                attention_mask: &input.attention_mask,
                image_ids: None,
            };
            self.model
                .forward_losses(&step, NegativeSampling::Multinomial, &SingleProcess, true)
        })?;
        phases.time(Phase::Backward, || {
            self.optimizer.zero_grad();
            output.loss.f_backward()
        })?;
        phases.time(Phase::Optimiser, || self.optimizer.step(lr))?;
        self.step += 1;
        Ok(output)
    }

    fn save(
        &self,
        config: &TrainConfig,
        loader: &Loader,
        run_dir: &RunDir,
    ) -> Result<(), ModelError> {
        let state = TrainState::new(self.step, loader.state().clone());
        let folder = run_dir.checkpoints();
        checkpoint::save(
            &folder,
            &self.model,
            &self.optimizer,
            &state,
            config.keep_checkpoints,
        )?;
        Ok(())
    }
}

/// The seed of a step's dropout and negatives: SplitMix64 of both numbers.
fn step_seed(seed: u64, step: u64) -> i64 {
    let mut mixed = seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as i64
}

fn record(
    output: &StepOutput,
    batch: &Batch,
    step: u64,
    lr: f64,
    phases: &Phases,
) -> Result<StepRecord, ModelError> {
    let losses = [
        &output.loss,
        &output.loss_itc,
        &output.loss_itm,
        &output.loss_lm,
    ];
    let losses = Tensor::f_stack(&losses, 0)?
        .f_detach()?
        .f_to_kind(Kind::Double)?;
    let losses = Vec::<f64>::try_from(losses)?;
    let [loss, loss_itc, loss_itm, loss_lm] = losses[..] else {
        return Err(ModelError::Input {
            what: "losses",
            message: format!("expected 4 numbers, got {}", losses.len()),
        });
    };
    if !loss.is_finite() {
        let samples = batch.ids.iter().map(|id| id.to_string()).collect();
        return Err(ModelError::NonFinite {
            step,
            loss_itc,
            loss_itm,
            loss_lm,
            samples,
        });
    }
    let counters = batch.counters();
    Ok(StepRecord {
        step,
        epoch: batch.epoch,
        loss,
        loss_itc,
        loss_itm,
        loss_lm,
        lr,
        images_per_s: phases.images_per_s(),
        data_wait_share: phases.wait_share(),
        samples_read: counters.read,
        samples_skipped: counters.skipped_total(),
    })
}

/// Seconds since `start`.
fn secs(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
