//! `qftrain`: the training run.

mod disk;
mod dry_run;
mod plan;
mod report;
mod start;
mod trainer;

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use anyhow::bail;
use qf_model::device::open_device;
use qf_model::feed::DeviceFeed;
use qf_model::run_dir::RunDir;
use qf_model::train::{self, MetricsRecord, RunContext, RunEnd, StepTrace, Trainer};
use qf_model::{ProcessGroup, Ranks, SingleProcess};
use qf_pipeline::error::full_message;
use qf_pipeline::loader::Loader;
use qftrain::args::{Resume, TrainArgs};
use tch::Device;

use self::plan::Plan;
use self::report::Ended;
use crate::configuration::{check_start_options, check_tokenizer};
use crate::session::{load_tokenizer, tokenizer_from, write_file};
use crate::watch::{MetricsServer, Watcher};
use crate::weights::Origin;
use crate::{launch, ranks, signals};
use qf_cli::output::{be_quiet, complain};

/// Trains, as one process or several.
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
        complain(format_args!("{cause}"));
        // At once: this process may be inside a call to a rank that no longer answers.
        signal_hook::low_level::exit(1)
    };
    let timeouts = ranks::timeouts(&args.timeouts);
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

/// One rank's training, from the options to the last checkpoint; `own` is its place among several.
fn train(
    args: &TrainArgs,
    device: Device,
    own: Option<&ranks::Ranks>,
    ranks: &dyn Ranks,
) -> anyhow::Result<()> {
    if args.quiet {
        be_quiet();
    }
    // First of all, so that an address that is taken costs nothing.
    let metrics_address = args.metrics_addr.filter(|_| ranks.is_first());
    let metrics = metrics_address.map(MetricsServer::start).transpose()?;
    let mut plan = Plan::make(args, device, own, ranks)?;
    let (start, first) = start::begin(&mut plan, args.allow_changes, ranks)?;
    plan.run_dir = RunDir::new(start.run_dir);
    let Some(tokenizer) = start.tokenizer else {
        return match ranks.is_first() {
            true => report::say_done_before(&plan, args),
            false => Ok(()),
        };
    };
    let tokenizer = match ranks.is_first() {
        true => load_tokenizer(&plan.run_dir)?,
        false => tokenizer_from(&tokenizer)?,
    };
    let state = start.state;
    plan.fit(args, state.as_ref(), &tokenizer, ranks)?;

    let loaded = trainer::load_trainer(&mut plan, device, state.as_ref(), first.as_ref(), ranks);
    let (mut trainer, origins) = loaded?;
    if ranks.is_first() {
        report::describe(&plan, &trainer, device, ranks);
    }
    if args.dry_run {
        let loader = plan.start_loader(state, &tokenizer, device, (own, ranks), None)?;
        return dry_run::report(&plan, loader, &mut trainer);
    }
    let validator = plan.validator(&tokenizer);
    let trace = match args.profile {
        true => Some(start::open_trace(&plan.run_dir, ranks)?),
        false => None,
    };
    let loader = plan.start_loader(state, &tokenizer, device, (own, ranks), trace.as_ref())?;
    if let Some(metrics) = &metrics {
        metrics.begin(plan.config.steps, loader.monitor());
    }
    let mut feed = start_feed(loader, &trainer, &plan, device)?;
    if ranks.is_first() {
        write_settings(&plan, &origins)?;
        let room = disk::Room::of(&plan, &trainer);
        if let Some(warning) = room.warning(plan.run_dir.path()) {
            log::warn!("{warning}");
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    signals::catch(&stop)?;

    let span = (trainer.step, plan.config.steps);
    let mut watcher = (ranks.is_first())
        .then(|| Watcher::new(&plan.run_dir, span, args, plan.gallery(&tokenizer), metrics));
    let mut nobody = |_: &MetricsRecord| {};
    let result = trainer.run(RunContext {
        config: &plan.config,
        feed: &mut feed,
        validator: validator.as_ref(),
        ranks,
        run_dir: &plan.run_dir,
        stop: &stop,
        trace: trace.map(|trace| {
            StepTrace::new(trace, args.profile_steps.min(span.1.saturating_sub(span.0)))
        }),
        observer: match &mut watcher {
            Some(watcher) => watcher,
            None => &mut nobody,
        },
    });
    if let Some(watcher) = &mut watcher {
        watcher.finish();
    }
    let end = result.map_err(|failure| {
        write_report(&plan.run_dir, ranks);
        report::explain(*failure, &plan.run_dir, ranks.is_first())
    })?;
    finish(args, &plan, &trainer, end, ranks)
}

/// Starts the thread that brings batches to the device, with a frozen tower where that pays.
fn start_feed(
    loader: Loader,
    trainer: &Trainer,
    plan: &Plan,
    device: Device,
) -> anyhow::Result<DeviceFeed> {
    let config = &plan.config;
    // On the CPU it would contend with the steps for the cores.
    let tower = match (device.is_cuda() && config.tower_ahead, config.records()) {
        (true, true) => (trainer.model).recorded_tower(config.data.batch_size as i64)?,
        (true, false) => trainer.model.frozen_tower()?,
        (false, _) => None,
    };
    Ok(DeviceFeed::start(loader, device, tower)?)
}

/// Writes the configuration, and where the weights come from. Only once the loader has started: settings
/// that do not fit the checkpoint must not replace those that do.
fn write_settings(plan: &Plan, origins: &[Origin]) -> anyhow::Result<()> {
    let text = toml::to_string(&plan.config)?;
    write_file(&plan.run_dir.config(), text.as_bytes())?;
    if !origins.is_empty() {
        let json = serde_json::to_string_pretty(origins)?;
        write_file(&plan.run_dir.weights(), json.as_bytes())?;
    }
    Ok(())
}

/// Writes and prints where the time went and what became of the samples.
fn finish(
    args: &TrainArgs,
    plan: &Plan,
    trainer: &Trainer,
    end: RunEnd,
    ranks: &dyn Ranks,
) -> anyhow::Result<()> {
    let RunEnd {
        outcome,
        mut profile,
        data,
    } = end;
    let state = train::loader_state(&data, ranks)?;
    if !ranks.is_first() {
        return Ok(());
    }
    if args.profile {
        let model = &trainer.model;
        profile.measure_roofline(model.params().device(), model.precision())?;
    }
    let profile_json = serde_json::to_string_pretty(&profile)?;
    write_file(&plan.run_dir.profile(), profile_json.as_bytes())?;
    write_report(&plan.run_dir, ranks);
    report::print_profile(&profile, args)?;
    report::say_outcome(plan, trainer.step, outcome, &state.counters, args)
}

/// Writes the report on rank 0, where anything was trained. A run does not fail for it.
fn write_report(run_dir: &RunDir, ranks: &dyn Ranks) {
    if !ranks.is_first() || !matches!(run_dir.holds_run(), Ok(true)) {
        return;
    }
    if let Err(error) = crate::report::write(run_dir) {
        log::warn!("the report is not written: {error:#}");
    }
}
