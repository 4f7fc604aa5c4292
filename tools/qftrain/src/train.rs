//! `qftrain`: the training run.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context};
use clap::Args;
use qf_model::checkpoint::{self, Checkpoint};
use qf_model::device::{open_device, DeviceChoice};
use qf_model::host::batch_allocator;
use qf_model::run_dir::RunDir;
use qf_model::train::{
    check_random_state, LossScaler, Outcome, RunContext, RunProfile, TrainConfig, Trainer,
    Validator, WeightsConfig,
};
use qf_model::{AdamW, Blip2Qformer, Precision};
use qf_pipeline::loader::{queue_table, stage_table, Loader};
use qf_pipeline::source::resolve_shards;
use tch::Device;

use crate::output::{remark, say};
use crate::progress::Progress;
use crate::session::{create_tokenizer, fit_to_tokenizer, load_config, load_tokenizer, write_file};
use crate::settings::Settings;
use crate::weights::{adopt_tokenizer, StartWeights};

#[derive(Args)]
pub(crate) struct TrainArgs {
    /// Training shards: files, globs, {000..012} ranges; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    shards: Vec<String>,

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

    /// Images per step
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

    /// Threads that decode, augment and tokenise [default: one per core]
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

    /// Any setting by its name in the configuration file, e.g. data.shuffle=none; several
    /// allowed, applied last
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let device = open_device(args.device)?;
    let run_dir = RunDir::new(args.run_dir.clone().unwrap_or_else(default_run_dir));
    let mut config = configuration(args, &run_dir, device)?;
    if config.shards.is_empty() {
        bail!("no shards; give --shards, e.g. --shards 'shards/photos-*.tar'");
    }
    config.validate()?;
    let shards = resolve_shards(&config.shards)?;
    let held_out = match &config.validation {
        Some(validation) => Some(resolve_shards(&validation.shards).context("validation.shards")?),
        None => None,
    };

    std::fs::create_dir_all(run_dir.path())
        .with_context(|| format!("cannot create the run folder {}", run_dir.path().display()))?;
    let _lock = run_dir.lock()?;
    if !args.resume && run_dir.holds_run()? {
        bail!(
            "{} already holds a run; add --resume to continue it, or take another --run-dir",
            run_dir.path().display()
        );
    }
    let newest = match args.resume {
        true => checkpoint::newest(&run_dir.checkpoints())?,
        false => None,
    };
    if let Some(Checkpoint { state, .. }) = &newest {
        if state.step >= config.steps {
            return say(format_args!(
                "{}: all {} steps are done; raise --steps to train on",
                run_dir.path().display(),
                config.steps
            ));
        }
    }

    let has_tokenizer = run_dir.tokenizer_json().exists() || run_dir.vocabulary().exists();
    // Those of a resumed run are in its checkpoint.
    let start = match newest {
        None => StartWeights::find(&config.weights)?,
        Some(_) => StartWeights::find(&WeightsConfig::default())?,
    };
    let tokenizer = if args.resume && has_tokenizer {
        load_tokenizer(&run_dir)?
    } else {
        adopt_tokenizer(&mut config, &start);
        create_tokenizer(&config, &shards, &run_dir)?
    };
    fit_to_tokenizer(&mut config, &tokenizer);
    config.validate()?;

    let mut model = Blip2Qformer::new(&config.model, device, config.seed)?;
    let origins = start.load(model.params_mut())?;
    model.params_mut().freeze(&config.freeze)?;
    let mut optimizer = AdamW::new(model.params(), &config.optimizer)?;
    if let Some(Checkpoint { folder, state }) = &newest {
        check_random_state(state, &config)?;
        checkpoint::load_model(folder, &mut model)?;
        checkpoint::load_optimizer(folder, &mut optimizer)?;
    }
    let precision = config.precision.unwrap_or(match device {
        Device::Cuda(_) => Precision::Bf16,
        _ => Precision::F32,
    });
    // The run keeps it, wherever it is resumed.
    config.precision = Some(precision);
    model.set_precision(precision)?;
    let is_frozen = config.model.vision.vit().is_some_and(|vit| !vit.trainable);
    if is_frozen && newest.is_none() && !start.give_tower() {
        log::warn!(
            "the vision tower is frozen and starts from random numbers, so its features are noise; \
             give --vision-weights, or set model.vision.trainable=true"
        );
    }
    let state = newest.map(|checkpoint| checkpoint.state);
    let step = state.as_ref().map_or(0, |state| state.step);
    let scaler = state.as_ref().and_then(|state| state.scaler);
    let best = state.as_ref().and_then(|state| state.best.clone());
    let best = match best {
        Some(best) if checkpoint::is_whole(&run_dir.checkpoints(), best.step)? => Some(best),
        // Removed by hand, or damaged: the next validation finds another.
        _ => None,
    };
    describe(&config, &shards.len(), device, step, &run_dir, &model);
    let validator = config.validation.as_ref().zip(held_out);
    let validator = validator
        .map(|(validation, shards)| Validator::new(&config, validation, shards, tokenizer.clone()));
    let mut loader = Loader::builder(config.data.clone())
        .shards(shards)
        .resume(state.map(|state| state.loader))
        .allocator(batch_allocator(device))
        .batches(tokenizer)?;
    // Only now: settings that do not fit the checkpoint must not replace those that do.
    write_file(&run_dir.config(), toml::to_string(&config)?.as_bytes())?;
    if !origins.is_empty() {
        let json = serde_json::to_string_pretty(&origins)?;
        write_file(&run_dir.weights(), json.as_bytes())?;
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
        loader: &mut loader,
        validator: validator.as_ref(),
        run_dir: &run_dir,
        stop: &stop,
        on_record: &mut |record| progress.show(record),
    });
    progress.finish();
    let (outcome, profile) = result?;
    let profile_json = serde_json::to_string_pretty(&profile)?;
    write_file(&run_dir.profile(), profile_json.as_bytes())?;
    let counters = loader.state().counters.clone();
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

/// Preset, file or the resumed run's own configuration, with the command line on top.
fn configuration(
    args: &TrainArgs,
    run_dir: &RunDir,
    device: Device,
) -> anyhow::Result<TrainConfig> {
    let mut settings = if args.resume {
        load_config(run_dir).context("--resume")?
    } else {
        match (&args.config, &args.preset) {
            (Some(path), _) => Settings::file(path)?,
            (None, Some(name)) => Settings::preset(name)?,
            (None, None) => {
                let preset = if device.is_cuda() { "small" } else { "tiny" };
                remark(format_args!(
                    "preset: {preset} (for {}; --preset or --config takes another)",
                    name(device)
                ));
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
    num_shards: &usize,
    device: Device,
    step: u64,
    run_dir: &RunDir,
    model: &Blip2Qformer,
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
    remark(format_args!(
        "training on {}: {num_shards} shards, batch {}, {} steps{at}, {:.1} M trainable parameters, \
         run in {}",
        name(device),
        config.data.batch_size,
        config.steps,
        trained as f64 / 1e6,
        run_dir.path().display()
    ));
}

fn print_profile(profile: &RunProfile) -> anyhow::Result<()> {
    say(format_args!(
        "profile: {} steps, {} images in {:.1} s: {:.1} images/s, {:.1} % of the time waiting for data",
        profile.steps,
        profile.images,
        profile.wall_secs,
        profile.images_per_s,
        100.0 * profile.data_wait_share
    ))?;
    let stages = stage_table(profile.loader.stages.iter().chain(&profile.phases));
    let queues = queue_table(&profile.loader.queues);
    say(format_args!(
        "{stages}{queues}bottleneck: {}",
        profile.bottleneck
    ))
}
