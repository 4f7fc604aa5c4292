//! `qfdata shard --plan`: the shards of one part.

use std::time::Instant;

use anyhow::{anyhow, bail};
use clap::Parser;
use qf_cli::output::say;
use qf_pipeline::words::counted;

use super::file::Plan;
use super::job::{job_of, job_of_part, Words};
use super::part::PartOfPlan;
use super::status;
use crate::interrupt::Interrupt;
use crate::shard::args::{part as parse_part, JobArgs, PartArg, ShardArgs};
use crate::shard::run::{settings, Run};

/// What numbers the tasks of a job, in this order: Slurm's arrays, Kubernetes' Indexed Jobs, launchers.
const PART_VARIABLES: [&str; 3] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "RANK"];

/// Runs `qfdata shard --plan`.
pub(in crate::shard) fn shard_part(
    args: &ShardArgs,
    spec: &str,
    started: Instant,
) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let plan = Plan::read(spec)?;
    plan.enter_folder()?;
    let mut job = job_of(&plan)?;
    take_free_options(&mut job, &args.job)?;
    let number = part_number(args.part, plan.parts.len())?;
    let part = plan.parts[number as usize].clone();
    job = job_of_part(&job, &plan, number)?;
    if is_complete(&plan, &job, number)? {
        return Ok(());
    }
    let of_plan = PartOfPlan {
        plan: plan.clone(),
        part,
    };
    let made = Run::new(&job, interrupt, Some(of_plan)).and_then(|run| run.write(started));
    match made {
        Ok(_) => Ok(()),
        // Another process may have made it since: then all its shards are there, and none may be written.
        Err(error) => match is_complete(&plan, &job, number) {
            Ok(true) => Ok(()),
            _ => Err(error),
        },
    }
}

/// Whether a part is complete, which is said.
fn is_complete(plan: &Plan, job: &JobArgs, number: u32) -> anyhow::Result<bool> {
    let Some(done) = status::statistics(plan, job, number)? else {
        return Ok(false);
    };
    status::check_shards(job, number, &done.shards)?;
    if !job.quiet {
        let samples = counted(done.samples, "sample", "samples");
        say(format_args!("part {number} is complete already: {samples}"))?;
    }
    Ok(true)
}

/// Options that may differ from machine to machine; all others are the plan's.
fn take_free_options(job: &mut JobArgs, given: &JobArgs) -> anyhow::Result<()> {
    let plain = Words::try_parse_from(["qfdata shard", "--plan", "x"]);
    let plain = plain.ok().map(|words| settings(&words.args.job));
    let has_others = plain.is_some_and(|plain| plain != settings(given));
    if has_others || !given.input.is_empty() || given.out.is_some() || given.overwrite {
        bail!(
            "with --plan, input, target and all options that decide what shards hold are the plan's; beside it \
             only --part, --threads, --json, --quiet, --parallel-downloads, --per-host, --timeout and --retries \
             can be given"
        );
    }
    job.threads = given.threads.or(job.threads);
    job.json |= given.json;
    job.quiet |= given.quiet;
    job.downloads.take_rates(&given.downloads);
    Ok(())
}

/// The part by `--part I` or `I/N`, else by the environment.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
fn part_number(given: Option<PartArg>, parts: usize) -> anyhow::Result<u32> {
    let (part, from) = match given {
        Some(part) => (part, "--part"),
        None => {
            let set = PART_VARIABLES.iter().find_map(|name| {
                let value = std::env::var(name).ok()?;
                Some((value, *name))
            });
            let Some((text, name)) = set else {
                bail!(
                    "which part? give --part I, or run it where {} is set",
                    PART_VARIABLES.join(", ")
                );
            };
            let part = parse_part(&text).map_err(|_| anyhow!("{name}={text} is no part"))?;
            (part, name)
        }
    };
    let PartArg { index, count } = part;
    if let Some(count) = count.filter(|count| *count != parts as u64) {
        bail!("{from} {index}/{count}: the plan has {parts} parts, not {count}");
    }
    match u32::try_from(index) {
        Ok(part) if (part as usize) < parts => Ok(part),
        _ => bail!(
            "{from} {index}: the plan has parts 0 to {}; number the tasks of the job from 0",
            parts - 1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_named_in_range() {
        let number = |text| part_number(Some(parse_part(text).unwrap()), 4);
        assert_eq!(number("3").unwrap(), 3);
        assert_eq!(number("0/4").unwrap(), 0);
        for (wrong, says) in [("4", "0 to 3"), ("1/5", "4 parts")] {
            let error = number(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
