//! The job that a plan holds, as its parts and their reports see it.

use anyhow::{bail, Context};
use clap::Parser;

use super::file::Plan;
use crate::shard::args::{JobArgs, Part, ShardArgs};

/// The command line that a plan holds.
#[derive(Parser)]
pub(super) struct Words {
    #[command(flatten)]
    pub(super) args: ShardArgs,
}

/// Options of the plan's job. Its relative paths start from the folder where the plan was made.
pub(super) fn job_of(plan: &Plan) -> anyhow::Result<JobArgs> {
    let words = std::iter::once("qfdata shard".to_owned()).chain(plan.arguments.iter().cloned());
    let parsed = Words::try_parse_from(words);
    let job = match parsed {
        Ok(words) => words.args.job,
        Err(error) => bail!(
            "this qfdata ({}) cannot take the options of the plan, which was made by {}: {}",
            env!("CARGO_PKG_VERSION"),
            plan.qfdata,
            error.kind()
        ),
    };
    if plan.qfdata != env!("CARGO_PKG_VERSION") {
        log::warn!(
            "the plan was made by qfdata {}, this is {}; parts by different versions may differ",
            plan.qfdata,
            env!("CARGO_PKG_VERSION")
        );
    }
    Ok(job)
}

/// The job of a part: its shards have a prefix of their own.
pub(super) fn job_of_part(job: &JobArgs, plan: &Plan, part: u32) -> anyhow::Result<JobArgs> {
    let out = job.out.as_deref().context("the plan has no --out")?;
    let (index, count) = (u64::from(part), plan.parts.len() as u64);
    Ok(JobArgs {
        out: Some(Part { index, count }.prefix(out)),
        ..job.clone()
    })
}
