//! The training loop, and how it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use qf_config::run::{KeepBest, TrainConfig};
use qf_pipeline::loader::{Counters, LoaderState, TakenReports};
use tch::{Kind, Tensor};

use super::non_finite::{Guard, Verdict};
use super::observer::{Observer, RunView};
use super::output::Output;
use super::parallel::{self, Agreed, GradientMean, Peers};
use super::profile::Place;
use super::profile::{Phase, Phases, RunProfile};
use super::record::{MetricsRecord, StepRecord, ValidationRecord};
use super::recorded::RecordedSteps;
use super::scaler::LossScaler;
use super::seed::step_seed;
use super::step::{StepFailure, StepResult};
use super::step_trace::StepTrace;
use super::trainer::{Outcome, RunContext, RunEnd, RunFailure, Saved, Trainer};
use super::validation::{figure, improves, Validator};
use crate::accelerator::SideStream;
use crate::blip2::Blip2Qformer;
use crate::checkpoint::{
    BestCheckpoint, CheckpointWriter, RandomState, SchedulePosition, TrainState,
};
use crate::collective::{Ranks, SingleProcess};
use crate::error::ModelError;
use crate::feed::{DeviceFeed, ReadyBatch};
use crate::host_memory;

/// What a call of [`Trainer::run`] works with.
struct Run<'a> {
    config: &'a TrainConfig,
    feed: &'a mut DeviceFeed,
    validator: Option<&'a Validator>,
    ranks: &'a dyn Ranks,
    stop: &'a Arc<AtomicBool>,
    trace: Option<StepTrace>,
    observer: &'a mut dyn Observer,
    output: Option<Output>,
    guard: Guard<'a>,
    peers: Peers<'a>,
    phases: Phases,
    /// Where steps compute.
    stream: SideStream,
    recorded: RecordedSteps,
    /// Where the data stands behind the last batch that was used: those that were taken and not used
    /// come again when the run goes on.
    data: LoaderState,
    started_at: u64,
    /// The step of the last save, unless it failed.
    saved_at: Option<u64>,
    /// A rank, as all know by agreement, is to stop after this step.
    stops: bool,
    /// What went wrong on this rank: the run ends once all ranks know.
    failure: Option<ModelError>,
    /// All ranks know that one has failed.
    is_agreed: bool,
    /// The weights are those of no step, or not sound.
    withholds: bool,
}

/// What comes after a step.
enum Next {
    Step(Vec<ReadyBatch>),
    End(Outcome),
}

/// What came of a validation.
enum Validated {
    Best,
    NotBest,
    BrokenOff,
}

impl<'a> Run<'a> {
    fn open(trainer: &Trainer, context: RunContext<'a>) -> Result<Run<'a>, ModelError> {
        let RunContext {
            config,
            feed,
            validator,
            ranks,
            run_dir,
            stop,
            trace,
            observer,
        } = context;
        let output = match ranks.is_first() {
            true => Some(Output::open(config, run_dir, trainer.step)?),
            false => None,
        };
        let guard = Guard::new(
            config.on_non_finite,
            config.max_skips_in_a_row,
            run_dir.non_finite(),
            trainer.model.params().device(),
        );
        let guard = guard.among(ranks);
        let is_recordable = config.records()
            && guard.defers()
            && ranks.world_size() == 1
            && ranks.process_group().is_none()
            && config.accumulate_steps == 1
            && trainer.scaler.is_none();
        let mut phases = Phases::start();
        phases.set_trace(trace.as_ref().and_then(StepTrace::trace));
        Ok(Run {
            data: feed.state().clone(),
            config,
            feed,
            validator,
            ranks,
            stop,
            trace,
            observer,
            output,
            guard,
            peers: Peers {
                ranks,
                mean: GradientMean::new(ranks, &trainer.model)?,
                columns: Vec::new(),
            },
            phases,
            stream: SideStream::for_steps(trainer.model.params().device())?,
            recorded: RecordedSteps::new(is_recordable),
            started_at: trainer.step,
            saved_at: Some(trainer.step),
            stops: false,
            failure: None,
            is_agreed: false,
            withholds: false,
        })
    }

    fn is_single(&self) -> bool {
        self.ranks.world_size() == 1
    }

    /// Notes what went wrong on this rank alone, until the others are told.
    fn note<T>(&mut self, result: Result<T, ModelError>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(error) if self.failure.is_none() => self.failure = Some(error),
            Err(error) => log::error!("{error}"),
        }
        None
    }

    /// What this rank tells the others of its failure: 0 none, 1 one, 2 one of the weights.
    fn failure_code(&self) -> i64 {
        match &self.failure {
            None => 0,
            Some(error) if error.is_of_weights() => 2,
            Some(_) => 1,
        }
    }

    /// Ends the run where `code`, the largest of all ranks, says that one has failed.
    fn end_on(&mut self, code: i64) -> Result<(), ModelError> {
        if code == 0 {
            return Ok(());
        }
        (self.is_agreed, self.withholds) = (true, code > 1);
        let own = self.failure.take();
        let message = own.as_ref().map_or(String::new(), ModelError::to_string);
        let all = self.ranks.gather_bytes(message.as_bytes())?;
        let mut others = all.iter().zip(0..).filter(|(text, _)| !text.is_empty());
        Err(match (own, others.next()) {
            (Some(error), _) => error,
            (None, Some((text, rank))) => ModelError::Peer {
                rank,
                message: String::from_utf8_lossy(text).into_owned(),
            },
            (None, None) => ModelError::Stopped,
        })
    }

    /// Ends the run if any rank has failed.
    fn agree_on_failure(&mut self) -> Result<(), ModelError> {
        let all = self.ranks.max(&[self.failure_code()])?;
        self.end_on(all.first().copied().unwrap_or(0))
    }

    /// Asks the writer of checkpoints: `how` it is, or waits for it. What it could not write is not saved.
    fn ask_writer(
        &mut self,
        how: impl FnOnce(&mut CheckpointWriter) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let written = match &mut self.output {
            Some(output) => how(&mut output.writer),
            None => Ok(()),
        };
        if written.is_err() {
            self.saved_at = None;
        }
        written
    }

    /// A line of metrics.jsonl.
    fn log(&mut self, record: MetricsRecord) {
        if let Some(output) = &mut self.output {
            let logged = output.metrics.append(&record);
            self.observer.record(&record);
            self.note(logged);
        }
    }

    /// Has rank 0 name what all ranks left out, after `step`. All call it where one has something.
    fn name_skips(&mut self, step: u64, own: &TakenReports) -> Result<(), ModelError> {
        let all = parallel::gather_reports(own, self.ranks)?;
        if let Some(output) = &mut self.output {
            let named = all
                .iter()
                .try_for_each(|taken| output.skips.append(step, taken));
            self.note(named);
        }
        Ok(())
    }

    /// The same for what was passed over before the batch of this number was complete.
    fn name_skips_before(&mut self, batch: u64, step: u64) -> Result<(), ModelError> {
        let own = self.feed.take_skipped(batch);
        match self.ranks.max(&[i64::from(!own.is_empty())])?[..] {
            [0] => Ok(()),
            _ => self.name_skips(step, &own),
        }
    }

    /// The batches of the next step, as all ranks have them.
    fn next(&mut self, step: u64) -> Result<Next, ModelError> {
        let expected = self.config.accumulate_steps;
        let mut batches: Vec<ReadyBatch> = Vec::with_capacity(expected);
        while batches.len() < expected && self.failure.is_none() {
            let (feed, stop) = (&mut *self.feed, self.stop);
            let next = self.phases.time_wait(|| {
                let next = feed.next_batch_unless(stop);
                (next, feed.last_wait())
            });
            match self.note(next).flatten() {
                Some(batch) => batches.push(batch),
                None => break,
            }
        }
        let skips = self.feed.take_skipped(self.data.batches);
        let own = Agreed {
            stops: self.stop.load(Ordering::Relaxed),
            failure: self.failure_code(),
            has_skips: !skips.is_empty(),
            batches: batches.len(),
            columns: batches.iter().map(ReadyBatch::longest_text).collect(),
        };
        let ranks = self.ranks;
        let agreed = (self.phases).time(Phase::Agree, || parallel::agree(ranks, own, expected))?;
        if agreed.has_skips {
            self.name_skips(step, &skips)?;
        }
        self.end_on(agreed.failure)?;
        self.stops = agreed.stops;
        if agreed.stops && agreed.batches < expected {
            return Ok(Next::End(Outcome::Interrupted));
        }
        if batches.is_empty() {
            self.data = self.feed.state().clone();
        }
        batches.truncate(agreed.batches);
        self.peers.columns = agreed.columns;
        if batches.is_empty() {
            self.name_skips_before(u64::MAX, step)?;
            return Ok(Next::End(Outcome::OutOfData));
        }
        Ok(Next::Step(batches))
    }
}

impl Trainer {
    /// Trains until the configured step, the end of the data or `stop`, and writes a checkpoint.
    ///
    /// # Errors
    /// Whatever stops the loader, the model or a file, that of the checkpoint writer included;
    /// [`ModelError::NonFinite`] for a loss or gradient that is not finite, naming the step and its
    /// samples. What was trained is saved first, but for weights that are themselves at fault: no
    /// checkpoint holds weights from behind a step that is not finite, or of half a step. With several
    /// ranks it is saved where all of them are there to agree.
    pub fn run(&mut self, context: RunContext<'_>) -> Result<RunEnd, Box<RunFailure>> {
        let step = self.step;
        let mut run = Run::open(self, context).map_err(|error| RunFailure {
            error,
            step,
            saved: Saved::NothingNew,
        })?;
        let ended = self.steps(&mut run);
        let ended = ended.and_then(|outcome| {
            self.save_at_end(&mut run)?;
            self.end(&mut run, outcome)
        });
        ended.map_err(|error| Box::new(self.give_up(&mut run, error)))
    }

    /// Steps until the run ends, by agreement of all ranks.
    fn steps(&mut self, run: &mut Run<'_>) -> Result<Outcome, ModelError> {
        let mut validation = self.owed_validation(run)?;
        let mut saves = false;
        loop {
            let written = run.ask_writer(CheckpointWriter::poll);
            run.note(written);
            let is_last = self.step >= run.config.steps;
            if let Some(validator) = validation.take() {
                match self.validate(run, validator, is_last)? {
                    Validated::Best => saves = true,
                    Validated::NotBest => {}
                    Validated::BrokenOff => return Ok(Outcome::Interrupted),
                }
            }
            if saves {
                self.save(run)?;
            }
            // With other ranks, as all knew before the last step: each may be told at another time.
            let stops = run.stops || (run.is_single() && run.stop.load(Ordering::Relaxed));
            if is_last || stops {
                run.agree_on_failure()?;
                return Ok(match is_last {
                    true => Outcome::Finished,
                    false => Outcome::Interrupted,
                });
            }
            run.phases.begin_step();
            let next = match run.next(self.step) {
                Ok(next) => next,
                // The tower, which runs ahead, may be what finds no memory.
                Err(error) => return Err(self.explained(error, run)),
            };
            match next {
                Next::End(outcome) => return Ok(outcome),
                Next::Step(batches) => self.one_step(run, batches)?,
            }
            saves = self.step.is_multiple_of(run.config.checkpoint_every_steps);
            validation = run.validator.filter(|v| v.is_due(self.step));
        }
    }

    /// A run that was stopped while it validated makes up for that.
    fn owed_validation<'a>(&self, run: &Run<'a>) -> Result<Option<&'a Validator>, ModelError> {
        let owes = run
            .output
            .as_ref()
            .is_some_and(|output| self.step > 0 && !output.metrics.is_validated(self.step));
        let owes = run.ranks.max(&[i64::from(owes)])? != [0];
        Ok(run.validator.filter(|v| owes && v.is_due(self.step)))
    }

    /// Validates on rank 0 alone; the others wait here.
    fn validate(
        &mut self,
        run: &mut Run<'_>,
        validator: &Validator,
        is_last: bool,
    ) -> Result<Validated, ModelError> {
        run.guard.settle()?;
        let never = Arc::default();
        // Nothing would make up for the last one.
        let stop = if is_last { &never } else { run.stop };
        let mut found = [0, 0];
        if run.output.is_some() && run.failure.is_none() {
            let (model, step) = (&self.model, self.step);
            let record = (run.phases).time(Phase::Validate, || validator.run(model, step, stop));
            match record {
                Err(ModelError::Stopped) => found[0] = 1,
                record => {
                    if let Some(record) = run.note(record) {
                        found[1] = i64::from(self.is_best(validator.keep_best(), &record));
                        run.log(MetricsRecord::Validation(record));
                        if !is_last {
                            self.show(run, false);
                        }
                    }
                }
            }
        }
        host_memory::release();
        let found = run.ranks.max(&[found[0], found[1], run.failure_code()])?;
        let [is_stopped, is_best, failure] = found[..] else {
            return Ok(Validated::NotBest); // As many as were given.
        };
        run.end_on(failure)?;
        Ok(match (is_stopped, is_best) {
            (1, _) => Validated::BrokenOff,
            (_, 1) => Validated::Best,
            _ => Validated::NotBest,
        })
    }

    /// Shows the run, as it stands, to its observer on rank 0.
    fn show(&self, run: &mut Run<'_>, is_last: bool) {
        if run.output.is_none() {
            return;
        }
        let view = RunView {
            model: &self.model,
            step: self.step,
            profile: self.profile(run),
            is_last,
        };
        let observer = &mut *run.observer;
        (run.phases).time(Phase::Validate, || observer.view(&view));
    }

    /// Where the time of the run went until now.
    fn profile(&self, run: &Run<'_>) -> RunProfile {
        let place = Place {
            device: self.model.params().device(),
            precision: self.model.precision(),
            trace: run.trace.as_ref().and_then(|t| t.report().cloned()),
        };
        run.phases.profile(run.feed, &place)
    }

    /// Makes a step and logs it.
    fn one_step(&mut self, run: &mut Run<'_>, batches: Vec<ReadyBatch>) -> Result<(), ModelError> {
        let device = self.model.params().device();
        let config = run.config;
        let Some(last) = batches.last() else {
            return Ok(());
        };
        let data = last.host.state.clone();
        let epoch = last.host.epoch;
        let lr = (config.schedule).lr(self.step, config.steps, config.steps_per_epoch);
        let images: u64 = batches.iter().map(|b| b.host.batch_size as u64).sum();
        let begun = run.trace.as_mut().map(|trace| trace.begin_step(device));
        run.note(begun.transpose());
        let done = self.step_on_stream(batches, lr, run);
        let done = match done {
            Ok(done) => done,
            Err(StepFailure {
                error,
                is_half_done,
            }) => {
                run.withholds = is_half_done;
                return Err(self.explained(*error, run));
            }
        };
        run.data = data;
        if !run.is_single() && !self.optimizer.is_sharded() {
            parallel::leave_state(&run.data, run.ranks)?;
        }
        let all_images = images * run.ranks.world_size().unsigned_abs();
        run.phases.end_step(self.step, all_images);
        let ended = run.trace.as_mut().map(|trace| trace.end_step(device));
        run.note(ended.transpose());
        if let Some(trace) = &run.trace {
            run.phases.set_trace(trace.trace());
        }
        let logs = self.step.is_multiple_of(config.log_every_steps) || self.step == config.steps;
        match &done.verdict {
            Verdict::Skip(record) => run.log(MetricsRecord::Skipped(record.clone())),
            Verdict::Update if logs => {
                run.guard.settle()?;
                let losses = parallel::mean(&done.losses, run.ranks)?;
                let logged = Logged {
                    step: self.step,
                    epoch,
                    lr,
                    samples: parallel::sum_counters(&run.data.counters, run.ranks)?,
                };
                let line = record(&done, &losses, &self.model, logged, &run.phases)?;
                run.log(MetricsRecord::Train(line));
            }
            Verdict::Update => {}
        }
        Ok(())
    }

    /// [`Trainer::explain`], with the memory of recordings given back.
    fn explained(&mut self, error: ModelError, run: &mut Run<'_>) -> ModelError {
        if error.is_out_of_memory() {
            run.recorded.forget();
        }
        self.explain(error, run.config, run.ranks)
    }

    /// A step on the run's stream, from a recording where it can be.
    fn step_on_stream(
        &mut self,
        batches: Vec<ReadyBatch>,
        lr: f64,
        run: &mut Run<'_>,
    ) -> Result<StepResult, StepFailure> {
        let (seed, stream) = (run.config.seed, &run.stream);
        let (recorded, guard, phases) = (&mut run.recorded, &mut run.guard, &mut run.phases);
        stream.run(|| {
            if let (Some(shape), [batch]) = (recorded.takes(&batches), &batches[..]) {
                let done = self.recorded_step((batch, shape), seed, lr, recorded, guard, phases)?;
                if let Some(done) = done {
                    return Ok(done);
                }
            }
            self.train_step(batches, seed, lr, &run.peers, guard, phases)
        })
    }

    /// Whether a validation beats all before it; it is then remembered as the best.
    fn is_best(&mut self, keep_best: KeepBest, record: &ValidationRecord) -> bool {
        let Some(figure) = figure(keep_best, record) else {
            return false;
        };
        // Another figure than before cannot be compared with it.
        let before = self.best.as_ref().filter(|b| b.metric == keep_best.name());
        if before.is_some_and(|before| !improves(keep_best, figure, before.value)) {
            return false;
        }
        self.best = Some(BestCheckpoint {
            step: self.step,
            metric: keep_best.name().to_string(),
            value: figure,
        });
        true
    }

    /// Begins to write a checkpoint of this step.
    fn save(&self, run: &mut Run<'_>) -> Result<(), ModelError> {
        run.guard.settle()?;
        run.name_skips_before(run.data.batches, self.step)?;
        let state = self.state(run.config, &run.data, run.ranks)?;
        // Whatever became of the one before it: the other ranks send their part of this one.
        let written = run.ask_writer(CheckpointWriter::wait);
        run.note(written);
        let (output, config, ranks) = (run.output.as_mut(), run.config, run.ranks);
        (run.phases).time(Phase::Snapshot, || match output {
            Some(output) => output.save(self, config, state, ranks),
            None => self.optimizer.send_state(ranks),
        })?;
        host_memory::release();
        run.saved_at = Some(self.step);
        Ok(())
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

    /// Saves what is not saved yet, and waits on all ranks until it is on disk.
    fn save_at_end(&self, run: &mut Run<'_>) -> Result<(), ModelError> {
        // Nothing to save without a step: the checkpoint that was resumed from is there.
        match run.saved_at == Some(self.step) {
            true => run.name_skips_before(run.data.batches, self.step)?,
            false => self.save(run)?,
        }
        let written = run.ask_writer(CheckpointWriter::wait);
        let failed = run.ranks.max(&[i64::from(written.is_err())])?;
        written?;
        match failed[..] {
            [0] => Ok(()),
            _ => Err(ModelError::Peer {
                rank: 0,
                message: "the last checkpoint could not be written".into(),
            }),
        }
    }

    /// Saves on rank 0 without the others, which are gone or not where this one is: with what they left
    /// of their data after the same step. Returns whether that was there.
    fn save_alone(&self, run: &mut Run<'_>) -> Result<bool, ModelError> {
        if run.output.is_none() || self.optimizer.is_sharded() {
            return Ok(false);
        }
        let Some(data) = parallel::left_states(&run.data, run.ranks) else {
            return Ok(false);
        };
        // Of the one before it there is nothing to say here.
        let _ = run.ask_writer(CheckpointWriter::wait);
        if run.saved_at != Some(self.step) {
            let state = self.state(run.config, &data, &SingleProcess)?;
            if let Some(output) = &mut run.output {
                output.save(self, run.config, state, &SingleProcess)?;
            }
        }
        run.ask_writer(CheckpointWriter::wait)?;
        Ok(true)
    }

    /// What the run leaves, after its last checkpoint.
    fn end(&self, run: &mut Run<'_>, outcome: Outcome) -> Result<RunEnd, ModelError> {
        let device = self.model.params().device();
        if let Some(trace) = &mut run.trace {
            trace.finish(device)?;
        }
        // Before the observer's own time.
        let profile = self.profile(run);
        self.show(run, true);
        Ok(RunEnd {
            outcome,
            profile,
            data: run.data.clone(),
        })
    }

    /// Saves what `error` leaves, where it can be.
    fn give_up(&self, run: &mut Run<'_>, error: ModelError) -> RunFailure {
        let is_together = run.is_single() || run.is_agreed;
        let withholds = run.withholds || error.is_of_weights();
        let saved = if self.step == run.started_at {
            Saved::NothingNew
        } else if withholds {
            Saved::No(None)
        } else {
            let saved = match is_together {
                true => self.save_at_end(run).map(|()| true),
                false => self.save_alone(run),
            };
            match saved {
                Ok(true) => Saved::Yes,
                Ok(false) => Saved::No(None),
                Err(cause) => Saved::No(Some(cause)),
            }
        };
        if is_together {
            // What stands behind the last step is named too; a run that goes on comes there again.
            let named = run.name_skips_before(u64::MAX, self.step + 1);
            run.note(named);
            if let Some(error) = run.failure.take() {
                log::error!("{error}");
            }
        }
        RunFailure {
            error,
            step: self.step,
            saved,
        }
    }
}

/// What a logged step adds to the numbers of its result.
struct Logged {
    step: u64,
    epoch: u64,
    lr: f64,
    /// Samples read and skipped, of all ranks.
    samples: Counters,
}

fn record(
    done: &StepResult,
    losses: &Tensor,
    model: &Blip2Qformer,
    logged: Logged,
    phases: &Phases,
) -> Result<StepRecord, ModelError> {
    // In one transfer.
    let kind = losses.f_kind()?;
    let scalar = |tensor: &Tensor| tensor.f_detach()?.f_to_kind(kind)?.f_view(1);
    let norm = scalar(&done.gradient_norm)?;
    let temperature = scalar(model.temperature_tensor())?;
    let numbers = Tensor::f_cat(&[losses, &norm, &temperature], 0)?.f_to_kind(Kind::Double)?;
    let numbers = Vec::<f64>::try_from(numbers)?;
    let [loss, loss_itc, loss_itm, loss_lm, grad_norm, temperature] = numbers[..] else {
        return Err(ModelError::Input {
            what: "losses, norm and temperature",
            message: format!("expected 6 numbers, got {}", numbers.len()),
        });
    };
    let samples = &logged.samples;
    let by_reason = samples.skipped.iter();
    let by_reason = by_reason.map(|(reason, count)| (reason.name().to_owned(), *count));
    Ok(StepRecord {
        step: logged.step,
        epoch: logged.epoch,
        loss,
        loss_itc,
        loss_itm,
        loss_lm,
        grad_norm,
        lr: logged.lr,
        temperature: Some(temperature),
        images_per_s: phases.images_per_s(),
        data_wait_share: phases.wait_share(),
        samples_read: samples.read,
        samples_skipped: samples.skipped_total(),
        samples_bad: samples.bad_total(),
        skipped_by_reason: by_reason.collect(),
        memory_bytes: phases.memory_bytes(model.params().device()),
    })
}
