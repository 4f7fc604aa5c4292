//! `qftrain`: the training run.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context};
use clap::Args;
use qf_model::checkpoint::{self, Checkpoint, TrainState};
use qf_model::device::{open_device, DeviceChoice};
use qf_model::feed::DeviceFeed;
use qf_model::host::batch_allocator;
use qf_model::run_dir::{RunDir, RunLock};
use qf_model::train::{
    self, check_random_state, LossScaler, Outcome, RunContext, RunEnd, RunProfile, StepTrace,
    TrainConfig, Trainer, Validator, WeightsConfig,
};
use qf_model::{AdamW, Blip2Qformer, Precision, ProcessGroup, Ranks, SingleProcess};
use qf_pipeline::error::full_message;
use qf_pipeline::loader::{queue_table, split_spec, stage_table, Loader, World};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::trace::{Trace, TraceLimits};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::output::{remark, say};
use crate::progress::Progress;
use crate::session::{
    create_tokenizer, fit_to_tokenizer, load_config, load_tokenizer, tokenizer_from, write_file,
    TokenizerFile,
};
use crate::settings::Settings;
use crate::weights::{adopt_tokenizer, StartWeights};
use crate::{agreement, data, launch, ranks};

#[derive(Args)]
pub(crate) struct TrainArgs {
    /// Training shards: files, globs, {000..012} ranges; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    shards: Vec<String>,

    /// A data set of a mixture, e.g. coco:0.7='coco-*.tar'; give one for each, instead of --shards
    #[arg(long, value_name = "NAME:WEIGHT=SHARDS", conflicts_with = "shards")]
    mix: Vec<String>,

    /// Keep remote shards in this folder (remote.cache_bytes bounds it)
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,

    /// Folder of the run: configuration, metrics.jsonl, checkpoints [default: runs/DATE-TIME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Continue the run in --run-dir with its next batch
    #[arg(long, requires = "run_dir")]
    resume: bool,

    /// Configuration to start from: tiny, small, blip2-vit-l or blip2-vit-g [default: by device]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "resume"])]
    preset: Option<String>,

    /// Configuration file to start from, see configs/
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    config: Option<PathBuf>,

    /// Optimiser steps of the whole run
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    steps: Option<i64>,

    /// Images per step, of each rank
    #[arg(long)]
    batch_size: Option<u32>,

    /// Highest learning rate
    #[arg(long)]
    lr: Option<f64>,

    /// Seed of weights, dropout and negatives, and of the order of data
    #[arg(long)]
    seed: Option<u32>,

    /// vocab.txt or tokenizer.json [default: a vocabulary trained from the shards]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Start the Q-Former from a BERT: a file, a folder, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS", conflicts_with = "resume")]
    bert: Option<String>,

    /// Start the vision tower from published weights: a file, a folder, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS", conflicts_with = "resume")]
    vision_weights: Option<String>,

    /// Start from a whole model: a LAVIS .pth, a Hugging Face folder, a run, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS", conflicts_with = "resume")]
    weights: Option<String>,

    /// Threads that decode, augment and tokenise, of each rank [default: its share of the machine's cores]
    #[arg(long)]
    threads: Option<u32>,

    /// Held-out shards to validate on while training; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    val_shards: Vec<String>,

    /// Validate after every so many steps
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(i64).range(1..))]
    val_every: Option<i64>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// Train with so many processes on this machine, one per GPU or sharing the CPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    nproc: Option<u32>,

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
    set: Vec<String>,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    match (ranks::from_environment()?, args.nproc) {
        (Some(_), Some(_)) => bail!(
            "--nproc starts ranks itself, but this process is one already (RANK or SLURM_PROCID is \
             set); leave --nproc out, or unset them"
        ),
        (Some(ranks), None) => run_as_rank(args, ranks),
        (None, Some(nproc)) if nproc > 1 => launch::run(nproc),
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
    let group = ProcessGroup::join(ranks.place.clone(), device, timeouts, move |cause| {
        end(&cause)
    })?;
    match train(args, device, Some(&ranks), &group) {
        Ok(()) => Ok(group.leave()?),
        Err(error) => end(&group.fail(&full_message(error.as_ref()))),
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
    /// Held for as long as the run lasts.
    _lock: RunLock,
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
    let restarts = is_restart && args.run_dir.is_some() && run_dir.holds_run()?;
    let is_restart = ranks.max(&[i64::from(ranks.is_first() && restarts)])? == [1];
    let resume = args.resume || is_restart;
    let mut config = configuration(args, resume, &run_dir, device, ranks)?;
    config.validate()?;
    let sets = data::data_sets(&config)?;
    let shards = data::all_shards(&sets);
    agreement::check(ranks, &config, &shards)?;
    let held_out = match &config.validation {
        Some(validation) if ranks.is_first() => {
            let shards = data::resolve(&validation.shards, &config.remote);
            Some(shards.context("validation.shards")?)
        }
        _ => None,
    };

    let first = match ranks.is_first() {
        true => Some(prepare(&mut config, &shards, &run_dir, resume)?),
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
                "{}: all {} steps are done; raise --steps to train on",
                run_dir.path().display(),
                config.steps
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
    fit_to_tokenizer(&mut config, &tokenizer);
    config.validate()?;

    let mut model = Blip2Qformer::new(&config.model, device, config.seed)?;
    let mut origins = Vec::new();
    if let Some(first) = &first {
        origins = first.weights.load(model.params_mut())?;
    }
    model.params_mut().freeze(&config.freeze)?;
    let newest = first.as_ref().and_then(|first| first.newest.as_ref());
    if let Some(Checkpoint { folder, state }) = newest {
        check_random_state(state, &config)?;
        checkpoint::load_model(folder, &mut model)?;
    }
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
        .allocator(batch_allocator(device));
    for set in sets {
        loader = loader.data_set(set);
    }
    let mut feed = DeviceFeed::start(loader.batches(tokenizer)?, device)?;
    if ranks.is_first() {
        // Only now: settings that do not fit the checkpoint must not replace those that do.
        write_file(&run_dir.config(), toml::to_string(&config)?.as_bytes())?;
        if !origins.is_empty() {
            let json = serde_json::to_string_pretty(&origins)?;
            write_file(&run_dir.weights(), json.as_bytes())?;
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    catch_signals(&stop)?;

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
    } = result?;
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

/// Rank 0's part: claims the run folder, finds the checkpoint to go on from or the weights to start
/// from, and the tokenizer.
fn prepare(
    config: &mut TrainConfig,
    shards: &[ShardLocation],
    run_dir: &RunDir,
    resume: bool,
) -> anyhow::Result<(FirstRank, Start)> {
    std::fs::create_dir_all(run_dir.path())
        .with_context(|| format!("cannot create the run folder {}", run_dir.path().display()))?;
    let lock = run_dir.lock()?;
    if !resume && run_dir.holds_run()? {
        bail!(
            "{} already holds a run; add --resume to continue it, or take another --run-dir",
            run_dir.path().display()
        );
    }
    let newest = match resume {
        true => checkpoint::newest(&run_dir.checkpoints())?,
        false => None,
    };
    let state = newest.as_ref().map(|checkpoint| checkpoint.state.clone());
    let is_done = state
        .as_ref()
        .is_some_and(|state| state.step >= config.steps);
    let has_tokenizer = run_dir.tokenizer_json().exists() || run_dir.vocabulary().exists();
    // Those of a resumed run are in its checkpoint.
    let weights = match newest {
        None => StartWeights::find(&config.weights)?,
        Some(_) => StartWeights::find(&WeightsConfig::default())?,
    };
    let keeps_tokenizer = resume && has_tokenizer;
    if !is_done && !keeps_tokenizer {
        adopt_tokenizer(config, &weights);
        create_tokenizer(config, shards, run_dir)?;
    }
    let tokenizer = match is_done {
        true => None,
        false => Some(TokenizerFile::read(run_dir)?),
    };
    let first = FirstRank {
        newest,
        weights,
        _lock: lock,
    };
    let start = Start {
        run_dir: run_dir.path().to_owned(),
        state,
        tokenizer,
    };
    Ok((first, start))
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

/// Preset, file or the resumed run's own configuration, with the command line on top.
fn configuration(
    args: &TrainArgs,
    resume: bool,
    run_dir: &RunDir,
    device: Device,
    ranks: &dyn Ranks,
) -> anyhow::Result<TrainConfig> {
    let mut settings = if resume {
        let text = match ranks.is_first() {
            true => load_config(run_dir).context("--resume")?.text()?,
            false => String::new(),
        };
        // The others may not see the folder.
        let text = ranks.broadcast_bytes(text.as_bytes())?;
        Settings::parse(&String::from_utf8(text)?)?
    } else {
        match (&args.config, &args.preset) {
            (Some(path), _) => Settings::file(path)?,
            (None, Some(name)) => Settings::preset(name)?,
            (None, None) => {
                let preset = if device.is_cuda() { "small" } else { "tiny" };
                if ranks.is_first() {
                    remark(format_args!(
                        "preset: {preset} (for {}; --preset or --config takes another)",
                        name(device)
                    ));
                }
                Settings::preset(preset)?
            }
        }
    };
    let strings = |values: &[String]| {
        values
            .iter()
            .cloned()
            .map(toml::Value::String)
            .collect::<Vec<_>>()
    };
    if !args.shards.is_empty() {
        settings.set("shards", strings(&args.shards))?;
    }
    if !args.mix.is_empty() {
        let set = |text: &String| -> anyhow::Result<toml::Value> {
            let (name, weight, spec) = split_spec(text)?;
            let mut set = toml::Table::new();
            set.insert("name".into(), name.into());
            set.insert("weight".into(), weight.into());
            set.insert("shards".into(), strings(&[spec.to_string()]).into());
            Ok(set.into())
        };
        let sets: Vec<toml::Value> = args.mix.iter().map(set).collect::<Result<_, _>>()?;
        settings.set("mix", sets)?;
    }
    if let Some(cache) = &args.cache {
        settings.set("remote.cache", cache.to_string_lossy().into_owned())?;
    }
    if let Some(steps) = args.steps {
        settings.set("steps", steps)?;
    }
    if let Some(batch_size) = args.batch_size {
        settings.set("data.batch_size", i64::from(batch_size))?;
    }
    if let Some(lr) = args.lr {
        settings.set("schedule.init_lr", lr)?;
    }
    if let Some(seed) = args.seed {
        settings.set("seed", i64::from(seed))?;
        settings.set("data.seed", i64::from(seed))?;
    }
    if let Some(tokenizer) = &args.tokenizer {
        if args.resume {
            bail!("--tokenizer: a resumed run keeps the tokenizer of its folder");
        }
        settings.set("tokenizer", tokenizer.to_string_lossy().into_owned())?;
    }
    if !args.val_shards.is_empty() {
        settings.set("validation.shards", strings(&args.val_shards))?;
    }
    if let Some(every) = args.val_every {
        settings.set("validation.every_steps", every)?;
    }
    for (key, place) in [
        ("weights.bert", &args.bert),
        ("weights.vision", &args.vision_weights),
        ("weights.checkpoint", &args.weights),
    ] {
        if let Some(place) = place {
            settings.set(key, place.clone())?;
        }
    }
    if let Some(threads) = args.threads {
        settings.set("data.threads", i64::from(threads))?;
    }
    for text in &args.set {
        settings.set_from_text(text)?;
    }
    settings.resolve()
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

/// The first signal saves and ends the run, a second one ends the process.
fn catch_signals(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .with_context(|| format!("cannot catch signal {signal}"))?;
    }
    Ok(())
}

fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("GPU {index}"),
        _ => "the CPU".into(),
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
    let (place, batch) = (name(device), config.data.batch_size);
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
        "training on {place}: {num_shards} shards, batch {batch}, {} steps{at}, {:.1} M trainable parameters\
         {state}, run in {}",
        config.steps,
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
        "profile: {} steps, {} images in {:.1} s: {:.1} images/s; first batch after {:.2} s, then {:.1} % \
         of the time waiting for data",
        profile.steps,
        profile.images,
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
            dropped => format!(" ({dropped} more had no room)"),
        };
        say(format_args!(
            "trace: {} steps, {} events{dropped}{idle}, in {}; open it in https://ui.perfetto.dev",
            trace.steps,
            trace.events,
            trace.path.display()
        ))?;
    }
    say(format_args!("bottleneck: {}", profile.bottleneck))
}
