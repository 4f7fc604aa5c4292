//! What a run says at its start and at its end.

use std::fmt::Arguments;

use qf_model::checkpoint;
use qf_model::run_dir::RunDir;
use qf_model::train::{
    Outcome, Roofline, RunFailure, RunProfile, Saved, TraceReport, TrainConfig, Trainer,
};
use qf_model::{ModelError, Ranks};
use qf_pipeline::error::full_message;
use qf_pipeline::loader::{queue_table, stage_table, Counters};
use qf_pipeline::words::counted;
use qf_pipeline::PipelineError;
use qftrain::args::TrainArgs;
use serde_json::json;
use tch::Device;

use super::plan::Plan;
use crate::session::device_name;
use qf_cli::output::{remark, say, say_data};

/// Says what is about to be trained, and where.
pub(super) fn describe(plan: &Plan, trainer: &Trainer, device: Device, ranks: &dyn Ranks) {
    let (config, optimizer, step) = (&plan.config, &trainer.optimizer, trainer.step);
    let trainable = trainer.model.params().trainable();
    let trained: usize = trainable.map(|param| param.tensor.numel()).sum();
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
        counted(plan.shards.len() as u64, "shard", "shards"),
        counted(config.steps, "step", "steps"),
        trained as f64 / 1e6,
        plan.run_dir.path().display()
    ));
}

/// Says that there is nothing left to train.
pub(super) fn say_done_before(plan: &Plan, args: &TrainArgs) -> anyhow::Result<()> {
    tell(
        args,
        format_args!(
        "{}: all {} are done; raise --steps to train on (with --allow-changes where that changes \
         learning rates)",
        plan.run_dir.path().display(),
        counted(plan.config.steps, "step", "steps")
    ),
    )
}

/// A line of results: on stdout, unless that is for JSON or the user wants quiet.
fn tell(args: &TrainArgs, line: Arguments<'_>) -> anyhow::Result<()> {
    match args.json || args.quiet {
        true => {
            remark(line);
            Ok(())
        }
        false => say(line),
    }
}

/// Says what became of the samples, and how the run ended at `step`.
pub(super) fn say_outcome(
    plan: &Plan,
    step: u64,
    outcome: Outcome,
    counters: &Counters,
    args: &TrainArgs,
) -> anyhow::Result<()> {
    let (config, run_dir) = (&plan.config, &plan.run_dir);
    tell(
        args,
        format_args!(
            "samples: {} read = {} delivered + {} skipped + {} left over at the end of epochs",
            counters.read,
            counters.delivered,
            counters.skipped_total(),
            counters.dropped_last
        ),
    )?;
    for (reason, count) in &counters.skipped {
        tell(args, format_args!("  skipped as {reason}: {count}"))?;
    }
    warn_of_bad_data(config, counters, run_dir);
    let path = run_dir.path().display();
    if run_dir.report().exists() {
        tell(args, format_args!("report: {}", run_dir.report().display()))?;
    }
    if args.json {
        let end = json!({
            "kind": "end",
            "outcome": match outcome {
                Outcome::Finished => "finished",
                Outcome::Interrupted => "interrupted",
                Outcome::OutOfData => "out_of_data",
            },
            "step": step,
            "run_dir": path.to_string(),
            "samples": counters,
        });
        say_data(&end.to_string())?;
    }
    let steps = config.steps;
    match outcome {
        Outcome::Finished => tell(
            args,
            format_args!("done: step {step} of {steps}, run in {path}"),
        ),
        Outcome::Interrupted => tell(
            args,
            format_args!(
                "interrupted at step {step} of {steps} and saved; continue with --run-dir {path} --resume"
            ),
        ),
        Outcome::OutOfData => tell(
            args,
            format_args!(
                "the data ended at step {step} of {steps} (data.epochs = {}); saved in {path}",
                config.data.epochs
            ),
        ),
    }
}

/// Waiting for data beyond this share of the time is worth the whole table.
const WAIT_SHARE: f64 = 0.05;

/// Says where the time went: in two lines, and with all stages where the user asks or the loader is too
/// slow.
pub(super) fn print_profile(profile: &RunProfile, args: &TrainArgs) -> anyhow::Result<()> {
    tell(
        args,
        format_args!(
            "profile: {}, {} in {:.1} s: {:.1} images/s; first batch after {:.2} s, then {:.1} % \
             of the time waiting for data",
            counted(profile.steps, "step", "steps"),
            counted(profile.images, "image", "images"),
            profile.wall_secs,
            profile.images_per_s,
            profile.first_batch_secs,
            100.0 * profile.data_wait_share
        ),
    )?;
    let is_slow = profile.data_wait_share > WAIT_SHARE;
    if args.profile || args.verbose || is_slow {
        let stages = stage_table(profile.loader.stages.iter().chain(&profile.phases));
        let queues = queue_table(&profile.loader.queues);
        tell(args, format_args!("{stages}{}", queues.trim_end()))?;
    }
    if let Some(roofline) = &profile.roofline {
        print_roofline(profile, roofline, args)?;
    }
    if let Some(trace) = &profile.trace {
        print_trace(trace, args)?;
    }
    tell(args, format_args!("bottleneck: {}", profile.bottleneck))
}

fn print_roofline(
    profile: &RunProfile,
    roofline: &Roofline,
    args: &TrainArgs,
) -> anyhow::Result<()> {
    tell(
        args,
        format_args!(
            "roofline: {:.1} GFLOP a step, {:.1} GFLOP/s, {:.0} % of the {:.1} GFLOP/s of a large matrix \
             product; {:.1} MB/s read, {:.1} MB/s to the device (which takes {:.0})",
            profile.flop_per_step / 1e9,
            profile.flop_per_s / 1e9,
            100.0 * roofline.share,
            roofline.matmul_flop_per_s / 1e9,
            roofline.read_bytes_per_s / 1e6,
            roofline.upload_bytes_per_s / 1e6,
            roofline.upload_peak_bytes_per_s / 1e6
        ),
    )
}

fn print_trace(trace: &TraceReport, args: &TrainArgs) -> anyhow::Result<()> {
    let idle = match trace.gpu_idle_share {
        Some(idle) => format!(", the GPU idle {:.1} % of the time", 100.0 * idle),
        None => String::new(),
    };
    let dropped = match trace.dropped {
        0 => String::new(),
        dropped => format!(" ({dropped} more were over its limit)"),
    };
    tell(
        args,
        format_args!(
            "trace: {}, {}{dropped}{idle}, in {}; open it in https://ui.perfetto.dev",
            counted(trace.steps, "step", "steps"),
            counted(trace.events, "event", "events"),
            trace.path.display()
        ),
    )
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

/// How a run failed.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) cause: String,
    /// Whether it is saved, and how it goes on.
    pub(super) rest: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.cause, self.rest)
    }
}

impl std::error::Error for Ended {}

/// What to tell of a run that failed.
pub(super) fn explain(failure: RunFailure, run_dir: &RunDir, is_first: bool) -> Ended {
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
        false => message.clone(),
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
            let why = match full_message(&cause) {
                same if same == message => String::new(),
                other => format!(" ({other})"),
            };
            let before = match newest() {
                Some(step) => format!("go on from step {step} with {resume}"),
                None => "there is no checkpoint".to_string(),
            };
            format!("; step {step} could not be saved{why}; {before}")
        }
    };
    Ended { cause, rest }
}
