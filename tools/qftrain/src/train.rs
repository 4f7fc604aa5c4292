//! `qftrain`: the training run.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context};
use clap::{Args, ValueEnum};
use qf_model::checkpoint::{self, Checkpoint, TrainState};
use qf_model::context::choose_kernels;
use qf_model::device::{open_device, DeviceChoice};
use qf_model::feed::DeviceFeed;
use qf_model::host::batch_allocator;
use qf_model::run_dir::{RunDir, RunLock};
use qf_model::train::{
    self, check_random_state, LossScaler, Outcome, RunContext, RunEnd, RunFailure, RunProfile,
    Saved, StepTrace, TrainConfig, Trainer, Validator, WeightsConfig,
};
use qf_model::{AdamW, Blip2Qformer, ModelError, Precision, ProcessGroup, Ranks, SingleProcess};
use qf_pipeline::atomic_file::NewFolders;
use qf_pipeline::error::full_message;
use qf_pipeline::loader::{queue_table, stage_table, Counters, Loader, World};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::trace::{Trace, TraceLimits};
use qf_pipeline::words::counted;
use qf_pipeline::PipelineError;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::configuration::{
    check_relative, check_start_options, check_tokenizer, configuration, make_paths_absolute,
};
use crate::progress::Progress;
use crate::resumption::check_changes;
use crate::session::{
    create_tokenizer, load_tokenizer, saved_config, tokenizer_from, write_file, TokenizerFile,
};
use crate::weights::{adopt_tokenizer, StartWeights};
use crate::{agreement, data, launch, ranks, signals};
use qf_cli::output::{remark, say};

#[derive(Args)]
pub(crate) struct TrainArgs {
    /// Training shards: files, globs, {000..012} ranges; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    pub(crate) shards: Vec<String>,

    /// A data set of a mixture, e.g. coco:0.7='coco-*.tar'; give one for each, instead of --shards
    #[arg(long, value_name = "NAME:WEIGHT=SHARDS", conflicts_with = "shards")]
    pub(crate) mix: Vec<String>,

    #[command(flatten)]
    pub(crate) columns: data::ColumnArgs,

    /// Keep remote shards in this folder (remote.cache_bytes bounds it)
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cache: Option<PathBuf>,

    /// Folder of the run: configuration, metrics.jsonl, checkpoints [default: runs/DATE-TIME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Continue the run in --run-dir with its next batch; `auto` starts one where there is none
    #[arg(long, requires = "run_dir", value_name = "auto", num_args = 0..=1,
          default_missing_value = "always", hide_possible_values = true)]
    resume: Option<Resume>,

    /// Resume with settings that change learning rates, pixels, texts or losses
    #[arg(long, requires = "resume")]
    allow_changes: bool,

    /// Configuration to start from: tiny, small, blip2-vit-l or blip2-vit-g [default: by device]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) preset: Option<String>,

    /// Configuration file to start from, see configs/
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Optimiser steps of the whole run
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) steps: Option<i64>,

    /// Images per step, of each rank
    #[arg(long)]
    pub(crate) batch_size: Option<u32>,

    /// Highest learning rate
    #[arg(long)]
    pub(crate) lr: Option<f64>,

    /// Seed of weights, dropout and negatives, and of the order of data
    #[arg(long)]
    pub(crate) seed: Option<u32>,

    /// vocab.txt or tokenizer.json [default: a vocabulary trained from the shards]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,

    /// Start the Q-Former from a BERT: a file, a folder, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS")]
    pub(crate) bert: Option<String>,

    /// Start the vision tower from published weights: a file, a folder, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS")]
    pub(crate) vision_weights: Option<String>,

    /// Start from a whole model: a LAVIS .pth, a Hugging Face folder, a run, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS")]
    pub(crate) weights: Option<String>,

    /// Threads that decode, augment and tokenise, of each rank [default: its share of the machine's cores]
    #[arg(long)]
    pub(crate) threads: Option<u32>,

    /// Held-out shards to validate on while training; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    pub(crate) val_shards: Vec<String>,

    /// Validate after every so many steps
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) val_every: Option<i64>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// Train with so many processes on this machine, one per GPU or sharing the CPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    nproc: Option<u32>,

    /// Form a group even of one process: what several need (NCCL, Gloo) can be tried on one device
    #[arg(long)]
    force_group: bool,

    /// Write a trace of the first steps to RUN_DIR/trace.json (open it in ui.perfetto.dev), and
    /// compare the run with what the machine can do
    #[arg(long)]
    profile: bool,

    /// Steps in the trace
    #[arg(long, value_name = "STEPS", default_value_t = 50, requires = "profile",
          value_parser = clap::value_parser!(u64).range(1..))]
    profile_steps: u64,

    #[command(flatten)]
    timeouts: ranks::TimeoutArgs,

    /// Any setting by its name in the configuration file, e.g. data.shuffle=none; several
    /// allowed, applied last
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// When a run is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Resume {
    /// It has to be there.
    Always,
    /// Where it is there.
    Auto,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    if args.resume == Some(Resume::Always) {
        check_start_options(args).unwrap_or_else(|error| error.exit());
        check_tokenizer(args)?;
    }
    match (ranks::from_environment(args.force_group)?, args.nproc) {
        (Some(_), Some(_)) => bail!(
            "--nproc starts ranks itself, but this process is one already (RANK or SLURM_PROCID is \
             set); leave --nproc out, or unset them"
        ),
        (Some(ranks), None) => run_as_rank(args, ranks),
        (None, Some(nproc)) if nproc > 1 || args.force_group => launch::run(nproc),
        (None, None) if args.force_group => launch::run(1),
        (None, _) => train(args, open_device(args.device)?, None, &SingleProcess),
    }
}

/// Trains as one of several processes. All end when one does.
fn run_as_rank(args: &TrainArgs, ranks: ranks::Ranks) -> anyhow::Result<()> {
    let device = ranks.open_device(args.device)?;
    launch::end_with_launcher()?;
    let end = |cause: &str| -> ! {
        remark(format_args!("error: {cause}"));
        // At once: this process may be inside a call to a rank that no longer answers.
        signal_hook::low_level::exit(1)
    };
    let timeouts = args.timeouts.resolve();
    let group = ProcessGroup::join(ranks.config.clone(), device, timeouts, move |cause| {
        end(&cause)
    })?;
    match train(args, device, Some(&ranks), &group) {
        Ok(()) => Ok(group.leave()?),
        Err(error) => match error.downcast_ref::<Ended>() {
            Some(Ended { cause, rest }) => end(&(group.fail(cause) + rest)),
            None => end(&group.fail(&full_message(error.as_ref()))),
        },
    }
}

/// What rank 0 finds in the run folder, or puts there, and the others take over.
#[derive(Clone, Serialize, Deserialize)]
struct Start {
    run_dir: PathBuf,
    /// The checkpoint to go on from.
    state: Option<TrainState>,
    /// None where there is nothing left to train.
    tokenizer: Option<TokenizerFile>,
}

/// What only rank 0 has.
struct FirstRank {
    newest: Option<Checkpoint>,
    weights: StartWeights,
    _claim: Claim,
}

/// The run folder, for as long as the run lasts.
struct Claim {
    run_dir: RunDir,
    _lock: RunLock,
    /// Dropped last: those that are empty go.
    folders: NewFolders,
}

impl Claim {
    fn of(run_dir: &RunDir) -> anyhow::Result<Claim> {
        let folders = NewFolders::create(run_dir.path()).with_context(|| {
            format!("cannot create the run folder {}", run_dir.path().display())
        })?;
        Ok(Claim {
            run_dir: run_dir.clone(),
            _lock: run_dir.lock()?,
            folders,
        })
    }
}

impl Drop for Claim {
    /// A new folder in which nothing was trained goes again.
    fn drop(&mut self) {
        if self.folders.is_new() {
            self.run_dir.remove_start();
        }
    }
}

/// One rank's training, from the options to the last checkpoint; `own` is its place among several. One
/// that is started again continues the run that is there.
fn train(
    args: &TrainArgs,
    device: Device,
    own: Option<&ranks::Ranks>,
    ranks: &dyn Ranks,
) -> anyhow::Result<()> {
    let is_restart = own.is_some_and(|own| own.is_restart);
    let run_dir = RunDir::new(args.run_dir.clone().unwrap_or_else(default_run_dir));
    let goes_on = (is_restart || args.resume == Some(Resume::Auto))
        && args.run_dir.is_some()
        && run_dir.holds_run()?;
    let goes_on = ranks.max(&[i64::from(ranks.is_first() && goes_on)])? == [1];
    let resume = args.resume == Some(Resume::Always) || goes_on;
    let mut config = configuration(args, resume, &run_dir, device, ranks)?;
    config.validate()?;
    choose_kernels(config.kernels())?;
    let sets = data::data_sets(&config);
    let sets = sets.map_err(|error| match check_relative(&config).filter(|_| resume) {
        Some(advice) => error.context(advice),
        None => error,
    })?;
    let shards = data::all_shards(&sets);
    agreement::check(ranks, &config, &shards)?;
    let held_out = match &config.validation {
        Some(validation) if ranks.is_first() => {
            let held_out = data::resolve(&validation.shards, &config.remote);
            let held_out = held_out.context("validation.shards")?;
            data::warn_of_shared_shards(&shards, &held_out);
            Some(held_out)
        }
        _ => None,
    };

    let first = match ranks.is_first() {
        true => {
            let claim = Claim::of(&run_dir)?;
            let resume = resume.then_some(args.allow_changes);
            let (newest, weights, start) = prepare(&mut config, &shards, &run_dir, resume)?;
            let first = FirstRank {
                newest,
                weights,
                _claim: claim,
            };
            Some((first, start))
        }
        false => None,
    };
    let (first, start) = match first {
        Some((first, start)) => (Some(first), share(Some(start), ranks)?),
        None => (None, share(None, ranks)?),
    };
    let run_dir = RunDir::new(start.run_dir);
    let Some(tokenizer) = start.tokenizer else {
        return match ranks.is_first() {
            true => say(format_args!(
                "{}: all {} are done; raise --steps to train on (with --allow-changes where that \
                 changes learning rates)",
                run_dir.path().display(),
                counted(config.steps, "step", "steps")
            )),
            false => Ok(()),
        };
    };
    let world = World::new(
        u32::try_from(ranks.rank())?,
        u32::try_from(ranks.world_size())?,
    )?;
    if let Some(state) = &start.state {
        let named = |text: &String| text.starts_with("data.batch_size=");
        let is_chosen = args.batch_size.is_some() || args.set.iter().any(named);
        data::share_batch(&mut config, &state.loader, world, is_chosen)?;
    }
    let tokenizer = match ranks.is_first() {
        true => load_tokenizer(&run_dir)?,
        false => tokenizer_from(&tokenizer)?,
    };
    config.model.qformer.fit_to_tokenizer(&tokenizer);
    config.validate()?;

    let newest = first.as_ref().and_then(|first| first.newest.as_ref());
    if let Some(Checkpoint { state, .. }) = newest {
        check_random_state(state, &config)?;
    }
    let load = |model: &mut Blip2Qformer| -> anyhow::Result<_> {
        let Some(first) = &first else {
            // They come from the first rank, in `share_weights`.
            model.params_mut().skip_start_values();
            return Ok(Vec::new());
        };
        let origins = first.weights.load(model)?;
        if let Some(Checkpoint { folder, .. }) = newest {
            checkpoint::load_model(folder, model)?;
        }
        Ok(origins)
    };
    let (mut model, origins) = Blip2Qformer::loaded(&config.model, device, config.seed, load)?;
    model.params_mut().freeze(&config.freeze)?;
    share_weights(&model, ranks)?;
    // Only now: averages start from the weights.
    let mut optimizer = AdamW::for_rank(model.params(), &config.optimizer, ranks)?;
    if start.state.is_some() {
        let folder = newest.map(|checkpoint| checkpoint.folder.as_path());
        checkpoint::load_optimizer_on_ranks(folder, &mut optimizer, ranks)?;
    }
    log::debug!("{} bytes of optimiser state", optimizer.state_bytes());
    let precision = config.precision.unwrap_or(Precision::for_device(device));
    // The run keeps it, wherever it is resumed.
    config.precision = Some(precision);
    model.set_precision(precision)?;
    let state = start.state;
    let is_frozen = config.model.vision.vit().is_some_and(|vit| !vit.trainable);
    let gives_tower = first.as_ref().is_none_or(|f| f.weights.give_tower());
    if is_frozen && state.is_none() && !gives_tower {
        log::warn!(
            "the vision tower is frozen and starts from random numbers, so its features are noise; \
             give --vision-weights, or set model.vision.trainable=true"
        );
    }
    let step = state.as_ref().map_or(0, |state| state.step);
    let scaler = state.as_ref().and_then(|state| state.scaler);
    let best = state.as_ref().and_then(|state| state.best.clone());
    let best = match best.filter(|_| ranks.is_first()) {
        Some(best) if checkpoint::is_whole(&run_dir.checkpoints(), best.step)? => Some(best),
        // Removed by hand, or damaged: the next validation finds another.
        _ => None,
    };
    if ranks.is_first() {
        let trained = (&model, &optimizer);
        describe(
            &config,
            shards.len(),
            device,
            step,
            &run_dir,
            trained,
            ranks,
        );
    }
    // All ranks know when it is due; rank 0 alone has the data and does it.
    let validator = config.validation.as_ref().map(|validation| {
        let shards = held_out.unwrap_or_default();
        Validator::new(&config, validation, shards, tokenizer.clone())
    });
    let loader_state = state.map(|state| state.loader);
    let trace = match args.profile {
        true => Some(open_trace(&run_dir, ranks)?),
        false => None,
    };
    let mut data_config = config.data.clone();
    if let Some(own) = own.filter(|_| data_config.threads == 0) {
        // Not in the run's configuration: the next machine may have other cores.
        data_config.threads = own.loader_threads();
    }
    let mut loader = Loader::builder(data_config)
        .trace(trace.clone())
        .world(world)
        .resume(loader_state)
        .report_skips()
        .allocator(batch_allocator(device));
    for set in sets {
        loader = loader.data_set(set);
    }
    let loader = loader.batches(tokenizer)?;
    if ranks.is_first() {
        data::note(&loader);
    }
    // On the CPU it would contend with the steps for the cores.
    let tower = match (device.is_cuda() && config.tower_ahead, config.records()) {
        (true, true) => model.recorded_tower(config.data.batch_size as i64)?,
        (true, false) => model.frozen_tower()?,
        (false, _) => None,
    };
    let mut feed = DeviceFeed::start(loader, device, tower)?;
    if ranks.is_first() {
        // Only now: settings that do not fit the checkpoint must not replace those that do.
        write_file(&run_dir.config(), toml::to_string(&config)?.as_bytes())?;
        if !origins.is_empty() {
            let json = serde_json::to_string_pretty(&origins)?;
            write_file(&run_dir.weights(), json.as_bytes())?;
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    signals::catch(&stop)?;

    let mut progress = Progress::new(step, config.steps);
    let scaler = match precision {
        Precision::F16 => Some(LossScaler::new(scaler, device)?),
        _ => None,
    };
    let mut trainer = Trainer {
        model,
        optimizer,
        scaler,
        step,
        best,
    };
    let result = trainer.run(RunContext {
        config: &config,
        feed: &mut feed,
        validator: validator.as_ref(),
        ranks,
        run_dir: &run_dir,
        stop: &stop,
        trace: trace.map(|trace| {
            let left = config.steps.saturating_sub(step);
            StepTrace::new(trace, args.profile_steps.min(left))
        }),
        on_record: &mut |record| progress.show(record),
    });
    progress.finish();
    let RunEnd {
        outcome,
        mut profile,
        data,
    } = result.map_err(|failure| explain(*failure, &run_dir, ranks.is_first()))?;
    let state = train::loader_state(&data, ranks)?;
    if !ranks.is_first() {
        return Ok(());
    }
    if args.profile {
        profile.measure_roofline(device, precision)?;
    }
    let profile_json = serde_json::to_string_pretty(&profile)?;
    write_file(&run_dir.profile(), profile_json.as_bytes())?;
    let counters = state.counters;
    print_profile(&profile)?;
    say(format_args!(
        "samples: {} read = {} delivered + {} skipped + {} left over at the end of epochs",
        counters.read,
        counters.delivered,
        counters.skipped_total(),
        counters.dropped_last
    ))?;
    for (reason, count) in &counters.skipped {
        say(format_args!("  skipped as {reason}: {count}"))?;
    }
    warn_of_bad_data(&config, &counters, &run_dir);
    let path = run_dir.path().display();
    match outcome {
        Outcome::Finished => say(format_args!(
            "done: step {} of {}, run in {path}",
            trainer.step, config.steps
        )),
        Outcome::Interrupted => say(format_args!(
            "interrupted at step {} of {} and saved; continue with --run-dir {path} --resume",
            trainer.step, config.steps
        )),
        Outcome::OutOfData => say(format_args!(
            "the data ended at step {} of {} (data.epochs = {}); saved in {path}",
            trainer.step, config.steps, config.data.epochs
        )),
    }
}

/// Rank 0's part in a folder that it has claimed: finds the checkpoint to go on from or the weights to
/// start from, and the tokenizer. `resume` says, of a run that goes on, whether it may have other
/// settings.
fn prepare(
    config: &mut TrainConfig,
    shards: &[ShardLocation],
    run_dir: &RunDir,
    resume: Option<bool>,
) -> anyhow::Result<(Option<Checkpoint>, StartWeights, Start)> {
    if resume.is_none() && run_dir.holds_run()? {
        bail!(
            "{} already holds a run; add --resume to continue it, or take another --run-dir",
            run_dir.path().display()
        );
    }
    let newest = match resume {
        Some(_) => checkpoint::newest(&run_dir.checkpoints())?,
        None => None,
    };
    make_paths_absolute(config)?;
    if let (Some(newest), Some(allows_changes)) = (&newest, resume) {
        let mut saved = saved_config(run_dir, &newest.folder)?;
        make_paths_absolute(&mut saved)?;
        check_changes(&saved, config, newest.state.step, allows_changes)?;
    }
    let state = newest.as_ref().map(|checkpoint| checkpoint.state.clone());
    let is_done = state
        .as_ref()
        .is_some_and(|state| state.step >= config.steps);
    let kept = [run_dir.tokenizer_json(), run_dir.vocabulary()];
    let kept = kept
        .into_iter()
        .find(|path| resume.is_some() && path.exists());
    if !is_done && newest.is_some() && kept.is_none() {
        bail!(
            "{}: its vocab.txt (or tokenizer.json) is gone, and a new vocabulary would give every \
             word of the trained weights another meaning; put it back",
            run_dir.path().display()
        );
    }
    // Those of a resumed run are in its checkpoint.
    let weights = match newest {
        None => StartWeights::find(&config.weights)?,
        Some(_) => StartWeights::find(&WeightsConfig::default())?,
    };
    match kept {
        Some(kept) => {
            let _ = weights.tokenizer(Some(&kept))?;
        }
        None if !is_done => {
            adopt_tokenizer(config, &weights)?;
            make_paths_absolute(config)?;
            create_tokenizer(config, shards, run_dir)?;
        }
        None => {}
    }
    let tokenizer = match is_done {
        true => None,
        false => Some(TokenizerFile::read(run_dir)?),
    };
    let start = Start {
        run_dir: run_dir.path().to_owned(),
        state,
        tokenizer,
    };
    Ok((newest, weights, start))
}

/// Rank 0's start, on every rank.
fn share(start: Option<Start>, ranks: &dyn Ranks) -> anyhow::Result<Start> {
    if let (1, Some(start)) = (ranks.world_size(), start.as_ref()) {
        // Unchanged, not even by way of JSON.
        return Ok(start.clone());
    }
    let json = match &start {
        Some(start) => serde_json::to_vec(start)?,
        None => Vec::new(),
    };
    let json = ranks.broadcast_bytes(&json)?;
    serde_json::from_slice(&json).context("what rank 0 sent")
}

/// Weights of rank 0, on every rank: the others need no checkpoint of their own.
fn share_weights(model: &Blip2Qformer, ranks: &dyn Ranks) -> anyhow::Result<()> {
    let params = model.params().named_parameters().iter();
    let tensors: Vec<&Tensor> = params.map(|param| &param.tensor).collect();
    Ok(ranks.broadcast(&tensors)?)
}

/// `runs/2026-11-23T18-31-05`, UTC.
fn default_run_dir() -> PathBuf {
    let secs = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (secs / 86_400, secs % 86_400);
    // Days since 1970 to a calendar date (Howard Hinnant, "chrono-compatible low-level date
    // algorithms", civil_from_days), in years that begin in March.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    PathBuf::from("runs").join(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}"
    ))
}

pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("GPU {index}"),
        _ => "the CPU".into(),
    }
}

/// How a run failed.
#[derive(Debug)]
struct Ended {
    cause: String,
    /// Whether it is saved, and how it goes on.
    rest: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.cause, self.rest)
    }
}

impl std::error::Error for Ended {}

/// What to tell of a run that failed.
fn explain(failure: RunFailure, run_dir: &RunDir, is_first: bool) -> Ended {
    let RunFailure { error, step, saved } = failure;
    let path = run_dir.path().display();
    let resume = format!("`qftrain --run-dir {path} --resume`");
    let is_bad_data = matches!(
        error,
        ModelError::Pipeline(PipelineError::TooManyBad { .. })
    );
    let message = full_message(&error);
    let cause = match is_bad_data {
        true => format!("{message}; {} names them", run_dir.skipped().display()),
        false => message,
    };
    let newest = || match checkpoint::list(&run_dir.checkpoints()) {
        Ok(all) => all.last().map(|(step, _)| *step),
        Err(_) => None,
    };
    let rest = match saved {
        Saved::Yes => format!("; saved at step {step}: go on with {resume}"),
        Saved::NothingNew => match newest() {
            Some(step) if is_first => format!("; go on from step {step} with {resume}"),
            _ => String::new(),
        },
        // Weights at fault have their own advice.
        Saved::No(None) => String::new(),
        Saved::No(Some(cause)) => {
            let cause = full_message(&cause);
            let before = match newest() {
                Some(step) => format!("go on from step {step} with {resume}"),
                None => "there is no checkpoint".to_string(),
            };
            format!("; step {step} could not be saved ({cause}); {before}")
        }
    };
    Ended { cause, rest }
}

/// A run that ends well on bad data says so.
fn warn_of_bad_data(config: &TrainConfig, counters: &Counters, run_dir: &RunDir) {
    let (bad, looked_at) = (counters.bad_total(), counters.looked_at());
    let share = bad as f64 / looked_at.max(1) as f64;
    if share > config.data.max_bad_share {
        log::warn!(
            "{:.0} % of the samples were bad ({bad} of {looked_at}); {} names them",
            100.0 * share,
            run_dir.skipped().display()
        );
    }
}

fn describe(
    config: &TrainConfig,
    num_shards: usize,
    device: Device,
    step: u64,
    run_dir: &RunDir,
    (model, optimizer): (&Blip2Qformer, &AdamW),
    ranks: &dyn Ranks,
) {
    let trained: usize = model
        .params()
        .trainable()
        .map(|param| param.tensor.numel())
        .sum();
    let at = if step > 0 {
        format!(", from step {step}")
    } else {
        String::new()
    };
    let (place, batch) = (device_name(device), config.data.batch_size);
    let (place, batch) = match ranks.world_size() {
        1 => (place, batch.to_string()),
        world => (
            format!("{world} ranks, this one on {place}"),
            format!("{batch} on each"),
        ),
    };
    let state = match optimizer.is_sharded() {
        true => {
            let megabytes = optimizer.state_bytes() as f64 / 1e6;
            format!(", {megabytes:.1} MB of optimiser state on this rank")
        }
        false => String::new(),
    };
    remark(format_args!(
        "training on {place}: {}, batch {batch}, {}{at}, {:.1} M trainable parameters{state}, run in {}",
        counted(num_shards as u64, "shard", "shards"),
        counted(config.steps, "step", "steps"),
        trained as f64 / 1e6,
        run_dir.path().display()
    ));
}

/// The trace of a rank. Its folder may be on another machine than rank 0's.
fn open_trace(run_dir: &RunDir, ranks: &dyn Ranks) -> anyhow::Result<Trace> {
    std::fs::create_dir_all(run_dir.path())
        .with_context(|| format!("cannot create the run folder {}", run_dir.path().display()))?;
    let path = run_dir.trace(ranks.rank());
    let trace = Trace::create(path, TraceLimits::default()).context("--profile")?;
    trace.name_this_thread("train");
    trace.name_process(&match ranks.world_size() {
        1 => "qftrain".to_string(),
        _ => format!("qftrain, rank {}", ranks.rank()),
    });
    Ok(trace)
}

fn print_profile(profile: &RunProfile) -> anyhow::Result<()> {
    say(format_args!(
        "profile: {}, {} in {:.1} s: {:.1} images/s; first batch after {:.2} s, then {:.1} % \
         of the time waiting for data",
        counted(profile.steps, "step", "steps"),
        counted(profile.images, "image", "images"),
        profile.wall_secs,
        profile.images_per_s,
        profile.first_batch_secs,
        100.0 * profile.data_wait_share
    ))?;
    let stages = stage_table(profile.loader.stages.iter().chain(&profile.phases));
    let queues = queue_table(&profile.loader.queues);
    say(format_args!("{stages}{}", queues.trim_end()))?;
    if let Some(roofline) = &profile.roofline {
        say(format_args!(
            "roofline: {:.1} GFLOP a step, {:.1} GFLOP/s, {:.0} % of the {:.1} GFLOP/s of a large matrix \
             product; {:.1} MB/s read, {:.1} MB/s to the device (which takes {:.0})",
            profile.flop_per_step / 1e9,
            profile.flop_per_s / 1e9,
            100.0 * roofline.share,
            roofline.matmul_flop_per_s / 1e9,
            roofline.read_bytes_per_s / 1e6,
            roofline.upload_bytes_per_s / 1e6,
            roofline.upload_peak_bytes_per_s / 1e6
        ))?;
    }
    if let Some(trace) = &profile.trace {
        let idle = match trace.gpu_idle_share {
            Some(idle) => format!(", the GPU idle {:.1} % of the time", 100.0 * idle),
            None => String::new(),
        };
        let dropped = match trace.dropped {
            0 => String::new(),
            dropped => format!(" ({dropped} more were over its limit)"),
        };
        say(format_args!(
            "trace: {}, {}{dropped}{idle}, in {}; open it in https://ui.perfetto.dev",
            counted(trace.steps, "step", "steps"),
            counted(trace.events, "event", "events"),
            trace.path.display()
        ))?;
    }
    say(format_args!("bottleneck: {}", profile.bottleneck))
}
