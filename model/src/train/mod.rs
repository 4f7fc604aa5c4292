//! The training loop, and the folder it writes to.

mod config;
mod memory;
mod non_finite;
mod parallel;
mod profile;
mod record;
mod scaler;
mod step;
mod step_trace;
#[cfg(test)]
mod tests;
mod validation;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use qf_pipeline::loader::LoaderState;
use tch::{Kind, Tensor};

pub use config::{MixedSet, RemoteConfig, TrainConfig, WeightsConfig};
pub use non_finite::OnNonFinite;
pub use parallel::loader_state;
pub use profile::{Phase, Phases, Roofline, RunProfile};
pub use record::{MetricsFile, MetricsRecord, SkippedRecord, StepRecord};
pub use scaler::LossScaler;
pub use step_trace::{StepTrace, TraceReport};
pub use validation::{KeepBest, ValidationConfig, ValidationRecord, Validator};

use crate::blip2::Blip2Qformer;
use crate::checkpoint::{
    BestCheckpoint, CheckpointWriter, RandomState, Retention, SchedulePosition, TrainState,
};
use crate::collective::Ranks;
use crate::error::ModelError;
use crate::feed::{DeviceFeed, ReadyBatch};
use crate::host::text_lengths;
use crate::optim::AdamW;
use crate::run_dir::RunDir;
use non_finite::{Guard, Verdict};
use parallel::{GradientMean, Peers};
use profile::Place;
use step::StepResult;

/// Everything that one step changes.
pub struct Trainer {
    /// The network.
    pub model: Blip2Qformer,
    /// Its optimiser.
    pub optimizer: AdamW,
    /// The loss scale, with `precision = "f16"`.
    pub scaler: Option<LossScaler>,
    /// Steps done.
    pub step: u64,
    /// The checkpoint of the best validation figure so far.
    pub best: Option<BestCheckpoint>,
}

/// What a run reads and writes beside the trainer itself.
pub struct RunContext<'a> {
    /// The resolved configuration.
    pub config: &'a TrainConfig,
    /// Where batches come from.
    pub feed: &'a mut DeviceFeed,
    /// Validation, where it is configured.
    pub validator: Option<&'a Validator>,
    /// The other processes of the run. Each calls [`Trainer::run`] with a feed, a validator and a
    /// configuration like this one's; rank 0 alone writes to the folder, except for what is kept of a
    /// broken batch.
    pub ranks: &'a dyn Ranks,
    /// The folder of the run.
    pub run_dir: &'a RunDir,
    /// Set from outside to end the run after the present step.
    pub stop: &'a AtomicBool,
    /// Records the first steps, where that is wanted.
    pub trace: Option<StepTrace>,
    /// Sees every line of metrics.jsonl, on rank 0.
    pub on_record: &'a mut dyn FnMut(&MetricsRecord),
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

/// What a call of [`Trainer::run`] leaves.
pub struct RunEnd {
    /// Why it ended.
    pub outcome: Outcome,
    /// Where the time went.
    pub profile: RunProfile,
    /// This rank's place in the data, after the last batch that was used; see [`loader_state`].
    pub data: LoaderState,
}

impl Trainer {
    /// Trains until the configured step, the end of the data or `stop`, and writes a checkpoint.
    ///
    /// # Errors
    /// Whatever stops the loader, the model or a file, that of the checkpoint writer included;
    /// [`ModelError::NonFinite`] for a loss or gradient that is no number, naming the step and its
    /// samples. No checkpoint holds weights from behind such a step.
    pub fn run(&mut self, context: RunContext<'_>) -> Result<RunEnd, ModelError> {
        let RunContext {
            config,
            feed,
            validator,
            ranks,
            run_dir,
            stop,
            mut trace,
            on_record,
        } = context;
        let mut output = match ranks.is_first() {
            true => Some(Output::open(config, run_dir, self.step)?),
            false => None,
        };
        let due = |step: u64| validator.filter(|validator| validator.is_due(step));
        // A run that was stopped while it validated makes up for that.
        let owes = output
            .as_ref()
            .is_some_and(|output| self.step > 0 && !output.metrics.is_validated(self.step));
        let owes = ranks.max(&[i64::from(owes)])? != [0];
        let mut validation = due(self.step).filter(|_| owes);
        let mut guard = Guard::new(
            config.on_non_finite,
            config.max_skips_in_a_row,
            run_dir.non_finite(),
            self.model.params().device(),
        )
        .among(ranks);
        let mut peers = Peers {
            ranks,
            mean: GradientMean::new(ranks, &self.model)?,
            columns: Vec::new(),
        };
        let device = self.model.params().device();
        let mut phases = Phases::start();
        phases.set_trace(trace.as_ref().and_then(StepTrace::trace));
        let mut saves = false;
        let mut saved_at = self.step;
        let mut stops = false;
        // Batches that were taken and not used come again when the run goes on.
        let mut data = feed.state().clone();
        let outcome = loop {
            if let Some(output) = &mut output {
                output.writer.poll()?;
            }
            let is_last = self.step >= config.steps;
            if let Some(validator) = validation.take() {
                guard.settle()?;
                let never = AtomicBool::new(false);
                // Nothing would make up for the last one.
                let stop = if is_last { &never } else { stop };
                let mut found = [0, 0];
                if let Some(output) = &mut output {
                    let record = phases.time(Phase::Validate, || {
                        validator.run(&self.model, self.step, stop)
                    });
                    match record {
                        Err(ModelError::Stopped) => found[0] = 1,
                        record => {
                            let record = record?;
                            let is_best = self.is_best(validator.keep_best(), &record);
                            found[1] = i64::from(is_best);
                            output.log(MetricsRecord::Validation(record), on_record)?;
                        }
                    }
                }
                // Rank 0 validates alone; the others wait here.
                let found = ranks.max(&found)?;
                if found.first() == Some(&1) {
                    break Outcome::Interrupted;
                }
                saves |= found.last() == Some(&1);
            }
            if saves {
                guard.settle()?;
                let state = self.state(config, &data, ranks)?;
                phases.time(Phase::Snapshot, || {
                    self.save(output.as_mut(), config, state, ranks)
                })?;
                saved_at = self.step;
            }
            if is_last {
                break Outcome::Finished;
            }
            // With other ranks, as all knew before the last step: each may be told at another time.
            if stops || (ranks.world_size() == 1 && stop.load(Ordering::Relaxed)) {
                break Outcome::Interrupted;
            }
            phases.begin_step();
            let mut batches = Vec::with_capacity(config.accumulate_steps);
            while batches.len() < config.accumulate_steps {
                match phases.time(Phase::Wait, || feed.next_batch_unless(stop))? {
                    Some(batch) => batches.push(batch),
                    None => break,
                }
            }
            let columns: Vec<i64> = batches.iter().map(longest_text).collect();
            let asked_to_stop = stop.load(Ordering::Relaxed);
            let agreed = phases.time(Phase::Agree, || {
                parallel::agree(ranks, asked_to_stop, config.accumulate_steps, &columns)
            })?;
            stops = agreed.stops;
            if stops && agreed.batches < config.accumulate_steps {
                break Outcome::Interrupted;
            }
            if batches.is_empty() {
                data = feed.state().clone();
            }
            batches.truncate(agreed.batches);
            peers.columns = agreed.columns;
            let Some(last) = batches.last() else {
                break Outcome::OutOfData;
            };
            data = last.host.state.clone();
            let (epoch, counters) = (last.host.epoch, last.host.counters().clone());
            let lr = config
                .schedule
                .lr(self.step, config.steps, config.steps_per_epoch);
            let seed = config.seed;
            let images: u64 = batches.iter().map(|b| b.host.batch_size as u64).sum();
            if let Some(trace) = &mut trace {
                trace.begin_step(device)?;
            }
            let done = self
                .train_step(batches, seed, lr, &peers, &mut guard, &mut phases)
                .map_err(|error| self.explain(error, config, ranks))?;
            phases.end_step(self.step, images * ranks.world_size().unsigned_abs());
            if let Some(trace) = &mut trace {
                trace.end_step(device)?;
                phases.set_trace(trace.trace());
            }
            let logs =
                self.step.is_multiple_of(config.log_every_steps) || self.step == config.steps;
            let line = match &done.verdict {
                Verdict::Skip(record) => Some(MetricsRecord::Skipped(record.clone())),
                Verdict::Update if logs => {
                    guard.settle()?;
                    let losses = parallel::mean(&done.losses, ranks)?;
                    let counts = [counters.read, counters.skipped_total()];
                    let counts = parallel::sum(counts, ranks)?;
                    let record = record(&done, &losses, epoch, counts, self.step, lr, &phases)?;
                    Some(MetricsRecord::Train(record))
                }
                Verdict::Update => None,
            };
            if let (Some(output), Some(line)) = (&mut output, line) {
                output.log(line, on_record)?;
            }
            saves = self.step.is_multiple_of(config.checkpoint_every_steps);
            validation = due(self.step);
        };
        // Nothing to save without a step: the checkpoint that was resumed from is there.
        if saved_at != self.step {
            guard.settle()?;
            let state = self.state(config, &data, ranks)?;
            self.save(output.as_mut(), config, state, ranks)?;
        }
        if let Some(output) = output {
            output.writer.finish()?;
        }
        if let Some(trace) = &mut trace {
            trace.finish(device)?;
        }
        let place = Place {
            device,
            precision: self.model.precision(),
            trace: trace.as_ref().and_then(|trace| trace.report().cloned()),
        };
        Ok(RunEnd {
            outcome,
            profile: phases.profile(feed, &place),
            data,
        })
    }

    /// Whether a validation beats all before it; it is then remembered as the best.
    fn is_best(&mut self, keep_best: KeepBest, record: &ValidationRecord) -> bool {
        let Some(figure) = keep_best.figure(record) else {
            return false;
        };
        // Another figure than before cannot be compared with it.
        let before = self.best.as_ref().filter(|b| b.metric == keep_best.name());
        if before.is_some_and(|before| !keep_best.improves(figure, before.value)) {
            return false;
        }
        self.best = Some(BestCheckpoint {
            step: self.step,
            metric: keep_best.name().to_string(),
            value: figure,
        });
        true
    }

    fn state(
        &self,
        config: &TrainConfig,
        data: &LoaderState,
        ranks: &dyn Ranks,
    ) -> Result<TrainState, ModelError> {
        Ok(TrainState {
            schedule: Some(SchedulePosition {
                steps: config.steps,
                steps_per_epoch: config.steps_per_epoch,
            }),
            scaler: self.scaler.as_ref().map(LossScaler::state).transpose()?,
            random: Some(RandomState {
                seed: config.seed,
                next_step_seed: step_seed(config.seed, self.step),
            }),
            best: self.best.clone(),
            ..TrainState::new(self.step, parallel::loader_state(data, ranks)?)
        })
    }

    /// Saves on rank 0, to which the others send what they keep of the optimiser's state.
    fn save(
        &self,
        output: Option<&mut Output>,
        config: &TrainConfig,
        state: TrainState,
        ranks: &dyn Ranks,
    ) -> Result<(), ModelError> {
        let Some(output) = output else {
            return self.optimizer.send_state(ranks);
        };
        let text = toml::to_string(config).map_err(|error| ModelError::Input {
            what: "configuration",
            message: format!("cannot be written as TOML: {error}"),
        })?;
        let metrics = output.handle.try_clone().map_err(|source| ModelError::Io {
            path: "metrics.jsonl".into(),
            source,
        })?;
        let writer = &mut output.writer;
        let optimizer = &self.optimizer;
        writer.save(&self.model, optimizer, ranks, state, text, Some(metrics))
    }
}

/// What rank 0 writes.
struct Output {
    metrics: MetricsFile,
    /// Of the same file, for syncing it to disk.
    handle: std::fs::File,
    writer: CheckpointWriter,
}

impl Output {
    fn open(config: &TrainConfig, run_dir: &RunDir, step: u64) -> Result<Output, ModelError> {
        let metrics = MetricsFile::open(&run_dir.metrics(), step)?;
        let retention = Retention {
            newest: config.keep_checkpoints,
        };
        Ok(Output {
            metrics,
            handle: MetricsFile::open_handle(&run_dir.metrics())?,
            writer: CheckpointWriter::start(run_dir.checkpoints(), retention)?,
        })
    }

    fn log(
        &mut self,
        record: MetricsRecord,
        on_record: &mut dyn FnMut(&MetricsRecord),
    ) -> Result<(), ModelError> {
        self.metrics.append(&record)?;
        on_record(&record);
        Ok(())
    }
}

/// Tokens of the longest text of a batch.
fn longest_text(batch: &ReadyBatch) -> i64 {
    text_lengths(&batch.host).into_iter().max().unwrap_or(0)
}

/// Checks that a run under `config` draws the random numbers that the run which wrote `state` would
/// have drawn next.
///
/// # Errors
/// [`ModelError::Config`] for another seed, or a checkpoint of a program that seeds steps otherwise.
pub fn check_random_state(state: &TrainState, config: &TrainConfig) -> Result<(), ModelError> {
    let Some(random) = state.random else {
        return Ok(());
    };
    let problem = if random.seed != config.seed {
        format!(
            "{} differs from the {} that the checkpoint was trained with",
            config.seed, random.seed
        )
    } else if random.next_step_seed != step_seed(config.seed, state.step) {
        format!(
            "the checkpoint was written by {}, which derives each step's seed otherwise",
            state.program
        )
    } else {
        return Ok(());
    };
    Err(ModelError::Config {
        setting: "seed",
        message: problem,
    })
}

/// The seed of a step's dropout and negatives: SplitMix64 of both numbers.
fn step_seed(seed: u64, step: u64) -> i64 {
    let mut mixed = seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as i64
}

fn record(
    done: &StepResult,
    losses: &Tensor,
    epoch: u64,
    [samples_read, samples_skipped]: [u64; 2],
    step: u64,
    lr: f64,
    phases: &Phases,
) -> Result<StepRecord, ModelError> {
    let losses = Vec::<f64>::try_from(losses.f_to_kind(Kind::Double)?)?;
    let [loss, loss_itc, loss_itm, loss_lm] = losses[..] else {
        return Err(ModelError::Input {
            what: "losses",
            message: format!("expected 4 numbers, got {}", losses.len()),
        });
    };
    Ok(StepRecord {
        step,
        epoch,
        loss,
        loss_itc,
        loss_itm,
        loss_lm,
        grad_norm: done.gradient_norm.f_double_value(&[])?,
        lr,
        images_per_s: phases.images_per_s(),
        data_wait_share: phases.wait_share(),
        samples_read,
        samples_skipped,
    })
}

/// Seconds since `start`.
fn secs(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
