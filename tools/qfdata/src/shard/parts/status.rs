//! `qfdata status`: which parts of a plan are complete.

use anyhow::{bail, Context};
use clap::Args;
use qf_cli::output::say;
use qf_pipeline::words::counted;
use serde::Serialize;

use super::file::Plan;
use super::job::{job_of, job_of_part};
use crate::shard::args::JobArgs;
use crate::shard::output::Output;
use crate::shard::statistics::{ShardStatistics, Statistics};

/// Say which parts of a plan are complete.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// What `qfdata plan` wrote: a file or an object
    #[arg(value_name = "PLAN")]
    plan: String,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct PartStatus {
    part: u32,
    rows: std::ops::Range<u64>,
    complete: bool,
    /// What became of a part that was complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// That are there.
    shards: u64,
    samples: Option<u64>,
}

#[derive(Serialize)]
struct Status {
    plan: String,
    rows: u64,
    complete: usize,
    parts: Vec<PartStatus>,
}

/// The statistics of a part of the plan, whose job has the part's own --out; none before it is complete.
pub(super) fn statistics(
    plan: &Plan,
    job: &JobArgs,
    part: u32,
) -> anyhow::Result<Option<Statistics>> {
    let out = job.out.as_deref().context("the plan has no --out")?;
    let output = Output::new(out, job.format)?;
    let name = output.stats_name();
    let Some(text) = output.get(&name)? else {
        return Ok(None);
    };
    let statistics: Statistics = match serde_json::from_slice(&text) {
        Ok(statistics) => statistics,
        Err(error) => bail!("part {part}: its statistics {name} are damaged ({error}); remove them, and run the part again"),
    };
    if statistics.settings.get("plan") != Some(&plan.id) {
        bail!(
            "part {part}: {name} is of another plan; choose another --out for this one, or remove the shards \
             of the other"
        );
    }
    Ok(Some(statistics))
}

/// That every shard of a part is there, with its length and its metadata.
pub(super) fn check_shards(
    job: &JobArgs,
    part: u32,
    shards: &[ShardStatistics],
) -> anyhow::Result<()> {
    let out = job.out.as_deref().unwrap_or_default();
    let output = Output::new(out, job.format)?;
    for shard in shards {
        if output.whole_bytes_of(&shard.file) != Some(shard.bytes) {
            bail!(
                "part {part}: its shard {} is missing, has another length, or lacks its metadata; remove {out}-* and \
                 {out}.*, and run the part again",
                shard.file
            );
        }
    }
    Ok(())
}

/// Runs the subcommand.
pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let plan = Plan::read(&args.plan)?;
    plan.enter_folder()?;
    let job = job_of(&plan)?;
    let mut parts = Vec::with_capacity(plan.parts.len());
    for part in &plan.parts {
        let job = job_of_part(&job, &plan, part.part)?;
        let done = statistics(&plan, &job, part.part)?;
        let problem = done
            .as_ref()
            .and_then(|done| check_shards(&job, part.part, &done.shards).err())
            .map(|error| error.to_string());
        let shards = match &done {
            Some(done) => done.shards.len(),
            None => {
                let out = job.out.as_deref().unwrap_or_default();
                let sides = Output::new(out, job.format)?.sides(job.held_out.is_some());
                let mut shards = 0;
                for side in &sides {
                    shards += side.existing()?.len();
                }
                shards
            }
        };
        parts.push(PartStatus {
            part: part.part,
            rows: part.rows.clone(),
            complete: done.is_some() && problem.is_none(),
            problem,
            shards: shards as u64,
            samples: done.map(|done| done.samples),
        });
    }
    let status = Status {
        plan: plan.id.clone(),
        rows: plan.rows(),
        complete: parts.iter().filter(|part| part.complete).count(),
        parts,
    };
    if args.json {
        return say(format_args!("{}", serde_json::to_string(&status)?));
    }
    print(&status)
}

fn print(status: &Status) -> anyhow::Result<()> {
    let total = status.parts.len();
    say(format_args!(
        "{} of {} complete",
        status.complete,
        counted(total as u64, "part", "parts")
    ))?;
    for part in status.parts.iter().filter(|part| !part.complete) {
        if let Some(problem) = &part.problem {
            say(format_args!("  {problem}"))?;
            continue;
        }
        let state = match part.shards {
            0 => "not begun, or before its first shard".to_owned(),
            shards => format!("{} whole", counted(shards, "shard", "shards")),
        };
        let last = part.rows.end.saturating_sub(1);
        say(format_args!(
            "  part {}: {state} (rows {} to {last})",
            part.part, part.rows.start
        ))?;
    }
    Ok(())
}
